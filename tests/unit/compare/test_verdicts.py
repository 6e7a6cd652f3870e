"""The verdict in one sentence: what it says, and when it says that nothing can be said."""

import math

import pytest

from tst_megatron.compare.pairs.verdict import Evidence, judge
from tst_megatron.compare.results import Interval
from tst_megatron.compare.statistics.gap import Gap


def gap(value, low, high, *, noise=0.004, basis="seeds"):
    interval = Interval(value=value, low=low, high=high, method="")
    return Gap(interval=interval, basis=basis, noise=noise, noise_source="")


def said(found, **changes):
    evidence = {
        "arm": "tst",
        "baseline": "baseline",
        "gap": found,
        "num_seeds": (3, 3),
        "at": (1000, 1000),
        "is_at_end": True,
        "num_positions": 65_536,
        "num_blocks": 512,
        "costs": (("raw tokens", 1.9), ("FLOPs", 1.0)),
    }
    return judge(Evidence(**(evidence | changes)))


def test_better():
    assert said(gap(-0.24, -0.26, -0.22)) == (
        "better",
        "tst ends 0.24 nats lower than baseline (95% interval 0.22 to 0.26; 3 seeds each, 65,536 "
        "held-out tokens), at 1.9 times the raw tokens and equal FLOPs.",
    )


def test_worse():
    assert said(gap(0.0312, 0.0266, 0.0358), num_seeds=(2, 3), costs=()) == (
        "worse",
        "tst ends 0.031 nats higher than baseline (95% interval 0.027 to 0.036; 2 and 3 seeds, "
        "65,536 held-out tokens).",
    )


def test_no_difference_found():
    assert said(gap(-0.002, -0.012, 0.008), num_positions=None) == (
        "no difference found",
        "No difference was found: tst ends level with baseline (95% interval -0.01 to 0.01; 3 "
        "seeds each, held-out tokens not recorded), at 1.9 times the raw tokens and equal FLOPs.",
    )


def test_one_seed_is_said():
    verdict, sentence = said(gap(-0.24, -0.26, -0.22, basis="blocks"), num_seeds=(1, 1))
    assert verdict == "better" and "; one seed each, 65,536 held-out tokens)" in sentence


def test_interval_from_noise_alone_is_said():
    _, sentence = said(gap(-0.24, -0.25, -0.23, basis="noise alone"), num_seeds=(1, 1))
    assert (
        "95% interval 0.23 to 0.25 from assumed run-to-run noise alone; one seed each" in sentence
    )


def test_costs_that_differ_are_said():
    _, sentence = said(gap(-0.2, -0.3, -0.1), costs=(("raw tokens", 0.5), ("FLOPs", 123.4)))
    assert sentence.endswith(", at 0.5 times the raw tokens and 123 times the FLOPs.")
    _, sentence = said(gap(-0.2, -0.3, -0.1), costs=(("raw tokens", 1.0), ("FLOPs", 1.001)))
    assert sentence.endswith(", at equal raw tokens and FLOPs.")


@pytest.mark.parametrize(
    ("found", "changes", "because"),
    [
        (
            gap(-0.24, -0.26, -0.22),
            {"unfinished": ["tst is not finished (step 500 of 1,000)"], "is_at_end": False},
            "tst is not finished (step 500 of 1,000): tst is at step 1,000 0.24 nats lower",
        ),
        (
            gap(-0.24, -0.26, -0.22),
            {"num_blocks": 16},
            "an evaluation reads only 16 held-out sequences: tst ends 0.24",
        ),
        (
            gap(-0.02, -0.06, 0.02),
            {},
            "the interval is wider than 0.05 nats: tst ends 0.02 nats lower",
        ),
        (
            gap(-0.016, -0.02, -0.012),
            {"num_seeds": (1, 1)},
            "with one seed a gap below 0.017 nats may be noise between runs: tst ends 0.016",
        ),
        (
            gap(0.4, 0.38, 0.42),
            {"recovery_steps": 200},
            "tst has only 200 steps after its switch to cross: tst ends 0.40 nats higher",
        ),
    ],
    ids=["unfinished", "few blocks", "wide", "one seed", "short"],
)
def test_what_says_nothing_yet_says_why_and_still_gives_the_numbers(found, changes, because):
    verdict, sentence = said(found, **changes)
    assert verdict == "says nothing"
    assert sentence.startswith(f"This says nothing yet, because {because}")
    assert "95% interval" in sentence and "held-out tokens" in sentence


def test_several_reasons_are_joined():
    _, sentence = said(gap(-0.01, -0.06, 0.04), num_seeds=(1, 1), num_blocks=4)
    assert sentence.count(" and ") >= 2 and "only 4 held-out" in sentence


@pytest.mark.parametrize(
    ("found", "changes"),
    [
        (gap(-0.3, -0.4, -0.2), {}),
        (gap(-0.017, -0.02, -0.014), {"num_seeds": (1, 1)}),
        (gap(-0.016, -0.02, -0.012), {"num_seeds": (2, 1)}),
        (gap(-0.1, -0.12, -0.08), {"num_blocks": 20}),
        (gap(-0.1, -0.12, -0.08), {"recovery_steps": 200, "crosses": True}),
    ],
    ids=["wide and clear", "one seed, large", "two seeds, small", "20 blocks", "crossed early"],
)
def test_what_is_clear_is_said(found, changes):
    assert said(found, **changes)[0] == "better"


def test_long_recovery_that_never_crosses_is_worse():
    assert said(gap(0.4, 0.38, 0.42), recovery_steps=1000)[0] == "worse"


def test_no_gap_says_why():
    assert said(None, why_no_gap="have no overlap") == (
        "says nothing",
        "This says nothing: tst and baseline have no overlap.",
    )


def test_interval_without_bounds_is_not_called_different():
    assert said(gap(-0.2, math.nan, math.nan))[0] not in ("better", "worse")
