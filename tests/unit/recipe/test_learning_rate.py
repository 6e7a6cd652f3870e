"""Schedules of the learning rate: what is refused, what is said, and the drawing."""

import argparse

import pytest

from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.recipe.learning_rate import LearningRate
from tst_megatron.recipe.rules.learning_rate import learning_rate_problems, learning_rate_warnings
from tst_megatron.schedule import Phase, Schedule

WSD = {
    "train_iters": 40,
    "lr": 2e-3,
    "min_lr": 2e-5,
    "lr_warmup_iters": 5,
    "lr_decay_style": "WSD",
    "lr_wsd_decay_iters": 10,
}


def values(**changes) -> argparse.Namespace:
    found = argument_parser().parse_args([])
    for name, value in {**WSD, **changes}.items():
        setattr(found, name, value)
    return found


def problems(**changes):
    return learning_rate_problems(values(**changes), {*WSD, *changes})[0]


def schedule(switch=16, steps=40):
    phases = (
        Phase(bag_size=4, first_step=0, num_steps=switch),
        Phase(bag_size=1, first_step=switch, num_steps=steps - switch),
    )
    return Schedule(phases=phases, num_latent_positions=8, global_batch_size=2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lr_decay_style": "cosine"},
        {"lr_decay_style": "linear", "min_lr": 0.0},
        {"lr_decay_style": "constant"},
        {"lr_decay_style": "inverse-square-root"},
        {"lr_wsd_decay_style": "minus_sqrt", "lr_wsd_decay_iters": 35},
        {"lr_wsd_decay_style": "linear"},
        {"lr_warmup_iters": 0, "lr_warmup_fraction": 0.1},
        {"lr_warmup_iters": 0},
        {"lr_warmup_iters": 1, "lr_wsd_decay_iters": 4},
        {"train_iters": 1, "lr_warmup_iters": 0, "lr_decay_style": "linear"},
        {"train_iters": 2, "lr_warmup_iters": 0, "lr_wsd_decay_iters": 1},
    ],
)
def test_schedule_that_can_be_meant_has_no_problem(changes):
    assert problems(**changes) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr_warmup_iters": 30, "lr_wsd_decay_iters": 30}, "lr-wsd-decay-iters: a warm-up of 30"),
        ({"train_iters": 12}, "do not fit into 12"),
        (
            {"lr_warmup_iters": 0, "lr_warmup_fraction": 0.9},
            "lr-wsd-decay-iters: a warm-up of 36 steps",
        ),
        ({"lr_warmup_iters": 0, "lr_warmup_fraction": 1.0}, "lr-warmup-fraction: 40 of"),
        ({"lr_warmup_iters": 40}, "lr-warmup-iters: 40 of the schedule's 40 steps"),
        ({"lr_warmup_iters": 45, "lr_decay_iters": 100}, "lr-warmup-iters: 45 of"),
        ({"lr_warmup_fraction": 0.1}, "lr-warmup-fraction: lr-warmup-iters says the same"),
        ({"lr_wsd_decay_iters": None}, "lr-wsd-decay-iters: lr-decay-style WSD needs"),
        ({"lr_wsd_decay_iters": 41}, "lr-wsd-decay-iters: 41 of"),
        ({"lr_decay_iters": 80}, "lr-decay-iters: the decay would begin after step 70"),
        (
            {"lr_decay_style": "linear", "lr_decay_iters": 20, "min_lr": 0.0},
            "trains nothing",
        ),
        ({"lr_warmup_samples": 8}, "lr-warmup-samples: phases are counted in steps. Use lr-warmup"),
        ({"lr_decay_samples": 8}, "lr-decay-samples: phases"),
        ({"lr_wsd_decay_samples": 8}, "lr-wsd-decay-samples: phases"),
        ({"min_lr": 1.0}, "min-lr: 1 is above lr 0.002"),
        ({"lr_warmup_init": 1.0}, "lr-warmup-init: 1 is above lr 0.002"),
        (
            {"lr_wsd_decay_iters": 1, "lr_decay_iters": 30},
            "lr-decay-style: the rate would jump from 2.00e-03 at step 30",
        ),
        (
            {"lr_decay_style": "inverse-square-root", "lr_decay_iters": 20, "lr_warmup_iters": 18},
            "would jump from 1.90e-03",
        ),
        ({"decoupled_min_lr": 0.1}, "decoupled-min-lr: has no effect"),
        ({"decoupled_min_lr": 0.1, "decoupled_lr": 0.01}, "decoupled-min-lr: 0.1 is above"),
    ],
)
def test_schedule_that_cannot_be_meant_is_refused(changes, said):
    found = problems(**changes)
    assert found and any(said in problem for problem in found), found


def test_numbers_that_make_no_schedule_are_left_to_their_own_rules():
    for changes in ({"lr": float("nan")}, {"lr": None}, {"train_iters": -1}, {"min_lr": -1.0}):
        assert learning_rate_problems(values(**changes), set()) == ([], None)


def test_rate_has_a_line_with_a_drawing_and_what_decides():
    rate = LearningRate.of(values())
    line = rate.line(schedule())
    assert line.startswith("learning rate: ▁▂▄▅▇████")
    assert "0.00e+00 at step 1" in line
    assert "2.00e-03 at the switch (step 17)" in line
    assert "2.00e-03 when its decay starts (step 31)" in line
    assert f"{rate.at(39):.2e} at the last step (40)" in line
    assert len(rate.drawing()) == 40


def test_drawing_of_a_long_run_is_no_longer():
    rate = LearningRate.of(values(train_iters=1_000_000, lr_wsd_decay_iters=100_000))
    assert len(rate.drawing()) == 40 and set(rate.drawing()[:35]) == {"█"}


@pytest.mark.parametrize(
    ("changes", "switch", "said"),
    [
        ({"lr_decay_style": "cosine", "lr_decay_iters": 80}, 16, "made for 80 steps and the run"),
        ({"lr_decay_style": "cosine", "lr_decay_iters": 20}, 16, "the decay is done at step 21"),
        ({}, 3, "within the warm-up"),
        ({}, 35, "within the decay"),
        ({"lr_wsd_decay_iters": 1}, 16, "no decay is left in the run"),
    ],
)
def test_odd_schedule_is_told(changes, switch, said):
    rate = LearningRate.of(values(**changes))
    assert any(said in warning for warning in learning_rate_warnings(rate, schedule(switch)))


def test_ordinary_schedule_has_no_warning():
    assert learning_rate_warnings(LearningRate.of(values()), schedule()) == []
    assert learning_rate_warnings(LearningRate.of(values()), None) == []
