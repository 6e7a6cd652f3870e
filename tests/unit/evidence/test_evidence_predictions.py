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

from tst_megatron.plan.published.read import published  # noqa: E402

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


@pytest.mark.parametrize(
    ("bag_size", "changes", "wins"),
    [
        (8, {}, True),
        (9, {}, False),
        (4, {"learning_rate": 0.004}, True),
        (5, {"learning_rate": 0.004}, False),
        (2, {"fraction": 0.6}, False),
        (2, {"slope": 0.6}, True),
    ],
)
def test_second_rule_asks_for_steps_by_bag_size_and_learning_rate(bag_size, changes, wins):
    assert dataclasses.replace(GOOD, **changes).wins_by_steps(bag_size) is wins


def test_every_prediction_is_what_the_rules_say_of_the_recorded_baseline():
    made = predictions()
    assert len(made) >= 10 and len({each.run for each in made}) == len(made)
    for each in made:
        signs = signs_before(each.baseline, each.fraction)
        assert signs.wins is each.wins, each.run
        if each.wins_by_steps is not None:
            assert signs.wins_by_steps(each.bag_size) is each.wins_by_steps, each.run


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
        Prediction(
            run=f"sweep/{name}",
            baseline="a/b",
            bag_size=4,
            fraction=0.3,
            wins=True,
            wins_by_steps=second,
        )
        for name, second in (("won", None), ("lost", False), ("uns", None), ("later", None))
    ]
    monkeypatch.setattr(predicted, "predictions", lambda: made)
    monkeypatch.setattr(predicted, "signs_before", lambda *_: GOOD)
    other = dataclasses.replace(PAIR, gap=-0.1, low=-0.2, high=-0.05)
    lines = predicted.predictions_table([won, unsure, lost, other]).splitlines()
    assert lines[0].endswith(
        "right in 1 of 1 (always saying 'wins' in 1), and in 1 of the 1 whose interval excludes 0"
    )
    assert "First rule, pairs of later: right in 2 of 3 (always" in lines[1]
    assert "in 1 of the 2 whose interval excludes 0" in lines[1]
    assert "Second rule, pairs of later: right in 1 of 1 (always saying 'wins' in 0)" in lines[3]
    assert lines[4] == "- Not trained yet: 1"
    said = [[cell.strip() for cell in line.split("|")][9:11] for line in lines[8:]]
    assert said == [["wins", ""], ["**wins**", "loses"], ["wins", ""], ["wins", ""]]


def test_plan_says_of_short_runs_what_the_records_say():
    """A pair is lost if its whole interval is above 0."""
    here, found = published().here, list(pairs())
    lost = [pair.positions_per_parameter for pair in found if pair.low > 0]
    assert round(max(lost)) == here.lost_up_to
    longer = {round(pair.positions_per_parameter) for pair in found} - set(range(20))
    assert min(longer) == here.none_lost_from
