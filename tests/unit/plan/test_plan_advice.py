"""Advice: what a budget buys."""

import math
from pathlib import Path

import pytest
from made_models import made_10b, point

from tst_megatron.plan.cost.machine import machine_for
from tst_megatron.plan.cost.model import RESETS
from tst_megatron.plan.decision import advice
from tst_megatron.plan.decision.advice import advice_section, advise, affordable_steps
from tst_megatron.plan.decision.search import choices
from tst_megatron.plan.gain.grids import point_of
from tst_megatron.plan.published.read import published
from tst_megatron.plan.wishes import Budget, Hardware
from tst_megatron.recipe.recipe import load_recipe

EXAMPLES = Path(__file__).parents[3] / "examples"

KNOWN = published()
MODEL = made_10b(bag_size=16, steps=31_250)
MACHINE = machine_for(KNOWN, Hardware(), active=MODEL.size, is_moe=True)
PER_STEP = MODEL.positions_per_step * MODEL.flops_per_position


@pytest.mark.parametrize(
    ("budget", "spent"),
    [
        (Budget(flops=5e21), lambda n: n * PER_STEP / 5e21),
        (Budget(days=3), lambda n: MACHINE.days(n * PER_STEP) / 3),
        (Budget(dollars=30_000), lambda n: MACHINE.cost(n * PER_STEP) / 30_000),
        (Budget(tokens=1e11), lambda n: n * MODEL.positions_per_step / 1e11),
    ],
)
def test_budget_is_spent_and_not_exceeded(budget, spent):
    num_steps, limit = affordable_steps(MODEL, MACHINE, budget)
    assert spent(num_steps) <= 1 < spent(num_steps + 1)
    assert limit == next(iter(budget.limits()))


def test_tightest_limit_decides():
    budget = Budget(flops=1e25, days=1, dollars=1e9)
    assert affordable_steps(MODEL, MACHINE, budget)[1] == "--max-days"
    assert affordable_steps(MODEL, MACHINE, Budget()) == (125_000, "the recipe's steps")


def test_budget_below_a_step_is_refused():
    with pytest.raises(ValueError, match="--max-dollars: is less than one step needs"):
        affordable_steps(MODEL, MACHINE, Budget(dollars=0.01))


def test_price_of_nothing_limits_nothing():
    free = machine_for(KNOWN, Hardware(price=0.0), active=MODEL.size, is_moe=True)
    with pytest.raises(ValueError, match="limits nothing at --price 0"):
        affordable_steps(MODEL, free, Budget(dollars=1.0))


def advised(num_steps=50_000, unique=math.inf):
    return {each.name: each for each in advise(KNOWN, MODEL, point(MODEL), num_steps, unique)}


def test_rows_are_what_their_names_say():
    found = advised()
    top = found["lowest loss"].choice
    gains = [each.worst for each in choices(KNOWN, top.point, math.inf)]
    assert top.worst == max(gains)
    assert found["least text"].choice.reading.raw_tokens < top.reading.raw_tokens
    output_only = found["output only"].choice
    assert output_only.reading.raw_tokens == 50_000 * MODEL.positions_per_step
    assert 0 < output_only.worst < top.worst
    assert 10_000 < found["equal loss"].num_steps < 50_000


def test_no_advised_run_reads_more_than_the_token_budget():
    ordinary = 50_000 * MODEL.positions_per_step
    most = 1.3 * ordinary
    found = {
        each.name: each
        for each in advise(KNOWN, MODEL, point(MODEL), 50_000, math.inf, most_tokens=most)
    }
    read = [each.choice.reading.raw_tokens for each in found.values() if each.choice]
    assert len(read) >= 3 and max(read) <= most
    assert found["lowest loss"].choice.worst < advised()["lowest loss"].choice.worst
    only = advise(KNOWN, MODEL, point(MODEL), 50_000, math.inf, most_tokens=ordinary)
    assert [each.name for each in only] == ["ordinary", "output only"]


def test_advice_says_which_schedules_it_does_not_search():
    section = section_of(advised())
    assert section.lines[1].endswith("several bag sizes are not searched: no grid has them.")


def test_where_text_is_short_the_advice_is_an_ordinary_run_or_output_only():
    found = advised(num_steps=125_000, unique=3e11)
    assert set(found) == {"ordinary", "output only"}
    section = section_of(found, unique=3e11)
    assert "train without them (tst.bag-size=1)" in section.lines[0]


def section_of(found, unique=math.inf):
    return advice_section(
        KNOWN, MODEL, MACHINE, list(found.values()), limit="--max-days", unique=unique
    )


def test_overrides_are_those_of_the_lowest_loss():
    found = advised()
    top = found["lowest loss"].choice.point
    line = section_of(found).lines[0]
    assert "train-iters=50000" in line
    assert f"tst.bag-size={top.bag_size:g}" in line
    assert f"tst.superposition-fraction={top.superposition_fraction:g}" in line


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("tst.superposition-steps=100",),
        ("tst.schedule=[[8, 100], [4, 100], [1, 49783]]", "tst.superposition-steps=null"),
        ("tst.inputs=tokens", "tst.reset-embeddings=true", "tst.reset-optimizer=true"),
    ],
)
def test_overrides_give_any_recipe_the_point_that_they_were_made_from(more):
    wanted = advised()["lowest loss"].choice.point
    words = advice.overrides(wanted).split()
    recipe = load_recipe(EXAMPLES / "qwen3-10b-a1b" / "tst.yaml", [*more, *words])
    assert not recipe.problems
    resets = tuple(key for key in RESETS if recipe.tst.as_keys()[key])
    got = point_of(recipe.schedule(), parameters=wanted.parameters, resets=resets)
    assert (got.bag_size, got.num_steps) == (wanted.bag_size, wanted.num_steps)
    assert got.superposition_fraction == pytest.approx(wanted.superposition_fraction, abs=1e-4)
    assert (got.inputs, got.targets, got.resets) == ("bags", "bags", ())


def test_values_have_every_row_in_plain_numbers():
    found = advised()
    values = section_of(found).values
    assert [each["name"] for each in values["schedules"]] == list(found)
    for each in values["schedules"]:
        flops = each["steps"] * PER_STEP
        assert each["days"] == pytest.approx(MACHINE.days(flops))
        assert each["raw tokens"] >= each["steps"] * MODEL.positions_per_step
