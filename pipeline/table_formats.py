"""How a table is written down: Markdown, LaTeX and HTML from one grid of cells, so that the three always say the same."""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass

DASH = "–"
"""What stands where there is no number."""
MARKS = {"*": "*", "†": r"\dagger", "‡": r"\ddagger"}
LATEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{character: "\\" + character for character in "&%$#_{}"},
    **{"±": r"$\pm$", "–": "--", "—": "---", "−": "$-$", "×": r"$\times$", "→": r"$\rightarrow$", "≤": r"$\leq$", "≥": r"$\geq$"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "°": r"$^{\circ}$", "²": r"$^{2}$", "†": r"$\dagger$", "‡": r"$\ddagger$", "\n": " "},
    # a table cell that begins with [ would be read as the argument of the row end before it
    **{"[": "{[}", "]": "{]}"},
}
MARKDOWN = re.compile(r"([\\`*_|<>\[\]#])")
CSS = """
body { background: #fff; color: #1a1a1a; font: 15px/1.45 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; margin: 1.5rem; }
h1 { font-size: 1.15rem; margin: 0 0 .8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; border-top: 2px solid #1a1a1a; border-bottom: 2px solid #1a1a1a; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: right; white-space: nowrap; }
thead th { border-bottom: 1px solid #1a1a1a; font-weight: 600; vertical-align: bottom; }
th.text, td.text { text-align: left; }
td.long { white-space: normal; min-width: 16rem; max-width: 40rem; }
tr > :first-child { position: sticky; left: 0; background: #fff; text-align: left; font-weight: 600; }
tbody tr:nth-child(even) > * { background: #f6f7f9; }
.aside { color: #5a6270; font-style: italic; font-weight: 400; }
p { max-width: 62rem; color: #333; font-size: .92rem; }
"""


@dataclass(frozen=True)
class Cell:
    """Text of a cell, whether it is bold, and the marks behind it."""

    text: str
    bold: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Heading:
    """Head of a column: `text` columns are left-aligned, `aside` ones (published figures) set apart, `long` ones may wrap."""

    text: str
    kind: str = "number"


@dataclass(frozen=True)
class Grid:
    """A table ready to be written: title, heads, rows of cells, and the sentences of its caption."""

    title: str
    headings: tuple[Heading, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: tuple[str, ...] = ()


def number(value: float, digits: int) -> str:
    """`value` with `digits` decimals; a dash where it is not finite, and an exponent where it would vanish: 3.2e-06 at 3 digits.

    Whole numbers of five digits and more have commas: 1,248,777.
    """
    if not math.isfinite(value):
        return DASH
    text = f"{value:.{digits}f}"
    if float(text) != 0:
        return f"{value:,.0f}" if digits == 0 and abs(value) >= 10_000 else text
    return f"{0:.{digits}f}" if value == 0 else re.sub(r"e([+-])0(\d)$", r"e\1\2", f"{value:.1e}")


def p_value(p: float) -> str:
    """A p-value with three decimals, or `< 0.001`; a dash where there is none."""
    return DASH if not math.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def to_markdown(grid: Grid) -> str:
    """GitHub's Markdown: bold title, table, caption as a paragraph."""
    left = ["text", "long"]
    lines = [f"**{_markdown(grid.title)}**", ""]
    lines += [_markdown_row([_markdown(heading.text) for heading in grid.headings])]
    lines += [_markdown_row([":---" if heading.kind in left else "---:" for heading in grid.headings])]
    lines += [_markdown_row([_markdown_cell(cell) for cell in row]) for row in grid.rows]
    return "\n".join([*lines, "", _markdown(" ".join(grid.caption))]) + "\n"


def to_latex(grid: Grid, label: str) -> str:
    """A `table` environment for booktabs, everything else plain LaTeX; `label` becomes `tab:label`."""
    widths = {"text": "l", "long": "p{0.3\\linewidth}"}
    columns = "".join(widths.get(heading.kind, "r") for heading in grid.headings)
    caption = " ".join([f"\\textbf{{{_latex(_sentence(grid.title))}}}", *(_latex(part) for part in grid.caption)])
    lines = ["% needs \\usepackage{booktabs} and \\usepackage[utf8]{inputenc} or a newer engine", r"\begin{table}", r"\centering", r"\small"]
    lines += [f"\\caption{{{caption}}}", f"\\label{{tab:{re.sub('[^A-Za-z0-9-]+', '-', label)}}}", f"\\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [_latex_row([_latex(heading.text) for heading in grid.headings]), r"\midrule"]
    lines += [_latex_row([_latex_cell(cell) for cell in row]) for row in grid.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def to_html(grid: Grid) -> str:
    """One self-contained page: title, table with its first column held in place, caption below."""
    title = html.escape(grid.title)
    heads = "".join(f'<th scope="col" class="{heading.kind}">{html.escape(heading.text)}</th>' for heading in grid.headings)
    rows = "\n".join(f"<tr>{_html_row(row, grid.headings)}</tr>" for row in grid.rows)
    caption = html.escape(" ".join(grid.caption), quote=False)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n'
        f'<h1>{title}</h1>\n<div class="wide">\n<table aria-describedby="caption">\n<thead>\n<tr>{heads}</tr>\n</thead>\n'
        f'<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n<p id="caption">{caption}</p>\n</body>\n</html>\n'
    )


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _markdown(text: str) -> str:
    return MARKDOWN.sub(r"\\\1", text).replace("\n", " ")


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: Cell) -> str:
    text = _markdown(cell.text)
    return (f"**{text}**" if cell.bold else text) + _markdown(cell.mark)


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def _latex_row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = _latex(cell.text)
    mark = "".join(MARKS[character] for character in cell.mark)
    return (f"\\textbf{{{text}}}" if cell.bold else text) + (f"$^{{{mark}}}$" if mark else "")


def _html_row(row: tuple[Cell, ...], headings: tuple[Heading, ...]) -> str:
    first, *others = (_html_cell(cell) for cell in row)
    return f'<th scope="row">{first}</th>' + "".join(
        f'<td class="{heading.kind}">{cell}</td>' for cell, heading in zip(others, headings[1:], strict=True)
    )


def _html_cell(cell: Cell) -> str:
    text = html.escape(cell.text)
    return (f"<strong>{text}</strong>" if cell.bold else text) + (f"<sup>{html.escape(cell.mark)}</sup>" if cell.mark else "")
