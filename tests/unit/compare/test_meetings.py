"""Crossings, ratios at equal loss, and the spike, against numbers computed by hand."""

import math

import numpy as np
import pytest
from made_runs import POSITIONS_PER_STEP, L, Made, falling

from tst_megatron.compare.comparison import compare_runs
from tst_megatron.compare.results import Curve
from tst_megatron.compare.statistics.curves import on_common_steps, stays_below_after
from tst_megatron.compare.statistics.equal_loss import percentiles
from tst_megatron.compare.statistics.spike import find_spike

STEPS = np.array([100, 200, 300, 400, 500])
PLAIN, BAGS = ((1, 1000),), ((4, 300), (1, 700))
HOURS_PER_STEP = 2.0 / 3600
FLOPS_PER_STEP = 3.0e9


# --- where a curve stays below -------------------------------------------------------------------


def after(*above, or_equal=False):
    return float(stays_below_after(STEPS, np.array([above], float), or_equal=or_equal)[0])


def test_crossing_lies_on_a_straight_line_between_evaluations():
    assert after(2, 1, 1, -3, -4) == 300 + 100 * 1 / 4


def test_last_change_of_sign_counts():
    assert after(2, -1, 1, -1, -4) == 350


def test_curve_that_ends_above_does_not_cross():
    assert after(-2, -1, -1, -1, 0.1) == math.inf
    assert after(-2, -1, -1, -1, 0) == math.inf


def test_curve_that_is_below_from_the_beginning_crosses_at_its_first_step():
    assert after(-1, -1, -1, -1, -1) == 100


def test_loss_that_is_just_reached_counts_where_equal_does():
    assert after(2, 1, 1, 1, 0, or_equal=True) == 500
    assert after(2, 1, 1, 1, 0) == math.inf


def test_many_curves_at_once():
    above = np.array([[1, -1, -1, -1, -1], [1, 1, 1, 1, 1], [3, 1, -1, 1, -3]], float)
    assert stays_below_after(STEPS, above).tolist() == [150, math.inf, 425]


def test_runs_are_compared_where_both_were_evaluated():
    one = (np.array([100, 200, 300]), np.array([3.0, 2.0, 1.0]))
    steps, ours, theirs = on_common_steps(one, (np.array([200, 300]), np.array([5.0, 4.0])))
    assert steps.tolist() == [200, 300] and ours.tolist() == [2, 1] and theirs.tolist() == [5, 4]


def test_evaluations_at_other_steps_are_taken_between():
    one = (np.array([100, 200, 300]), np.array([3.0, 2.0, 1.0]))
    steps, ours, theirs = on_common_steps(one, (np.array([150, 250]), np.array([6.0, 4.0])))
    assert steps.tolist() == [150, 200, 250]
    assert ours.tolist() == [2.5, 2, 1.5] and theirs.tolist() == [6, 5, 4]


def test_runs_without_overlap_have_no_common_step():
    one = (np.array([100, 200]), np.array([3.0, 2.0]))
    assert len(on_common_steps(one, (np.array([300, 400]), np.array([6.0, 4.0])))[0]) == 0


def test_percentiles_count_infinite_drawings_as_large():
    drawings = np.r_[np.linspace(1, 2, 900), np.full(100, np.inf)]
    interval = percentiles(1.5, drawings, "")
    assert interval.low == pytest.approx(1.027, abs=0.003) and interval.high == math.inf
    assert math.isnan(percentiles(1.5, None, "").low)


# --- pairs by hand --------------------------------------------------------------------------------


def pair_of(folder, of_baseline, of_tst):
    """Compare two runs of 1,000 steps that were evaluated every 100."""
    paths = []
    for name, phases, losses in (("baseline", PLAIN, of_baseline), ("tst", BAGS, of_tst)):
        made = Made(folder / name, phases).steps(1, 1000)
        made.validation(dict(zip(range(100, 1001, 100), losses, strict=True)))
        paths.append(made.path)
    (pair,) = compare_runs(paths).pairs
    return pair


def test_ratios_of_a_pair_by_hand(tmp_path):
    """The arm comes down to the baseline's final loss, 2.0, between the steps 700 and 800."""
    baseline = (4, 3.5, 3, 2.8, 2.6, 2.5, 2.4, 2.3, 2.2, 2.0)
    pair = pair_of(tmp_path, baseline, (5, 4.9, 4.8, 3, 2.5, 2.3, 2.1, 1.9, 1.8, 1.75))
    assert pair.compared_at == (1000, 1000) and pair.gap.value == pytest.approx(-0.25)
    # At step 400 the arm is 0.2 above, at step 500 it is 0.1 below.
    assert pair.crossing_step.value == pytest.approx(400 + 100 * 0.2 / 0.3)
    steps = 1000 / 750
    tokens = 1000 / (750 + 3 * 300)
    assert pair.equal_loss["steps"].value == pytest.approx(steps)
    assert pair.equal_loss["raw tokens"].value == pytest.approx(tokens)
    assert pair.equal_loss["FLOPs"].value == pytest.approx(steps)
    assert pair.equal_loss["hours"].value == pytest.approx(steps)
    assert "the final loss of baseline is matched with the curve of tst" in pair.equal_loss_said


def test_ratios_where_the_baseline_is_better(tmp_path):
    """The baseline comes down to the arm's final loss, 2.3, in the middle of 500 and 600."""
    baseline = (4, 3.5, 3, 2.8, 2.4, 2.2, 2.1, 2.0, 1.9, 1.8)
    pair = pair_of(tmp_path, baseline, (5, 4.9, 4.8, 3, 2.9, 2.8, 2.7, 2.5, 2.4, 2.3))
    assert pair.crossing_step is None and pair.verdict == "says nothing"
    assert pair.equal_loss["steps"].value == pytest.approx(550 / 1000)
    assert pair.equal_loss["raw tokens"].value == pytest.approx(550 / 1900)
    assert "The final loss of tst is matched with the curve of baseline" in pair.equal_loss_said


def test_hours_are_integrated_where_steps_differ_in_time(tmp_path):
    baseline = Made(tmp_path / "baseline", PLAIN).steps(1, 1000, seconds=4.0)
    baseline.validation({500: 3.0, 1000: 2.0})
    tst = Made(tmp_path / "tst", BAGS).steps(1, 300, seconds=1.0).steps(301, 1000, seconds=3.0)
    tst.validation({500: 2.0, 1000: 1.5})
    (pair,) = compare_runs([baseline.path, tst.path]).pairs
    assert pair.equal_loss["hours"].value == pytest.approx(4000 / (300 + 3 * 200))


def test_curves_that_start_below_meet_at_their_first_evaluation(tmp_path):
    baseline = Made(tmp_path / "baseline", PLAIN).validation({500: 3.0, 1000: 2.0})
    tst = Made(tmp_path / "tst", BAGS).validation({500: 2.5, 1000: 1.5})
    (pair,) = compare_runs([baseline.path, tst.path]).pairs
    assert pair.crossing_step.value == 500


# --- several lengths ------------------------------------------------------------------------------


def length(path, num_steps, final, **keys):
    made = Made(path, ((1, num_steps),), **keys).steps(1, 10)
    return made.validation({num_steps // 2: final + 0.6, num_steps: final})


def test_final_losses_of_several_lengths_are_matched(tmp_path):
    lengths = [
        length(tmp_path / f"baseline-{steps}", steps, final)
        for steps, final in ((1000, 2.2), (2000, 2.0), (4000, 1.9))
    ]
    tst = Made(tmp_path / "tst", BAGS).steps(1, 10).validation({500: 2.6, 1000: 1.95})
    paths = [made.path for made in (*lengths, tst)]
    comparison = compare_runs(paths)
    assert comparison.baseline == "baseline-1000"
    pair = next(pair for pair in comparison.pairs if pair.arm == "tst")
    # In the middle of 2.0 and 1.9, and so of log 2000 and log 4000.
    needs = math.sqrt(2000 * 4000)
    assert pair.equal_loss["steps"].value == pytest.approx(needs / 1000)
    tokens = POSITIONS_PER_STEP * needs / (POSITIONS_PER_STEP * 1900)
    assert pair.equal_loss["raw tokens"].value == pytest.approx(tokens)
    assert "baselines of 1,000, 2,000, 4,000 steps" in pair.equal_loss_said


def test_arm_below_the_longest_baseline_is_measured_against_its_end(tmp_path):
    lengths = [
        length(tmp_path / f"baseline-{steps}", steps, final)
        for steps, final in ((1000, 2.2), (2000, 2.0))
    ]
    tst = Made(tmp_path / "tst", BAGS).steps(1, 10).validation({500: 2.2, 1000: 1.8})
    comparison = compare_runs([made.path for made in (*lengths, tst)])
    pair = next(pair for pair in comparison.pairs if pair.arm == "tst")
    assert pair.equal_loss["steps"].value == pytest.approx(2000 / 750)
    assert "the longest baseline (2,000 steps)" in pair.equal_loss_said


def test_arm_above_the_shortest_baseline_is_measured_inside_its_curve(tmp_path):
    lengths = [
        length(tmp_path / f"baseline-{steps}", steps, final)
        for steps, final in ((1000, 2.2), (2000, 2.0))
    ]
    tst = Made(tmp_path / "tst", BAGS).steps(1, 10).validation({500: 3.2, 1000: 2.5})
    comparison = compare_runs([made.path for made in (*lengths, tst)])
    pair = next(pair for pair in comparison.pairs if pair.arm == "tst")
    assert pair.equal_loss["steps"].value == pytest.approx(750 / 1000)


def test_baseline_with_another_learning_rate_is_no_other_length(tmp_path):
    lengths = [
        length(tmp_path / "baseline-1000", 1000, 2.2),
        length(tmp_path / "baseline-2000", 2000, 1.5, lr="8e-3"),
    ]
    tst = Made(tmp_path / "tst", BAGS).steps(1, 10).validation({500: 2.2, 1000: 1.8})
    comparison = compare_runs([made.path for made in (*lengths, tst)])
    pair = next(pair for pair in comparison.pairs if pair.arm == "tst")
    assert "baselines of" not in pair.equal_loss_said


# --- intervals ------------------------------------------------------------------------------------


def test_ratio_of_seeds_has_an_interval_on_a_logarithmic_scale(tmp_path):
    paths = []
    for seed, reached in ((1, 500), (2, 400)):
        baseline = Made(tmp_path / f"baseline-seed{seed}", PLAIN, seed=seed)
        paths.append(baseline.validation({300: 3.0, 1000: 2.0}).path)
        tst = Made(tmp_path / f"tst-seed{seed}", BAGS, seed=seed)
        paths.append(tst.validation({300: 4.0, reached: 2.0, 1000: 1.5}).path)
    comparison = compare_runs(paths)
    assert [arm.name for arm in comparison.arms] == ["baseline", "tst"]
    interval = comparison.pairs[0].equal_loss["steps"]
    logs = [math.log(1000 / 500), math.log(1000 / 400)]
    half = 12.7062 * abs(logs[0] - logs[1]) / 2
    assert interval.value == pytest.approx(math.exp(sum(logs) / 2))
    assert interval.high == pytest.approx(math.exp(sum(logs) / 2 + half), rel=1e-4)
    assert interval.method == "t over 2 pairs of seeds, of the ratio's logarithm"


def pair_with_blocks(folder, random, *, num_blocks=256, noise=0.004):
    """Curves that fall evenly; the arm is 0.4 above at step 400 and 0.1 below at the end."""
    of_text = random.normal(0, 0.6, num_blocks)
    paths = []
    for name, phases, above in (("baseline", PLAIN, 0.0), ("tst", BAGS, None)):
        made = Made(folder / name, phases, num_sequences=num_blocks)
        run, own = random.normal(0, noise), 0.05 * random.normal(size=num_blocks)
        for step in range(400, 1001, 100):
            shift = above if above is not None else 0.4 - 0.5 * (step - 400) / 600
            loss = 2.0 + 0.5 * (1000 - step) / 600 + shift + of_text + own + run
            made.blocks(step, loss * L)
        paths.append(made.path)
    return paths


def test_intervals_of_single_runs_cover_crossing_and_ratio(tmp_path):
    random = np.random.default_rng(21)
    crossing, needs = 400 + 600 * 0.4 / 0.5, []
    # The arm's loss is 2.9 - (step - 400) / 600, and the baseline ends at 2.0.
    ratio = 1000 / (400 + 600 * 0.9)
    covered = [0, 0]
    for number in range(60):
        (pair,) = compare_runs(pair_with_blocks(tmp_path / str(number), random)).pairs
        for at, (interval, truth) in enumerate(
            ((pair.crossing_step, crossing), (pair.equal_loss["steps"], ratio))
        ):
            covered[at] += interval.low <= truth <= interval.high
            needs.append(interval.high - interval.low)
    assert min(covered) >= 0.9 * 60
    assert np.isfinite(needs).all() and "1,000 drawings of held-out blocks" in interval.method


def test_same_seed_of_the_drawings_gives_the_same_interval(tmp_path):
    paths = pair_with_blocks(tmp_path, np.random.default_rng(1))
    one, same = (compare_runs(paths).pairs[0].crossing_step for _ in range(2))
    other = compare_runs(paths, seed=5).pairs[0].crossing_step
    assert one == same and one != other and one.value == other.value


def test_runs_without_kept_losses_have_ratios_without_intervals(tmp_path):
    baseline = Made(tmp_path / "baseline", PLAIN).validation({500: 3.0, 1000: 2.0})
    tst = Made(tmp_path / "tst", BAGS).validation({500: 3.5, 1000: 1.5})
    (pair,) = compare_runs([baseline.path, tst.path]).pairs
    assert math.isnan(pair.equal_loss["steps"].low) and math.isnan(pair.crossing_step.high)
    assert "no losses of the same held-out blocks" in pair.crossing_step.method


# --- the spike ------------------------------------------------------------------------------------


def spike(values, *, phases=BAGS, first=301):
    steps = np.arange(first, first + len(values))
    return find_spike(phases, Curve(steps=steps, values=np.asarray(values, float)))


def test_spike_by_hand():
    """It falls from 5 to 3 by 0.055 a step, and stays there."""
    values = np.maximum(5 - 0.055 * np.arange(700), 3.0)
    found = spike(values)
    assert found.switch_step == 300 and found.height == pytest.approx(2.0)
    # Nine tenths are gone at 3.2, which the 34th loss is the first to be below: 5 - 33 x 0.055.
    assert found.length == 34


def test_level_is_that_of_the_second_tenth_of_the_recovery():
    values = np.full(700, 2.0)
    values[0], values[69:140], values[140:] = 6.0, 3.0, 1.0
    assert spike(values).height == pytest.approx(3.0)


def test_run_without_a_switch_or_a_level_has_no_spike():
    values = np.maximum(5 - 0.05 * np.arange(700), 3.0)
    assert spike(values, phases=PLAIN) is None
    assert spike(values[:130]) is None
    assert spike(values[50:], first=351) is None
    assert spike(np.linspace(3, 4, 700)) is None


def test_spike_of_a_run_is_in_its_arm(tmp_path):
    made = Made(tmp_path / "tst", BAGS)
    made.steps(1, 300, loss=lambda step: 6.0)
    made.steps(301, 1000, loss=lambda step: max(5 - 0.055 * (step - 301), 3.0))
    (arm,) = compare_runs([made.validation(falling(range(100, 1001, 100))).path]).arms
    assert arm.spike.height == pytest.approx(2.0) and arm.spike.length == 34
