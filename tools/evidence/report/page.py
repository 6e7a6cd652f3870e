"""Put tables and the picture of all records into ``docs/evidence.md``."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence

from evidence.pairs import MapPair, pairs
from evidence.plan import ROOT
from evidence.report.arms import arms_table, main_records, slot_records, slots_table
from evidence.report.beyond import beyond_table
from evidence.report.chart import draw_map
from evidence.report.crossings import crossings_table
from evidence.report.predicted import predictions_table
from evidence.report.switch import switch_tables
from evidence.report.tables import DOCS, best_table, cost_table, map_table
from tst_megatron.system.files import write_beside, write_bytes_beside

sys.path.insert(0, str(ROOT / "tools"))

from update_readme import replaced  # noqa: E402

PAGE, PICTURE = DOCS / "evidence.md", DOCS / "evidence-map.png"

PARTS: dict[str, Callable[[Sequence[MapPair]], str]] = {
    "best": best_table,
    "losses": lambda found: map_table([pair for pair in found if pair.low > 0]),
    "arms": lambda _: arms_table(main_records()),
    "slots": lambda _: slots_table(slot_records()),
    "map": map_table,
    "crossings": crossings_table,
    "predictions": predictions_table,
    "beyond": lambda _: beyond_table(),
    "switch": lambda _: switch_tables(),
    "cost": lambda _: cost_table(),
}
"""The generated parts by the name in their marks."""


def page(text: str, found: Sequence[MapPair]) -> str:
    """Return the page with every generated part as the records say it."""
    for name, part in PARTS.items():
        text = replaced(text, part(found), by=f"evidence: {name}")
    return text


def write_page() -> None:
    """Write the page and its picture anew."""
    found = list(pairs())
    write_beside(PAGE, page(PAGE.read_text(encoding="utf-8"), found))
    write_bytes_beside(PICTURE, draw_map(found, made_from(found)))


def made_from(found: Sequence[MapPair]) -> str:
    """Return a digest of what the picture shows, which stands in its file."""
    return hashlib.sha256(map_table(found).encode()).hexdigest()
