"""The grids of docs/should-you-use-tst.md are those of the data files."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import update_surfaces
from update_readme import replaced

from tst_megatron.plan.published.records import Grid


def test_guide_has_the_grids_of_the_data_files():
    document = update_surfaces.GUIDE.read_text(encoding="utf-8")
    written = replaced(document, update_surfaces.surfaces(), by="update_surfaces.py")
    assert document == written, "run tools/update_surfaces.py"
    # Three of one kind of slots and one of the other.
    assert document.count("gaps in thousandths of a nat") == 4


def test_cell_is_a_gap_and_bold_where_the_ordinary_run_is_as_good():
    grid = Grid(
        source="paper",
        table=4,
        parameters=254_000_000,
        num_steps=20_000,
        positions_per_step=2_097_152,
        slot_weights="uniform",
        baseline=3.2,
        bag_sizes=[2, 4, 8],
        losses={0.3: [3.15, 3.2, 3.2114]},
    )
    *_, row, _ = update_surfaces.surface(grid).split("\n")
    assert row == "| 0.3 | \u221250 | **+0** | **+11** |"
