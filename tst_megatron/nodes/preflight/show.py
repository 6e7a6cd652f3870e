"""Write a verdict as a file for a batch script, and print it as a table for a person."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tst_megatron.nodes.preflight.verdict import Verdict
from tst_megatron.system.files import write_beside

SICK_NODES = "sick-nodes"


def write_sick_nodes(folder: Path, verdict: Verdict) -> None:
    """Write the sick nodes into the folder, one host a line."""
    write_beside(folder / SICK_NODES, "".join(f"{host}\n" for host in verdict.sick_nodes))


def show(verdict: Verdict, console: Console) -> None:
    """Print a table of all nodes, and every problem in full below."""
    table = Table("host", "ranks", "worst problem", "within, GB/s", "over all, GB/s")
    for node in verdict.nodes:
        more = f" (and {len(node.problems) - 1} more)" if len(node.problems) > 1 else ""
        bandwidths = (node.within_node, node.over_all_nodes)
        table.add_row(
            node.host,
            str(node.num_ranks),
            # Problems have brackets, which are not rich's.
            escape(f"{node.problems[0]}{more}" if node.problems else ""),
            *("" if value is None else f"{value:.2f}" for value in bandwidths),
        )
    console.print(table)
    for node in verdict.nodes:
        for problem in node.problems:
            _line(console, f"{node.host}: {problem}", "red")
    for problem in verdict.problems:
        _line(console, problem, "red")
    for note in verdict.notes:
        _line(console, f"note: {note}", None)
    if verdict.is_well:
        _line(console, "No problem found.", "green")


def _line(console: Console, text: str, style: str | None) -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
