"""The three views: estimates beside what the paper published."""

import math

import pytest
from made_models import made_10b, made_schedule, point

from tst_megatron.plan.cost.machine import machine_for
from tst_megatron.plan.cost.table import arm
from tst_megatron.plan.gain.grids import Point, estimate
from tst_megatron.plan.gain.laws import data_term
from tst_megatron.plan.gain.views import (
    CURVE,
    compare,
    published_pairs,
    said_of_pair,
    scaled_law,
    views_section,
)
from tst_megatron.plan.published.read import published
from tst_megatron.plan.wishes import Hardware

KNOWN = published()
PAIR_10B = {"num_steps": 49_983, "bag_size": 16, "steps": 12_483}


def views_of(model, **more):
    found = estimate(KNOWN, point(model))
    return compare(KNOWN, model, point(model), found, **more), found


def test_equal_flops_is_the_estimate():
    views, found = views_of(made_10b(**PAIR_10B))
    span = views.equal_flops
    assert (span.middle, span.low, span.high) == pytest.approx(
        (-found.gain, -found.high, -found.low)
    )


@pytest.mark.parametrize("model", ["270M", "3B", "10B-A1B"])
def test_scaled_law_falls_as_the_papers_curve_does(model):
    curve = next(each for each in KNOWN.curves if each.model == model)
    law = scaled_law(KNOWN, KNOWN.laws[CURVE], curve.parameters)
    first, last = (data_term(law, positions) for positions in curve.positions)
    assert first - last == pytest.approx(curve.losses[0] - curve.losses[1])


def test_scaling_holds_beyond_the_papers_models_and_is_between_them_inside():
    def factor(parameters):
        law = KNOWN.laws[CURVE]
        return scaled_law(KNOWN, law, parameters).coefficient / law.coefficient

    assert factor(10**6) == factor(254_000_000)
    assert factor(10**12) == pytest.approx(factor(10_489_144_832))
    assert factor(254_000_000) < factor(10**9) < factor(3_340_000_000)


def test_equal_loss_of_the_10b_pair_holds_the_published_factor():
    """2.50 times the steps; the middle is an estimate from models of 270M and 600M."""
    views, _ = views_of(made_10b(**PAIR_10B))
    assert views.equal_loss_factor.low < 2.5 < views.equal_loss_factor.high
    assert views.equal_loss_factor.middle == pytest.approx(2.5, rel=0.25)


def test_equal_data_of_the_10b_run_is_lost_as_that_of_3b_was():
    views, _ = views_of(made_10b(**PAIR_10B))
    assert views.equal_data.middle > 0


def test_baseline_of_the_10b_pair_is_about_equal():
    model = made_10b(**PAIR_10B)
    baseline = arm("ordinary run", made_schedule(125_000), model)
    views, _ = views_of(model, baseline=baseline)
    assert views.beside_baseline.low < 0 < views.beside_baseline.high
    assert abs(views.beside_baseline.middle) < 0.015


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (
            3_337_766_912,
            ["2.640 (figure: 2.651) without, 2.676", "ordinary run wins by 0.036"],
        ),
        (3_337_766_912, ["1.80 times the steps, 1.79 times the hours"]),
        (3_337_766_912, ["2.808 (figure: 2.755)", "TST wins by 0.073"]),
        (10_489_144_832, ["2.50 times the steps, 2.58 times the hours", "2.252", "2.236"]),
        (253_954_368, ["3.212 without, 3.142 with TST; TST wins by 0.070"]),
        (253_954_368, ["100,000 steps", "TST wins by 0.044"]),
        (400_000_000, ["TST wins by 0.076"]),
    ],
)
def test_published_pairs_of_the_nearest_model_are_told(parameters, words):
    _, pairs = published_pairs(KNOWN, parameters)
    lines = [said_of_pair(KNOWN, pair) for pair in pairs]
    assert any(all(word in line for word in words) for line in lines), lines


def section_of(model):
    views, found = views_of(model)
    machine = machine_for(KNOWN, Hardware(), active=model.size, is_moe=True)
    return views_section(
        KNOWN, model, machine, point=point(model), estimate=found, views=views, baseline=None
    )


def test_section_says_extrapolated_only_beyond_the_grids():
    assert "EXTRAPOLATED" in section_of(made_10b(**PAIR_10B)).lines[0]
    assert section_of(made_10b(**PAIR_10B)).values["is extrapolated"] is True


def test_short_run_is_warned_of():
    lines = section_of(made_10b(num_steps=3_000, bag_size=4, steps=900)).lines
    assert any("Short run" in line and "19 positions for each parameter" in line for line in lines)
    assert not any("Short run" in line for line in section_of(made_10b(**PAIR_10B)).lines)


def test_gain_that_no_number_of_steps_reaches_has_no_factor():
    model = made_10b(**PAIR_10B)
    huge = Point(
        bag_size=6.0,
        superposition_fraction=0.3,
        num_steps=10**12,
        positions_per_step=model.positions_per_step,
        parameters=model.size,
    )
    found = estimate(KNOWN, point(model))
    views = compare(KNOWN, model, huge, found)
    assert views.equal_loss_factor is None
    assert math.isfinite(views.equal_data.middle)
