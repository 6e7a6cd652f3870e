"""Print a plan: every section as a table, then what was assumed, and the sources."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tst_megatron.plan.make_plan import Plan
from tst_megatron.plan.section import Section

_COLOURS = {
    "compute-bound": "green",
    "data-limited": "yellow",
    "depends on the text": "yellow",
    "data-bound": "red",
    "no gain": "red",
    "too short": "yellow",
}


def show(plan: Plan, console: Console) -> None:
    """Print a plan; 80 columns are enough."""
    console.print(Text(plan.verdict.sentence, style=f"bold {_COLOURS[plan.verdict.kind]}"))
    for section in plan.sections:
        _show_section(section, console)
    console.print(Text("\nAssumed", style="bold"))
    for line in plan.assumptions:
        _line(line, console)
    for note in plan.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    console.print(Text("\nSources", style="bold"))
    for number, text in plan.sources.items():
        console.print(Text(f"[{number}] {text}", style="dim"))


def _show_section(section: Section, console: Console) -> None:
    console.print(Text(f"\n{section.title}", style="bold"))
    if section.rows:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        for i, name in enumerate(section.columns):
            table.add_column(Text(name), justify="left" if i == 0 else "right", overflow="fold")
        for row in section.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
    for line in section.lines:
        _line(line, console)


def _line(line: str, console: Console) -> None:
    """Print a sentence, its later lines set in, so that the next one is seen to begin."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=1)
    table.add_column()
    table.add_row(Text("·"), Text(line))
    console.print(Padding(table, (0, 0, 0, 0)))
