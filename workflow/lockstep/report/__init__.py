"""report: figures and tables for the report."""

from pathlib import Path


def draw_run(results: Path, partition: Path, output: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    output.mkdir(exist_ok=True)
    for n in ("curves", "confusion", "shards", "time"):
        plt.figure().savefig(output / f"{n}.svg")


def draw_summary(summary: Path, checks: list[Path], output: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    output.mkdir(exist_ok=True)
    plt.figure().savefig(output / "accuracy.svg")
    (output / "runs.html").write_text("x")
    (output / "machine.html").write_text("x")
