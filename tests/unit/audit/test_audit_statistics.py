"""The audit's statistics on simulated models: coverage, false alarms, verdicts."""

import math

import numpy as np
import pytest

from tst_megatron.audit.probes.measures import contrast, ratio
from tst_megatron.audit.statistics.bootstrap import compare, drawings, run_noise
from tst_megatron.audit.statistics.verdict import (
    ALPHA,
    GUESSING,
    Question,
    holm,
    is_above,
    verdicts,
)


def clusters(generator, *, number=60, shift=0.0, common=None):
    """[C, 2] sums and counts of documents of different lengths, whose losses are alike inside."""
    common = generator if common is None else common
    sizes = common.integers(5, 80, number).astype(float)
    level = 3 + 0.5 * common.standard_normal(number)
    own = shift + 0.1 * generator.standard_normal(number)
    return np.stack([sizes * (level + own), sizes], axis=1)


def pair(seed, *, shift=0.0, number=60):
    """Two models on the same documents."""
    return [
        clusters(
            np.random.default_rng([seed, at]),
            common=np.random.default_rng(seed),
            number=number,
            shift=each,
        )
        for at, each in enumerate((shift, 0.0))
    ]


def ask(one, other, *, margin=0.1, noise=0.0, floor=None, is_higher_better=False, seed=1):
    compared = compare(one, [other], ratio, seed=seed, assumed_noise=noise)
    return Question(
        compared=compared,
        margin=margin,
        is_higher_better=is_higher_better,
        is_possible=is_above(floor, compared),
    )


def test_interval_of_the_difference_covers_the_truth_as_often_as_it_says():
    covered = 0
    for seed in range(300):
        one, other = pair(seed, shift=0.05)
        (verdict,) = verdicts({"a": ask(one, other)}).values()
        covered += verdict.low <= 0.05 <= verdict.high
    # Binomial: 300 at 95% has a standard deviation of 3.8.
    assert 300 * 0.95 - 3 * 3.8 <= covered <= 300 * 0.95 + 3 * 3.8


def test_pairs_of_documents_cancel_what_is_common():
    one, other = pair(0)
    compared = compare(one, [other], ratio, seed=1, assumed_noise=0)
    assert compared.item_variance < 0.2 * compared.one.error**2


def test_alarms_among_many_probes_of_alike_models_keep_to_the_rate():
    alarms = 0
    for seed in range(60):
        asked = {str(at): ask(*pair(1000 * seed + at), margin=0.01) for at in range(12)}
        alarms += any(each.word in ("better", "worse") for each in verdicts(asked).values())
    # Binomial: 60 at 5% has a standard deviation of 1.7.
    assert alarms <= 60 * ALPHA + 3 * 1.7


def test_same_model_has_no_difference_anywhere():
    one, _ = pair(3)
    (verdict,) = verdicts({"a": ask(one, one, noise=0.5)}).values()
    assert (verdict.word, verdict.low, verdict.high) == ("not worse", 0, 0)


@pytest.mark.parametrize(
    ("shift", "margin", "word"),
    [
        (0.3, 0.1, "worse"),
        (-0.3, 0.1, "better"),
        (0.0, 0.1, "not worse"),
        (0.0, 0.01, "cannot tell"),
    ],
)
def test_each_verdict_where_it_belongs(shift, margin, word):
    (verdict,) = verdicts({"a": ask(*pair(5, shift=shift), margin=margin)}).values()
    assert verdict.word == word


def test_higher_that_is_better_turns_the_verdict():
    one, other = pair(5, shift=0.3)
    (verdict,) = verdicts({"a": ask(one, other, is_higher_better=True)}).values()
    assert verdict.word == "better"


def test_certain_harm_inside_the_margin_is_not_worse():
    (verdict,) = verdicts({"a": ask(*pair(5, shift=0.06, number=2000), margin=0.1)}).values()
    assert verdict.word == "not worse" and verdict.low > 0


def test_number_of_items_that_would_decide_does():
    one, other = pair(11, shift=0.02)
    asked = ask(one, other, margin=0.035)
    (verdict,) = verdicts({"a": asked}).values()
    assert verdict.word == "cannot tell"
    needed = int(verdict.num_to_decide)
    copies = -(-needed // len(one))
    more = [np.tile(each, (copies, 1)) for each in (one, other)]
    (later,) = verdicts({"a": ask(*more, margin=0.035)}).values()
    assert later.word in ("not worse", "worse")


def test_noise_of_a_training_is_not_removed_by_items():
    (verdict,) = verdicts({"a": ask(*pair(2), margin=0.1, noise=0.2)}).values()
    assert verdict.word == "cannot tell" and math.isinf(verdict.num_to_decide)
    assert "seeds" in verdict.reason


def test_models_that_cannot_do_the_task_say_nothing():
    generator = np.random.default_rng(0)
    coins = [
        np.stack([generator.integers(0, 2, 4000).astype(float), np.ones(4000)], axis=1)
        for _ in range(2)
    ]
    asked = ask(*coins, margin=0.05, is_higher_better=True, floor=0.5)
    (verdict,) = verdicts({"a": asked}).values()
    assert verdict.word == "cannot tell" and verdict.reason == GUESSING


def test_few_items_decide_nothing():
    one, other = pair(1, shift=5.0, number=7)
    (verdict,) = verdicts({"a": ask(one, other)}).values()
    assert verdict.word == "cannot tell"


def test_several_seeds_of_the_baseline_measure_the_noise_of_a_training():
    assert run_noise(np.array([1.0]), 0.3).deviation == 0.3
    measured = run_noise(np.array([1.0, 2.0, 3.0]), 0.3)
    assert (measured.deviation, measured.freedom) == (1.0, 2)


def test_holm_is_that_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_drawings_are_the_same_for_the_same_seed_and_for_all_models():
    one, _ = pair(4)
    first = drawings([one, one], ratio, seed=7, number=150)
    assert np.array_equal(first[0], first[1])
    assert np.array_equal(first, drawings([one, one], ratio, seed=7, number=150))
    assert first.shape == (2, 150)


def test_contrast_is_one_mean_less_another():
    assert contrast(np.array([[6.0, 2.0, 5.0, 5.0]])) == pytest.approx([2.0])
