"""Confidence intervals: they cover the truth as often as they say, with seeds and with one seed."""

import math

import numpy as np
import pytest

from tst_megatron.compare.pairs.verdict import Evidence, judge
from tst_megatron.compare.results import BlockLosses
from tst_megatron.compare.statistics.blocks import groups_of, mean_and_variance, resampled_curves
from tst_megatron.compare.statistics.curves import scatter
from tst_megatron.compare.statistics.gap import (
    ASSUMED_NOISE,
    FinalLoss,
    final_interval,
    find_gap,
    noise_of_single_runs,
    run_noise,
)
from tst_megatron.compare.statistics.student import (
    degrees,
    mean_interval,
    t_cdf,
    t_quantile,
    welch_interval,
)

L = 128
NUM_PAIRS = 200


# --- Student's t ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees_of_freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (10, 2.22814), (30, 2.04227)],
)
def test_quantiles_are_those_of_the_tables(degrees_of_freedom, quantile):
    assert t_quantile(0.975, degrees_of_freedom) == pytest.approx(quantile, rel=1e-5)
    assert t_quantile(0.025, degrees_of_freedom) == pytest.approx(-quantile, rel=1e-5)


def test_quantiles_of_broken_degrees_lie_between_and_go_to_the_normal():
    assert t_quantile(0.975, 2) > t_quantile(0.975, 2.5) > t_quantile(0.975, 3)
    assert t_quantile(0.975, 1e6) == pytest.approx(1.95996, rel=1e-4)
    assert t_quantile(0.975, math.inf) == pytest.approx(1.959964, rel=1e-6)


def test_distribution_function_of_one_degree_is_cauchys():
    for value in (-3.0, -0.2, 0.0, 0.7, 40.0):
        assert t_cdf(value, 1) == pytest.approx(0.5 + math.atan(value) / math.pi, abs=1e-12)


def test_interval_of_a_mean_by_hand():
    interval = mean_interval([1.0, 2.0, 4.0], "")
    # Standard deviation 1.52753, divided by the root of 3, times 4.30265.
    assert interval.value == pytest.approx(7 / 3)
    assert interval.high - interval.value == pytest.approx(3.79461, rel=1e-5)


def test_welch_by_hand():
    interval = welch_interval([1.0, 2.0, 3.0], [2.0, 6.0], "")
    # Variances of the means 1/3 and 4; degrees (13/3)^2 / ((1/9)/2 + 16/1).
    assert degrees([1 / 3, 4.0], [2, 1]) == pytest.approx(1.16955, rel=1e-5)
    assert interval.value == -2
    half = t_quantile(0.975, 1.16955) * math.sqrt(13 / 3)
    assert interval.high == pytest.approx(-2 + half, rel=1e-4)


# --- blocks --------------------------------------------------------------------------------------


def correlated(random, shape, correlation):
    """Noise of standard deviation 1 along the last axis, each value like the one before."""
    noise = random.normal(size=shape)
    for at in range(1, shape[-1] if correlation else 0):
        share = math.sqrt(1 - correlation**2)
        noise[..., at] = correlation * noise[..., at - 1] + share * noise[..., at]
    return noise


def blocks_of(loss_mean, num_positions=None):
    counts = np.full(len(loss_mean), L) if num_positions is None else num_positions
    return BlockLosses(loss_sum=loss_mean * counts, num_positions=counts)


def test_variance_of_independent_blocks_is_that_of_the_mean():
    random = np.random.default_rng(0)
    values = random.normal(2.0, 0.3, (400, 400))
    variances = []
    for row in values:
        groups = groups_of([blocks_of(row)])
        variances.append(mean_and_variance(groups.loss_sum[0], groups.num_positions)[1])
    assert np.mean(variances) == pytest.approx(0.3**2 / 400, rel=0.05)


def test_variance_of_correlated_blocks_is_not_too_small():
    random = np.random.default_rng(0)
    values = 2.0 + 0.3 * correlated(random, (400, 400), 0.6)
    variances = []
    for row in values:
        groups = groups_of([blocks_of(row)])
        variances.append(mean_and_variance(groups.loss_sum[0], groups.num_positions)[1])
    true = values.mean(axis=1).var()
    assert 0.8 * true < np.mean(variances) < 1.2 * true
    assert true > 3 * 0.3**2 / 400


def test_blocks_weigh_by_their_positions():
    counts = np.array([L, L, L, 2, L, L, L, L, L, L, L, L, L, L, L, L])
    values = np.ones(16)
    values[3] = 1000.0
    groups = groups_of([blocks_of(values, counts)])
    mean, _ = mean_and_variance(groups.loss_sum[0], groups.num_positions)
    assert mean == pytest.approx((15 * L + 2000) / (15 * L + 2))


def test_few_blocks_have_no_variance():
    assert groups_of([blocks_of(np.ones(15))]) is None
    assert groups_of([blocks_of(np.ones(16))]).loss_sum.shape == (1, 4)


def test_drawings_are_the_same_text_for_all_runs_and_evaluations():
    random = np.random.default_rng(0)
    of_text = random.normal(2.0, 1.0, 256)
    runs = [groups_of([blocks_of(of_text + shift), blocks_of(of_text)]) for shift in (0.5, 0.25)]
    one, other = resampled_curves(runs, num_resamples=500, seed=3)
    assert one.shape == (500, 2) and one[:, 1].std() > 0.01
    assert np.ptp(one[:, 0] - other[:, 0]) < 1e-9
    assert np.ptp(one[:, 0] - one[:, 1]) < 1e-9


def test_drawings_of_few_groups_are_as_wide_as_students_t():
    groups = groups_of([blocks_of(np.random.default_rng(2).normal(2.0, 1.0, 25))])
    (curve,) = resampled_curves([groups], num_resamples=20_000, seed=1)
    _, variance = mean_and_variance(groups.loss_sum[0], groups.num_positions)
    # Five groups: 2.77645 for 4 degrees of freedom.
    assert curve.std() == pytest.approx(math.sqrt(variance) * 2.77645 / 1.959964, rel=0.03)


# --- the gap of simulated pairs ------------------------------------------------------------------


def single_runs(random, gap, *, num_blocks=512, correlation=0.0, of_blocks=0.05):
    """Two runs with one seed: text that is hard for both, noise of their own, between runs."""
    of_text = correlated(random, (num_blocks,), correlation)
    own = of_blocks * correlated(random, (2, num_blocks), correlation)
    means = 2.0 + of_text + own + random.normal(0, ASSUMED_NOISE, (2, 1))
    means[0] += gap
    return [[FinalLoss(seed=1, loss=float(row.mean()), blocks=blocks_of(row))] for row in means]


def several_seeds(random, gap, *, numbers, noise=0.006, shared=0.5, same=True):
    """Runs of two arms; part of a seed's noise is the same in both arms."""
    of_seed = noise * math.sqrt(shared) * random.normal(size=max(numbers))
    arms = []
    for arm, number in enumerate(numbers):
        own = noise * math.sqrt(1 - shared) * random.normal(size=number)
        losses = 2.0 + (gap if arm == 0 else 0) + of_seed[:number] * same + own
        seeds = range(number) if same or arm == 0 else range(100, 100 + number)
        runs = zip(seeds, losses, strict=True)
        arms.append([FinalLoss(seed=s, loss=float(loss), blocks=None) for s, loss in runs])
    return arms


CASES = {
    "two seeds": lambda random, gap: several_seeds(random, gap, numbers=(2, 2)),
    "three seeds": lambda random, gap: several_seeds(random, gap, numbers=(3, 3)),
    "other seeds": lambda random, gap: several_seeds(random, gap, numbers=(3, 2), same=False),
    "seeds in one arm": lambda random, gap: several_seeds(random, gap, numbers=(3, 1)),
    "one seed": single_runs,
    "one seed, quiet blocks": lambda random, gap: single_runs(random, gap, of_blocks=0.01),
    "one seed, few blocks": lambda random, gap: single_runs(random, gap, num_blocks=32),
    "one seed, alike neighbours": lambda random, gap: single_runs(random, gap, correlation=0.6),
}


@pytest.mark.parametrize("case", list(CASES))
def test_intervals_cover_a_known_gap(case):
    random = np.random.default_rng(11)
    covered = 0
    for _ in range(NUM_PAIRS):
        interval = find_gap(*CASES[case](random, -0.03)).interval
        covered += interval.low <= -0.03 <= interval.high
    assert covered >= 0.9 * NUM_PAIRS


@pytest.mark.parametrize("case", list(CASES))
def test_pairs_without_a_gap_are_rarely_called_different(case):
    random = np.random.default_rng(12)
    called = 0
    for _ in range(NUM_PAIRS):
        arms = CASES[case](random, 0.0)
        called += verdict(*arms) in ("better", "worse")
    assert called <= 0.1 * NUM_PAIRS


@pytest.mark.parametrize("case", ["three seeds", "one seed", "one seed, alike neighbours"])
def test_large_gaps_are_found(case):
    random = np.random.default_rng(13)
    found = [verdict(*CASES[case](random, -0.1)) for _ in range(50)]
    assert found.count("better") >= 48


def verdict(arm, baseline):
    evidence = Evidence(
        arm="tst",
        baseline="baseline",
        gap=find_gap(arm, baseline),
        num_seeds=(len(arm), len(baseline)),
        is_at_end=True,
    )
    return judge(evidence)[0]


# --- the gap by hand -----------------------------------------------------------------------------


def final(*losses, seeds=None):
    return [
        FinalLoss(seed=seed, loss=loss, blocks=None)
        for seed, loss in zip(seeds or range(len(losses)), losses, strict=True)
    ]


def test_runs_of_the_same_seeds_are_paired():
    gap = find_gap(final(1.7, 1.9, seeds=[2, 1]), final(2.0, 1.85, seeds=[1, 2]))
    # 1.9 - 2.0 and 1.7 - 1.85: mean -0.125, standard error 0.025.
    assert gap.interval.value == pytest.approx(-0.125)
    assert gap.interval.high == pytest.approx(-0.125 + 12.7062 * 0.025, rel=1e-4)
    assert gap.interval.method == "t over 2 pairs of seeds" and gap.basis == "seeds"


def test_runs_of_other_seeds_are_compared_by_welch():
    gap = find_gap(final(1.7, 1.8, seeds=[1, 2]), final(2.0, 2.2, seeds=[3, 4]))
    assert gap.interval.value == pytest.approx(-0.35)
    assert gap.interval.method.startswith("Welch's t over 2 and 2 seeds")


def test_noise_of_one_arm_stands_for_both():
    gap = find_gap(final(1.7, 1.8, 1.9), final(2.0))
    assert gap.noise == pytest.approx(0.1)
    half = 4.30265 * 0.1 * math.sqrt(1 / 3 + 1)
    assert gap.interval.high == pytest.approx(1.8 - 2.0 + half, rel=1e-5)


def test_single_runs_have_assumed_noise_beside_that_of_blocks():
    random = np.random.default_rng(4)
    arm, baseline = single_runs(random, -0.02, num_blocks=400)
    interval = find_gap(arm, baseline).interval
    difference = (arm[0].blocks.loss_sum - baseline[0].blocks.loss_sum) / L
    groups = difference.reshape(20, 20).mean(axis=1)
    variance = groups.var(ddof=1) / 20 + 2 * 0.004**2
    freedom = variance**2 / ((groups.var(ddof=1) / 20) ** 2 / 19)
    half = t_quantile(0.975, freedom) * math.sqrt(variance)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=1e-6)
    assert "400 held-out blocks, paired" in interval.method


def test_blocks_of_other_text_are_not_paired():
    arm = [FinalLoss(seed=1, loss=2.0, blocks=blocks_of(np.full(64, 2.0)))]
    baseline = [FinalLoss(seed=1, loss=2.1, blocks=blocks_of(np.full(32, 2.1)))]
    gap = find_gap(arm, baseline)
    assert gap.basis == "noise alone"
    assert gap.interval.high == pytest.approx(-0.1 + 1.959964 * math.sqrt(2) * 0.004, rel=1e-5)


def test_noise_is_pooled_over_arms():
    noise, source = run_noise(final(1.0, 1.2), final(2.0, 2.1, 2.2))
    assert noise == pytest.approx(math.sqrt((0.02 + 2 * 0.01) / 3))
    assert source == "measured over 5 runs of 2 arms"
    assert run_noise(final(1.0), final(2.0))[0] == ASSUMED_NOISE


def test_final_loss_of_one_run_has_the_uncertainty_of_its_text():
    random = np.random.default_rng(5)
    only = FinalLoss(seed=1, loss=2.0, blocks=blocks_of(random.normal(2.0, 0.3, 400)))
    interval = final_interval([only])
    assert (interval.high - interval.low) / 2 == pytest.approx(2 * 0.3 / 20, rel=0.35)
    bare = final_interval(final(2.0))
    assert bare.value == 2.0 and math.isnan(bare.low) and bare.method == "one seed"
    assert final_interval(final(2.0, 2.2)).value == pytest.approx(2.1)


def test_scatter_is_that_of_the_late_evaluations_around_their_curve():
    random = np.random.default_rng(3)
    steps = np.arange(100, 40_100, 100)
    smooth = 3.0 * steps**-0.1 - np.where(steps > 32_000, (steps - 32_000) * 1e-5, 0.0)
    noisy = smooth + random.normal(0, 0.02, len(steps))
    assert scatter(steps, smooth) < 1e-4
    assert scatter(steps, noisy) == pytest.approx(0.02, rel=0.2)
    # The first half does not count, and few evaluations show nothing.
    early = np.where(steps <= 20_000, noisy, smooth)
    assert scatter(steps, early) < 1e-4
    assert scatter(steps[:12], noisy[:12]) == 0.0


def test_scatter_above_the_assumed_noise_takes_its_place():
    assert noise_of_single_runs([0.001, 0.002])[0] == ASSUMED_NOISE
    assert noise_of_single_runs([0.001, 0.02])[0] == 0.02
    pair = [[FinalLoss(seed=1, loss=loss, blocks=None, scatter=0.02)] for loss in (2.0, 2.05)]
    gap = find_gap(*pair)
    assert gap.noise == 0.02
    assert gap.interval.high == pytest.approx(-0.05 + 1.959964 * math.sqrt(2) * 0.02, rel=1e-5)
