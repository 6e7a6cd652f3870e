"""Write the paper's grids into docs/should-you-use-tst.md, from the data files of ``plan``.

Run: uv run python tools/update_surfaces.py
"""

from __future__ import annotations

from pathlib import Path

from update_readme import replaced

from tst_megatron.plan.published.read import published
from tst_megatron.plan.published.records import Grid

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "should-you-use-tst.md"


def surface(grid: Grid) -> str:
    """One grid as gaps to its baseline in thousandths of a nat; cells that do not win are bold."""
    head = (
        f"**{grid.parameters / 1e6:.0f}M parameters, {grid.num_steps:,} steps, slots weighted "
        f"{grid.slot_weights}** (table {grid.table}; ordinary run {grid.baseline:.3f}; gaps in "
        "thousandths of a nat)"
    )
    cells = ["r \\ K", *map(str, grid.bag_sizes)]
    rows = [cells, ["---"] * len(cells)]
    for share, losses in grid.losses.items():
        gaps = [round(1000 * (loss - grid.baseline)) for loss in losses]
        rows.append([f"{share:g}", *(_spelled(gap) for gap in gaps)])
    return "\n".join([head, "", *(f"| {' | '.join(row)} |" for row in rows), ""])


def _spelled(gap: int) -> str:
    words = f"{gap:+d}".replace("-", "\u2212")
    return words if gap < 0 else f"**{words}**"


def surfaces() -> str:
    """All grids, in the order of the paper's tables."""
    return "\n".join(surface(grid) for grid in published().grids.values())


def main() -> None:
    document = GUIDE.read_text(encoding="utf-8")
    GUIDE.write_text(replaced(document, surfaces(), by=Path(__file__).name), encoding="utf-8")


if __name__ == "__main__":
    main()
