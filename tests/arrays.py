"""Arrays of the user's own that can be learned, for tests of every kind."""

import numpy as np


def numbers() -> dict[str, np.ndarray]:
    """Return inputs of very different sizes, and two numbers that follow from them."""
    draw = np.random.default_rng(0)
    inputs = draw.normal(5, [1, 100, 0.01], (300, 3))
    targets = np.stack([inputs[:, 0] + inputs[:, 1] / 100, np.sin(inputs[:, 0])], axis=1)
    return {"inputs": inputs, "targets": targets}


def tokens() -> dict[str, np.ndarray]:
    """Return sequences in which a token says most of the time which one is next; a third ends
    early."""
    draw = np.random.default_rng(0)
    rows = draw.integers(0, 7, (300, 9))
    for place in range(1, 9):
        sure = draw.random(300) < 0.9
        rows[sure, place] = (3 * rows[sure, place - 1] + 1) % 7
    rows[::3, 6:] = -1
    return {"tokens": rows}
