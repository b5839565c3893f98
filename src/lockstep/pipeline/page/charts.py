"""Small drawings in a table's cell, as SVG without text: the numbers stand beside them.

What has axes is drawn by page.js, to the width of the window, from the numbers in the page.
"""

from collections.abc import Sequence

from markupsafe import Markup

WIDTH, HEIGHT = 96.0, 14.0


def draw_interval(value: float, low: float, high: float, domain: tuple[float, float]) -> Markup:
    """Return a value with its interval on a line from one end of the domain to the other, which
    cuts an interval that goes beyond it."""
    start, end = domain

    def at(number: float) -> float:
        share = (number - start) / (end - start) if end > start else 0.5
        return 4 + min(max(share, 0.0), 1.0) * (WIDTH - 8)

    middle = HEIGHT / 2
    return _svg(
        f'<path class="whisker" d="M{at(low):.1f} {middle}H{at(high):.1f}'
        f"M{at(low):.1f} {middle - 3}v6M{at(high):.1f} {middle - 3}v6"
        f'"/><circle class="dot" cx="{at(value):.1f}" cy="{middle}" r="3.2"/>'
    )


def draw_parts(parts: Sequence[tuple[str, float]], most: float) -> Markup:
    """Return a bar of parts beside one another, each with its class; the longest bar is `most`."""
    found, at = [], 0.0
    for name, value in parts:
        width = value / most * WIDTH if most else 0.0
        found.append(f'<rect class="{name}" x="{at:.2f}" width="{width:.2f}" height="{HEIGHT}"/>')
        at += width
    return _svg("".join(found), stretched=True)


def _svg(inside: str, stretched: bool = False) -> Markup:
    """Return a drawing; all in it is made here of numbers and of classes of our own."""
    ratio = ' preserveAspectRatio="none"' if stretched else ""
    return Markup(  # noqa: S704
        f'<svg class="cell" viewBox="0 0 {WIDTH:g} {HEIGHT:g}"{ratio} aria-hidden="true">'
        f"{inside}</svg>"
    )
