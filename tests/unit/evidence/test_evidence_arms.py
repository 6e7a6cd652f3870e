"""The table of the paper's arms."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "tools"), str(Path(__file__).parents[1] / "compare")]

from evidence.report import arms  # noqa: E402
from made_runs import Made, falling  # noqa: E402

from tst_megatron.sweep.arms import ARMS  # noqa: E402

LENGTHS = {"baseline": 2000, "longer-2": 4000}


@pytest.fixture
def made(tmp_path):
    found = []
    for seed in (1, 2, 3):
        for arm, end in (("baseline", 2.0), ("longer-2", 1.8), ("tst", 1.9)):
            steps = LENGTHS.get(arm, 2000)
            phases = ((4, 600), (1, 1400)) if arm == "tst" else ((1, steps),)
            keys = {"seed": seed, "lr-wsd-decay-iters": 400}
            run = Made(tmp_path / f"{arm}_seed-{seed}", phases, **keys)
            run.steps(1, 20).validation(falling(range(200, steps + 1, 200), end=end + seed / 1000))
            run.blocks(steps, [(end + seed / 1000) * 128] * 64)
            found.append(run.path)
    return found


def test_row_of_an_arm_has_its_gap_and_its_cost(made):
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in arms.arms_table(made).splitlines()
    )
    found = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert list(found)[0] == "baseline" and set(found) == {"baseline", "longer-2", "tst"}
    for other in ("baseline", "longer-2"):
        assert not found[other]["gap (95% interval)"]
        assert not found[other]["baseline's steps for the same loss"]
    tst = found["tst"]
    assert (tst["seeds"], tst["steps"], tst["loss"]) == ("3", "2,000", "1.902")
    assert tst["gap (95% interval)"].startswith("\u22120.100 (")
    assert found["longer-2"]["TST minus this (95% interval)"].startswith("+0.100 (")
    for other in ("baseline", "tst"):
        assert not found[other]["TST minus this (95% interval)"]
    # The baseline of 2,000 steps ends above it, that of 4,000 below.
    ratio = float(tst["baseline's steps for the same loss"].split()[0])
    assert 1.2 < ratio < 1.8


def test_paper_is_quoted_for_arms_that_there_are():
    assert set(arms.PAPERS) <= set(ARMS)
