"""A small HTML page that stands alone: it is shown in a frame of Snakemake's report."""

from collections.abc import Iterable
from html import escape

from lockstep.pipeline.report import style

CSS = f"""
body {{ font: 14px/1.45 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
       color: {style.INK}; background: white; margin: 24px; }}
h1 {{ font-size: 20px; margin: 0 0 12px; }}
h2 {{ font-size: 15px; margin: 28px 0 8px; }}
p, ul {{ max-width: 60em; }}
ul {{ padding-left: 1.2em; }}
li {{ margin: 4px 0; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }}
th {{ text-align: left; vertical-align: bottom; font-weight: 600; color: {style.GREY};
     border-bottom: 2px solid {style.PALE}; padding: 4px 8px; }}
td {{ border-bottom: 1px solid {style.PALE}; padding: 4px 8px; white-space: nowrap; }}
tbody tr:hover {{ background: #f3f6f9; }}
.number {{ text-align: right; }}
.note {{ color: {style.GREY}; }}
.chips {{ display: inline-block; }}
code {{ font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }}
.chip {{ display: inline-block; min-width: 18px; padding: 0 3px; margin-right: 6px;
        box-sizing: border-box; border: 2px solid; border-radius: 10px; text-align: center;
        font: bold 11px/16px system-ui, Arial, sans-serif; }}
"""


def make_page(title: str, *parts: str) -> str:
    """Return a page of parts that are HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def make_table(
    head: Iterable[str], rows: Iterable[Iterable[str]], classes: dict[int, str] | None = None
) -> str:
    """Return a table.

    Args:
        head: the columns' titles, as text.
        rows: the cells, as HTML.
        classes: the CSS classes of columns, by number from 0.
    """
    classes = classes or {}

    def line(cells: Iterable[str], tag: str) -> str:
        marked = (
            f'<{tag} class="{classes[at]}">{cell}</{tag}>'
            if at in classes
            else f"<{tag}>{cell}</{tag}>"
            for at, cell in enumerate(cells)
        )
        return f"<tr>{''.join(marked)}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    top = line(map(escape, head), "th")
    return (
        f'<div class="wide"><table>\n<thead>{top}</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def make_list(items: Iterable[str]) -> str:
    """Return a list of items that are HTML already."""
    return "<ul>\n" + "\n".join(f"<li>{item}</li>" for item in items) + "\n</ul>"
