"""The rule of the evidence, and that what it said beforehand is what it says."""

import dataclasses
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from evidence.pairs import pairs  # noqa: E402
from evidence.predictions import Prediction, Signs, predictions, signs_before  # noqa: E402
from evidence.report import predicted  # noqa: E402
from evidence.runs import record_of  # noqa: E402
from test_evidence_page import PAIR  # noqa: E402

GOOD = Signs(
    num_steps=4000, slope=0.3, fraction=0.3, learning_rate=0.002, positions_per_parameter=20.0
)


@pytest.mark.parametrize(
    ("changes", "wins"),
    [
        ({}, True),
        ({"slope": 0.46}, False),
        ({"fraction": 0.6}, False),
        ({"learning_rate": 0.004}, False),
        ({"learning_rate": 0.004, "positions_per_parameter": 30.0}, True),
        ({"positions_per_parameter": 2.0}, True),
    ],
)
def test_rule_has_three_conditions(changes, wins):
    assert dataclasses.replace(GOOD, **changes).wins is wins


def test_every_prediction_is_what_the_rule_says_of_the_recorded_baseline():
    made = predictions()
    assert len(made) >= 10 and len({each.run for each in made}) == len(made)
    for each in made:
        assert signs_before(each.baseline, each.fraction).wins is each.wins, each.run


def test_every_prediction_becomes_the_pair_that_it_names():
    found = list(pairs())
    for each in predictions():
        pair = each.outcome(found)
        if pair is not None:
            assert pair.bag_size == each.bag_size and pair.fraction == pytest.approx(each.fraction)
            assert record_of(each.baseline) in pair.baselines


def test_table_counts_what_was_right(monkeypatch):
    record = record_of("sweep/won")
    won = dataclasses.replace(PAIR, gap=-0.1, low=-0.2, high=-0.05, runs=[record])
    unsure = dataclasses.replace(PAIR, gap=-0.1, low=-0.2, high=0.1, runs=[record_of("sweep/uns")])
    lost = dataclasses.replace(PAIR, gap=0.1, low=0.05, high=0.2, runs=[record_of("sweep/lost")])
    made = [
        Prediction(run=f"sweep/{name}", baseline="a/b", bag_size=4, fraction=0.3, wins=True)
        for name in ("won", "lost", "uns", "later")
    ]
    monkeypatch.setattr(predicted, "predictions", lambda: made)
    monkeypatch.setattr(predicted, "signs_before", lambda *_: GOOD)
    other = dataclasses.replace(PAIR, gap=-0.1, low=-0.2, high=-0.05)
    lines = predicted.predictions_table([won, unsure, lost, other]).splitlines()
    assert lines[0].startswith("- right in 1 of 1 (always saying 'wins' in 1), and in 1 of the 1 ")
    assert lines[1].startswith("- right in 2 of 3 (always saying 'wins' in 2), and in 1 of the 2 ")
    assert lines[1].endswith("1 are not trained yet")
    ends = [line.split(" | ")[-2:] for line in lines[5:]]
    assert [end[-1].strip("| ") for end in ends] == ["yes", "**no**", "yes", ""]
