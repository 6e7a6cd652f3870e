"""An audit on a terminal or in a file: what the pairing means, verdicts, tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tst_megatron.audit.report import story
from tst_megatron.audit.report.tables import DIGITS, caption, needed
from tst_megatron.audit.results import Audit
from tst_megatron.compare.report.terminal import WIDTH, item
from tst_megatron.compare.report.words import bounds, number, shown

_STYLES = {
    "better": "bold green",
    "worse": "bold red",
    "not worse": "bold",
    "cannot tell": "bold yellow",
}


def show(audit: Audit, console: Console) -> None:
    """Print an audit, the pairing and what is worse first."""
    if not console.is_terminal:
        console.width = WIDTH
    for part in _parts(audit):
        console.print(part, width=min(console.width, WIDTH), highlight=False)


def _parts(audit: Audit) -> Iterator[RenderableType]:
    yield Text(story.title(audit), style="bold")
    yield Text(f"{story.subtitle(audit)}\n")
    for pairing in audit.pairings:
        yield Text(f"{shown(pairing.sentence)}\n", style="" if pairing.is_equal else "yellow")
    if caution := story.caution(audit):
        yield Text(f"{caution}\n", style="yellow")
    for said in story.verdicts(audit):
        is_alarm = said.word != "worse" or " none of " not in said.sentence
        yield Text(f"{said.sign} {said.sentence}", style=_STYLES[said.word] if is_alarm else "bold")
    for model, group in dict.fromkeys((each.model, each.group) for each in audit.answers):
        yield Group(
            Text(f"\n{caption(audit, model, group)}", style="bold"), _table(audit, model, group)
        )
    if audit.left_out:
        yield Text("\nLeft out", style="bold")
    for left in audit.left_out:
        yield item(Text(f"{left.name}: {left.reason}"))


def _table(audit: Audit, model: str, group: str) -> Table:
    """Return a table of which a row is one line."""
    drawn = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", show_edge=False)
    drawn.add_column("Probe", width=26)
    drawn.add_column("Verdict", width=13)
    for head, width in (
        ("Baseline", 8),
        ("Difference", 10),
        ("95% interval", 16),
        ("Margin", 6),
    ):
        drawn.add_column(head, width=width, justify="right")
    drawn.add_column("To decide", width=10, justify="right")
    for each in audit.answers:
        if (each.model, each.group) == (model, group):
            drawn.add_row(
                each.probe,
                Text(f"{story.SIGNS[each.verdict]} {each.verdict}", style=_STYLES[each.verdict]),
                number(each.baseline_value, DIGITS),
                number(each.difference.value, DIGITS, has_sign=True),
                bounds(each.difference, DIGITS, has_sign=True),
                f"{each.margin:g}",
                needed(each),
            )
    return drawn
