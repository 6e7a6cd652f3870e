"""A comparison on a terminal or in a file: verdicts, what differs, tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tst_megatron.compare.report import story
from tst_megatron.compare.report.cells import Cell, Column, Sheet
from tst_megatron.compare.report.tables import sheets
from tst_megatron.compare.report.words import shown
from tst_megatron.compare.results import Comparison

WIDTH = 100
"""Columns: of a file, and at most of a terminal, where longer lines are hard to read."""

_STYLES = {
    "better": "bold green",
    "worse": "bold red",
    "no difference found": "bold",
    "says nothing": "bold yellow",
    "forbids": "bold red",
    "matters": "yellow",
    "expected": "dim",
}


def show(comparison: Comparison, console: Console) -> None:
    """Print a comparison, the verdicts first.

    Args:
        comparison: what was found.
        console: where to; a file gets neither colours nor lines of more than 100 columns.
    """
    if console.is_terminal:
        for part in _parts(comparison):
            console.print(part, width=min(console.width, WIDTH), highlight=False)
        return
    console.width = WIDTH
    with console.capture() as captured:
        for part in _parts(comparison):
            console.print(part, highlight=False)
    # Cells are filled with spaces, which a file needs no more at the end of a line.
    for line in captured.get().splitlines():
        console.out(line.rstrip(), highlight=False)


def _parts(comparison: Comparison) -> Iterator[RenderableType]:
    yield Text(story.title(comparison), style="bold")
    yield Text(f"{story.subtitle(comparison)}\n")
    for verdict in story.verdicts(comparison):
        yield Text(f"{verdict.sign} {verdict.sentence}", style=_STYLES[verdict.kind])
    yield Text("\nCan these runs be compared?", style="bold")
    for sentence in story.shared(comparison):
        yield item(Text(sentence))
    yield item(Text(story.difference_summary(comparison)))
    for said in story.differences(comparison):
        yield _difference(said)
    for sheet in sheets(comparison):
        yield Group(Text(f"\n{sheet.caption}", style="bold"), table(sheet))
        for note in sheet.notes:
            yield Text(note, style="dim")
    if comparison.notes:
        yield Text("\nNotes", style="bold")
    for note in comparison.notes:
        yield item(Text(shown(note)))


def item(text: Text, indent: int = 0) -> RenderableType:
    """Return a line of a list, whose further lines stand below its first word."""
    grid = Table.grid(padding=0)
    grid.add_row(Text("- "), text)
    return Padding(grid, (0, 0, 0, indent))


def _difference(said: story.Said) -> RenderableType:
    text = Text(f"{said.what}:", style="bold")
    text.append(f" {story.GRAVITIES[said.gravity]}", style=_STYLES[said.gravity])
    for arms, value in said.values:
        text.append(f"\n{arms}: {value}", style="default not bold")
    return item(text.append(f"\n{said.means}", style="not bold"), 2)


def table(sheet: Sheet) -> Table:
    """Return a table as rich draws it, without lines."""
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="", show_edge=False)
    for at, column in enumerate(sheet.columns):
        drawn.add_column(
            _head(column),
            justify="right" if column.unit else "left",
            overflow="fold",
            vertical="top",
            min_width=_longest_word(column, [row[at] for row in sheet.rows]),
        )
    for row in sheet.rows:
        drawn.add_row(*(_cell(cell) for cell in row))
    return drawn


LONGEST_WORD = 13
"""Characters; longer words are names, which may be broken."""


def _longest_word(column: Column, cells: Sequence[Cell]) -> int:
    texts = [column.head, f"({column.unit})"] + [f"{cell.text} {cell.detail}" for cell in cells]
    return min(LONGEST_WORD, max(len(word) for text in texts for word in text.split()))


def _head(column: Column) -> Text:
    head = Text(column.head, style="bold")
    return head.append(f"\n({column.unit})", style="dim not bold") if column.unit else head


def _cell(cell: Cell) -> Text:
    text = Text(cell.text, style="" if cell.is_number or cell.arm else "dim")
    return text.append(f"\n{cell.detail}", style="dim") if cell.detail else text
