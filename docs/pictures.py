"""Take the documents' pictures from the reports of real runs: `make pictures` trains them first."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops, ImageOps

HERE = Path(__file__).parent

# Each with what is shown, and the browser's window, in pixels: what is empty in it is cut off. Of
# the table of runs, hashes and accuracies fit; speeds are those of one machine on one day.
PICTURES = {
    "page.png": ("results/seeds/index.html", (1100, 1150)),
    "seeds.png": ("results/seeds/figures/runs.html", (920, 625)),
}
MARGIN = 12
COLOURS = 64  # a palette of so many makes a picture a third as large


def take(browser: str, page: Path, window: tuple[int, int], picture: Path) -> None:
    """Write what a browser shows of a page, without the empty space around it."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--hide-scrollbars"),
                *(f"--window-size={window[0]},{window[1]}", f"--screenshot={shot}", page.as_uri()),
            ],
            check=True,
            capture_output=True,
        )
        image = Image.open(shot).convert("RGB")
    box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    shown = ImageOps.expand(image.crop(box), MARGIN, "white")
    shown.quantize(COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        sys.exit("pictures: there is no chromium on the PATH; install it")
    for name, (page, window) in PICTURES.items():
        take(found, Path(page).resolve(), window, HERE / name)
