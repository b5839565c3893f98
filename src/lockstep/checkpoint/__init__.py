"""What is kept of a run: the format, the store, when to save, and whether ranks agree."""

import re

# How often a run is saved: `30 s`, `10 min`, `1 h`, `500 steps`, `1 epoch`. Here, where no torch is
# loaded, because a configuration is checked by it.
PATTERN = r"^([0-9]{1,9}(\.[0-9]{1,9})? ?(s|min|h)|[1-9][0-9]{0,8} (step|steps|epoch|epochs))$"

# The file beside a run's checkpoints by which somebody asks it to save and stop.
STOP = "stop"
# The one by which somebody asks for another number of ranks.
RANKS = "ranks"


def period(text: str) -> tuple[float, str]:
    """Return a period in words as a number of "seconds", "steps" or "epochs".

    Raises:
        ValueError: it is none, or no time passes in it.
    """
    if not re.fullmatch(PATTERN, text):
        raise ValueError(
            f"expected `30 s`, `10 min`, `1 h`, `500 steps` or `1 epoch`, not {text!r}"
        )
    if not re.search("[1-9]", text):
        raise ValueError(f"expected more than {text!r}; `1 steps` is after every step")
    number, unit = re.findall(r"[0-9.]+|[a-z]+", text)
    if unit in ("s", "min", "h"):
        return float(number) * {"s": 1, "min": 60, "h": 3600}[unit], "seconds"
    return float(number), unit.rstrip("s") + "s"
