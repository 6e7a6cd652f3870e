"""An audit on a terminal or in a file: what the pairing means, verdicts, tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.text import Text

from tst_megatron.audit.report import story
from tst_megatron.audit.report.tables import sheets
from tst_megatron.audit.results import Audit
from tst_megatron.compare.report.terminal import WIDTH, item, table
from tst_megatron.compare.report.words import shown

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
    for said in story.verdicts(audit):
        is_alarm = said.word != "worse" or " none of " not in said.sentence
        yield Text(f"{said.sign} {said.sentence}", style=_STYLES[said.word] if is_alarm else "bold")
    for sheet in sheets(audit, is_short=True):
        yield Group(Text(f"\n{sheet.caption}", style="bold"), table(sheet))
    if audit.left_out:
        yield Text("\nLeft out", style="bold")
    for left in audit.left_out:
        yield item(Text(f"{left.name}: {left.reason}"))
