"""Parts of a page: text that stays text, tables, lists, and the looks of arms."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tst_megatron import __version__
from tst_megatron.compare.report.cells import Cell, Column, Sheet
from tst_megatron.compare.report.charts import TRUNK_DASHES
from tst_megatron.compare.report.style import Look
from tst_megatron.compare.report.words import shown

_CSS = Path(__file__).with_name("page.css")


def text(content: str) -> str:
    """Return text in which no character is markup."""
    return html.escape(content, quote=True)


def paragraph(content: str) -> str:
    """Return a sentence as a paragraph."""
    return f"<p>{text(content)}</p>\n"


def bullets(sentences: Iterable[str], kind: str = "") -> str:
    """Return sentences as a list; nothing for none."""
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
    of_kind = f' class="{kind}"' if kind else ""
    return f"<ul{of_kind}>{items}</ul>\n" if items else ""


def page(*, title: str, colours: str, header: str, body: str, command: str) -> str:
    """Return a whole page, which asks for nothing beside it.

    Args:
        title: as text.
        colours: variables of its style; may be empty.
        header: what stands first, as markup.
        body: its sections, as markup.
        command: that made it.
    """
    css = f"{colours}\n{_CSS.read_text(encoding='utf-8')}"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>\n{css}</style>\n</head>\n"
        f"<body>\n{header}\n<main>\n{body}\n</main>\n"
        f'<footer><p class="muted"><small>Made by tst-megatron {__version__} {command}.</small></p>'
        f"</footer>\n</body>\n</html>\n"
    )


# --- tables --------------------------------------------------------------------------------------


def table(sheet: Sheet, looks: Mapping[str, Look]) -> str:
    """Return a table in a box of its own, which scrolls where the table is wider than a screen."""
    head = "".join(_head(column) for column in sheet.columns)
    rows = "\n".join(_row(row, sheet.columns, looks) for row in sheet.rows)
    caption = text(sheet.caption)
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0">\n'
        f'<table id="table-{sheet.name}">\n<caption><span>{caption}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n"
        f"{bullets(sheet.notes, 'notes')}"
    )


def _head(column: Column) -> str:
    if not column.unit:
        return f'<th scope="col">{text(column.head)}</th>'
    unit = f'<span class="unit">{text(column.unit)}</span>'
    return f'<th scope="col" class="number">{text(column.head)} {unit}</th>'


SHORT = 24
"""Characters of a text that may stand in a narrow column."""


def _row(cells: Sequence[Cell], columns: Sequence[Column], looks: Mapping[str, Look]) -> str:
    first, *others = cells
    row = f'<th scope="row">{_content(first, looks)}</th>'
    for cell, column in zip(others, columns[1:], strict=True):
        kind = "number" if column.unit else "words" if len(cell.text) > SHORT else "name"
        row += f'<td class="{kind}">{_content(cell, looks)}</td>'
    return f"<tr>{row}</tr>"


def _content(cell: Cell, looks: Mapping[str, Look]) -> str:
    mark = swatch(looks[cell.arm]) if cell.arm in looks else ""
    content, detail = text(cell.text), text(cell.detail)
    if cell.is_number:
        content, detail = _with_minus(content), _with_minus(detail)
    return mark + content + (f" <small>{detail}</small>" if detail else "")


def _with_minus(number: str) -> str:
    """Return a number with the sign that is as wide as a plus."""
    return re.sub(r"(?<!\w)-(?=\d)", "\u2212", number)


# --- the looks of arms ---------------------------------------------------------------------------


def variables(looks: Iterable[Look]) -> str:
    """Return the colours of arms as variables, for white paper and for dark paper."""
    by_name = {look.variable: look for look in looks}
    light = " ".join(f"--{name}: {look.colour};" for name, look in by_name.items())
    dark = " ".join(f"--{name}: {look.dark};" for name, look in by_name.items())
    return (
        f":root {{ {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    )


def legend(arms: Sequence[str], looks: Mapping[str, Look], *, has_trunk: bool) -> str:
    """Return which line is whose."""
    items = [f"<li>{swatch(looks[arm])}{text(shown(arm))}</li>" for arm in arms]
    if has_trunk:
        line = _stroke("muted", TRUNK_DASHES, 1.3)
        items.append(f"<li>{_SWATCH.format(line)}trained by the trunk</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def swatch(look: Look) -> str:
    """Return a piece of an arm's line with its marker."""
    line = _stroke(look.variable, look.dashes, 2)
    shape = _SHAPES[look.marker].format(fill=f"var(--{look.variable})")
    return _SWATCH.format(line + shape)


_SWATCH = '<svg class="swatch" viewBox="0 0 36 12" aria-hidden="true">{}</svg>'


def _stroke(variable: str, dashes: Sequence[float], width: float) -> str:
    pattern = " ".join(f"{width * length:g}" for length in dashes)
    dashed = f' stroke-dasharray="{pattern}"' if dashes else ""
    return f'<path d="M0 6H36" stroke="var(--{variable})" stroke-width="{width}"{dashed}/>'


_POINTS = {
    "s": "14,2 22,2 22,10 14,10",
    "^": "18,1 23,10 13,10",
    "v": "18,11 23,2 13,2",
    "D": "18,0.5 23.5,6 18,11.5 12.5,6",
    "P": "16,1 20,1 20,4 23,4 23,8 20,8 20,11 16,11 16,8 13,8 13,4 16,4",
    "X": "15,1 18,4 21,1 23,3 20,6 23,9 21,11 18,8 15,11 13,9 16,6 13,3",
    "*": "18,0 19.5,4.3 24,4.3 20.4,7 21.7,11.3 18,8.7 14.3,11.3 15.6,7 12,4.3 16.5,4.3",
}
_SHAPES = {
    "o": '<circle cx="18" cy="6" r="4.4" fill="{fill}" stroke="var(--paper)"/>',
    **{
        marker: f'<polygon points="{points}" fill="{{fill}}" stroke="var(--paper)"/>'
        for marker, points in _POINTS.items()
    },
}
"""Each marker of ``style.py`` in a box of 36 by 12."""
