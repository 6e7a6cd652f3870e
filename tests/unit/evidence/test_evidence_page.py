"""The page of the evidence says what the records say."""

import dataclasses
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from evidence.pairs import MapPair, pairs  # noqa: E402
from evidence.report import beyond, crossings, page, tables  # noqa: E402
from evidence.report.chart import draw_map  # noqa: E402

PAIR = MapPair(
    baselines=[ROOT / "benchmarks/results/evidence/one/baseline"],
    runs=[ROOT / "benchmarks/results/evidence/one/tst"],
    keys={
        "data": {"runs/evidence/text/python-512": 1.0},
        "hidden-size": 64,
        "seq-length": 128,
        "global-batch-size": 16,
        "train-iters": 2000,
        "lr": "2.0e-3",
        "init-method-std": 0.1,
        "rotary-base": 500000,
    },
    bag_size=4,
    fraction=0.3,
    num_parameters=200_000,
    positions=4_096_000,
    raw_tokens=7_782_400,
    slope=0.3,
    num_rates=4,
    rank_of_rate=1,
    baseline_loss=2.0,
    recovery_loss=None,
    loss=2.1,
    gap=0.1,
    low=0.05,
    high=0.15,
    verdict="worse",
    crossing_step=None,
)


def test_page_is_up_to_date_with_the_records():
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.page(text, list(pairs())), "run: python tools/evidence --page"
    assert f"]({page.PICTURE.name})" in text
    assert page.made_from(list(pairs())).encode() in page.PICTURE.read_bytes()


def test_row_of_the_map_has_every_number_of_its_pair():
    won = dataclasses.replace(PAIR, gap=-0.1, low=-0.15, high=-0.05, loss=1.9)
    _, _, lost, better = tables.map_table([PAIR, won]).splitlines()
    cells = [cell.strip() for cell in lost.strip("|").split("|")]
    assert dict(zip(tables.MAP_HEAD, cells, strict=True)) == {
        "text": "python-512, initialisation 0.1",
        "width": "64",
        "positions a step": "2,048",
        "steps": "2,000",
        "lr": "0.002",
        "its rank": "1 of 4",
        "K": "4",
        "r": "0.30",
        "seeds": "1",
        "positions per parameter": "20",
        "slope": "0.30",
        "price": "~0.107",
        "taught": "",
        "baseline": "2.000",
        "TST": "2.100",
        "gap (95% interval)": "**+0.100 (+0.050 to +0.150)**",
        "record": "[one](../benchmarks/results/evidence/one/tst)",
    }
    assert "| \u22120.100 (\u22120.150 to \u22120.050) |" in better
    measured = tables.map_table([dataclasses.replace(PAIR, recovery_loss=2.125)])
    assert "| 0.125 | \u22120.025 |" in measured


def test_table_of_losses_has_the_pairs_that_lose_for_sure():
    unsure = dataclasses.replace(PAIR, gap=0.01, low=-0.01, high=0.03)
    assert page.PARTS["losses"]([unsure, PAIR]) == tables.map_table([PAIR])


@pytest.mark.parametrize(
    ("step", "part"),
    [
        # The switch is at step 600, and the decay begins at step 1,600.
        (600, crossings.BEFORE),
        (1100, crossings.BEFORE),
        (1101, crossings.LATER),
        (1600, crossings.LATER),
        (1601, crossings.IN_DECAY),
        (None, crossings.NEVER),
    ],
)
def test_pairs_are_counted_by_where_their_arms_cross(step, part):
    keys = {**PAIR.keys, "lr-wsd-decay-iters": 400}
    found = [
        dataclasses.replace(PAIR, keys=keys, crossing_step=step, gap=gap, low=low, high=high)
        for gap, low, high in ((-0.1, -0.15, -0.05), (0.02, -0.01, 0.05), (0.1, 0.05, 0.15))
    ]
    _, _, *rows = crossings.crossings_table(found).splitlines()
    (row,) = (line for line in rows if line.startswith(f"| {part} |"))
    assert row.endswith("| 3 | 1 | 1 | \u22120.100 to +0.100 |")
    assert sum("| 0 | 0 | 0 |  |" in line for line in rows) == 3


def test_recovery_that_is_all_decay_is_crossed_in_the_decay():
    keys = {**PAIR.keys, "lr-wsd-decay-iters": 1400}
    assert crossings.when(dataclasses.replace(PAIR, keys=keys, crossing_step=700)) == (
        crossings.IN_DECAY
    )


def test_other_schedules_are_compared_with_the_baseline_and_the_papers(monkeypatch):
    # As if the rates of superposition were other schedules.
    monkeypatch.setattr(beyond, "PAPERS", {"lr-tst": beyond.PAPERS["lr-low-then-best"]})
    head, _, papers, *others = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in beyond.beyond_table().splitlines()
    )
    assert len(others) == 8
    first, other = (dict(zip(head, row, strict=True)) for row in (papers, others[1]))
    assert first["in superposition"] == other["in superposition"] == "2,400 of K=4"
    assert (first["lr"], other["lr"]) == ("0.002", "0.001")
    assert first["gap to the paper's"] == ""
    gaps = [
        float(row["gap to the baseline"].split()[0].replace("\u2212", "-"))
        for row in (first, other)
    ]
    assert float(other["gap to the paper's"].split()[0]) == pytest.approx(
        gaps[1] - gaps[0], abs=2e-3
    )


@pytest.mark.parametrize("sizes", [(4,), (2, 4, 8)])
def test_picture_is_the_same_for_the_same_pairs(sizes):
    found = [dataclasses.replace(PAIR, bag_size=size) for size in sizes]
    picture = draw_map(found, "a digest")
    assert picture.startswith(b"\x89PNG") and picture == draw_map(found, "a digest")
    assert b"a digest" in picture
