"""Whole comparisons: a real pair, one run, runs that cannot be compared or are not finished."""

import math

import numpy as np
import pytest
from made_runs import L, Made, falling, validation

from tst_megatron.compare.comparison import compare_runs
from tst_megatron.recipe.recipe import RecipeError

PLAIN, BAGS = ((1, 1000),), ((4, 300), (1, 700))

PILOT = {
    # Dense, 3 layers of 64, one seed, 28 November 2026; evaluated every 250 steps, from 250 on.
    "baseline": (
        *(3.2122, 2.7581, 2.5753, 2.4838, 2.4327, 2.397, 2.3541, 2.3388, 2.3182, 2.2867, 2.2885),
        *(2.2756, 2.2715, 2.2479, 2.2491, 2.2324, 2.24, 2.2304, 2.2165, 2.2072, 2.2058, 2.2106),
        *(2.1823, 2.1922, 2.2017, 2.202, 2.1674, 2.1221, 2.0895, 2.0461, 2.0145, 1.9959),
    ),
    "tst": (
        *(4.4596, 4.4641, 4.4615, 4.3753, 4.3981, 4.3747, 4.3376, 4.3785, 4.3833, 2.8715, 2.4631),
        *(2.3015, 2.1967, 2.1409, 2.1186, 2.0788, 2.0524, 2.0577, 2.0365, 2.0089, 2.0002, 1.9963),
        *(1.9974, 1.9954, 1.9731, 1.9652, 1.9211, 1.8994, 1.8704, 1.8216, 1.773, 1.7526),
    ),
}


def test_real_pair_gives_the_numbers_computed_by_hand(tmp_path):
    paths = []
    for name, phases in (("baseline", ((1, 8000),)), ("tst", ((4, 2400), (1, 5600)))):
        made = Made(tmp_path / name, phases, **{"eval-iters": 32}).without_facts()
        losses = dict(zip(range(250, 8001, 250), PILOT[name], strict=True))
        paths.append(made.validation(losses).path)
    comparison = compare_runs(paths)
    (pair,) = comparison.pairs
    assert (comparison.baseline, pair.arm, pair.compared_at) == ("baseline", "tst", (8000, 8000))
    assert pair.gap.value == pytest.approx(1.7526 - 1.9959)
    # 2.3015 - 2.2756 at step 3000, 2.1967 - 2.2715 at step 3250.
    assert pair.crossing_step.value == pytest.approx(3000 + 250 * 0.0259 / (0.0259 + 0.0748))
    # 1.9959 lies between 1.9974 at step 5750 and 1.9954 at step 6000.
    reached = 5750 + 250 * 0.0015 / 0.0020
    assert pair.equal_loss["steps"].value == pytest.approx(8000 / reached)
    assert pair.equal_loss["raw tokens"].value == pytest.approx(8000 / (reached + 3 * 2400))
    assert pair.verdict == "better"
    assert pair.sentence == (
        "tst ends 0.24 nats lower than baseline (95% interval 0.22 to 0.27 from assumed run-to-run "
        "noise alone; one seed each, 65,536 held-out tokens), at 1.9 times the raw tokens; nothing "
        "shows that they have the same tokenizer, held-out text, order of the text."
    )
    assert "no facts.json was kept" in comparison.notes[0]


def with_blocks(folder, name, phases, random, gap, *, num_blocks=512, seed=1):
    made = Made(folder / name, phases, num_sequences=num_blocks, seed=seed)
    of_text = np.random.default_rng(0).normal(2.0, 0.5, num_blocks)
    for step in (500, 1000):
        loss = of_text + gap + (1000 - step) / 1000 + 0.02 * random.normal(size=num_blocks)
        made.blocks(step, loss * L)
    return made.path


def test_pair_with_kept_blocks(tmp_path):
    random = np.random.default_rng(1)
    paths = [
        with_blocks(tmp_path, "baseline", PLAIN, random, 0.0),
        with_blocks(tmp_path, "tst", BAGS, random, -0.1),
    ]
    comparison = compare_runs(paths)
    (pair,) = comparison.pairs
    assert pair.verdict == "better" and comparison.notes == []
    assert pair.gap.low < -0.1 < pair.gap.high and pair.gap.high - pair.gap.low < 0.03
    assert pair.run_noise == 0.004 and "assumed 0.004 nats" in pair.run_noise_source
    assert "512 held-out blocks, paired" in pair.gap.method
    assert "one seed each, 65,536 held-out tokens" in pair.sentence
    final = comparison.arms[0].final_loss
    assert final.low < final.value < final.high and final.high - final.low > 0.05


def test_seeds_are_paired(tmp_path):
    random = np.random.default_rng(1)
    paths = [
        with_blocks(tmp_path, f"{name}-seed{seed}", phases, random, gap + 0.01 * seed, seed=seed)
        for seed in (1, 2, 3)
        for name, phases, gap in (("baseline", PLAIN, 0.0), ("tst", BAGS, -0.1))
    ]
    comparison = compare_runs(paths)
    (pair,) = comparison.pairs
    assert pair.gap.method == "t over 3 pairs of seeds" and "3 seeds each" in pair.sentence
    assert pair.run_noise == pytest.approx(0.01, rel=0.3)
    assert pair.run_noise_source == "measured over 6 runs of 2 arms"
    assert pair.equal_loss["steps"].method.startswith("t over 3 pairs of seeds")
    assert math.isfinite(pair.equal_loss["steps"].high)


def test_difference_of_a_third_arm_is_no_caveat_of_two(tmp_path):
    phases = {"baseline": PLAIN, "tst": BAGS, "longer": ((1, 1200),)}
    made = [Made(tmp_path / name, each) for name, each in phases.items()]
    losses = falling(range(100, 1001, 100)), falling(range(100, 1201, 100))
    paths = [each.validation(losses[each.path.name == "longer"]).path for each in made]
    tst, longer = compare_runs(paths, baseline="baseline").pairs
    assert not any(word in tst.sentence for word in ("nothing shows", "differ", "length"))
    assert longer.sentence.endswith("; they differ in learning rate, length too.")


def test_one_run_alone_is_described(tmp_path):
    made = Made(tmp_path / "tst", BAGS).validation(falling(range(100, 1001, 100)))
    comparison = compare_runs([made.path])
    assert comparison.baseline == "tst" and comparison.pairs == [] == comparison.differences
    (arm,) = comparison.arms
    assert arm.final_step == 1000 and arm.final_loss.value == pytest.approx(2.0)


def test_baseline_comes_first(tmp_path):
    made = [Made(tmp_path / "tst", BAGS), Made(tmp_path / "baseline", PLAIN)]
    comparison = compare_runs([each.validation({500: 3.0, 1000: 2.0}).path for each in made])
    assert [arm.name for arm in comparison.arms] == ["baseline", "tst"]


# --- what says nothing ---------------------------------------------------------------------------


def pair_of(tmp_path, of_baseline, of_tst, **keys):
    baseline = Made(tmp_path / "baseline", PLAIN).validation(of_baseline)
    tst = Made(tmp_path / "tst", BAGS, **keys).validation(of_tst)
    (pair,) = compare_runs([baseline.path, tst.path]).pairs
    return pair


def test_run_that_is_still_running_is_compared_at_the_last_common_step(tmp_path):
    pair = pair_of(tmp_path, {500: 3.0, 600: 2.9, 1000: 2.0}, {500: 3.2, 600: 2.8})
    assert pair.compared_at == (600, 600) and pair.gap.value == pytest.approx(-0.1)
    assert pair.verdict == "says nothing"
    assert pair.sentence.startswith(
        "This says nothing yet, because tst is not finished (step 600 of 1,000): tst is at step "
        "600 0.10 nats lower than baseline"
    )


def test_run_whose_last_evaluation_is_missing_is_not_finished(tmp_path):
    baseline = Made(tmp_path / "baseline", PLAIN).validation({500: 3.0, 1000: 2.0})
    tst = Made(tmp_path / "tst", BAGS).steps(1, 1000).validation({250: 4.0, 500: 3.0})
    (pair,) = compare_runs([baseline.path, tst.path]).pairs
    assert pair.compared_at == (500, 500) and "tst is not finished" in pair.sentence


def test_runs_without_overlap(tmp_path):
    pair = pair_of(tmp_path, {100: 4.0, 200: 3.9}, {500: 3.2, 600: 2.8})
    assert pair.gap is None and pair.crossing_step is None and pair.equal_loss == {}
    assert pair.verdict == "says nothing" and pair.sentence == (
        "This says nothing: tst and baseline have no overlap, evaluations at steps 500 to 600 "
        "against evaluations at steps 100 to 200."
    )


def test_runs_evaluated_at_other_steps_are_compared_near_the_end(tmp_path):
    pair = pair_of(tmp_path, {100: 4.0, 250: 3.9, 400: 3.0}, {200: 3.2, 390: 2.8})
    assert pair.compared_at == (390, 250)


def test_other_tokenizer_gives_no_gap(tmp_path):
    baseline = Made(tmp_path / "baseline", PLAIN).validation({500: 3.0, 1000: 2.0})
    tst = Made(tmp_path / "tst", BAGS).validation({500: 3.0, 1000: 1.0})
    stream = {"order version": 2, "tokenizer": "another"}
    comparison = compare_runs([baseline.path, tst.facts(stream=stream).path])
    (pair,) = comparison.pairs
    assert pair.gap is None and pair.sentence == (
        "This says nothing: tst and baseline differ in the tokenizer, so their losses cannot be "
        "compared."
    )
    assert comparison.differences[0].what == "tokenizer"


def test_diverged_run_says_nothing(tmp_path):
    pair = pair_of(tmp_path, {500: 3.0, 1000: 2.0}, {500: 3.2, 750: 3.1, 1000: math.nan})
    assert pair.verdict == "says nothing"
    assert "the losses of tst are no numbers from step 1,000 on" in pair.sentence


def test_damaged_evaluation_costs_its_blocks_alone(tmp_path):
    random = np.random.default_rng(1)
    paths = [
        with_blocks(tmp_path, "baseline", PLAIN, random, 0.0),
        with_blocks(tmp_path, "tst", BAGS, random, -0.1),
    ]
    file = paths[1] / "evaluations" / "validation-0001000.npz"
    file.write_bytes(file.read_bytes()[:100])
    comparison = compare_runs(paths)
    assert comparison.pairs[0].gap.value == pytest.approx(-0.1, abs=0.01)
    assert "noise alone" in comparison.pairs[0].sentence
    assert [note for note in comparison.notes if f"{file}: is no whole archive" in note]


def test_kept_losses_that_are_not_the_logged_ones_are_not_used(tmp_path):
    random = np.random.default_rng(1)
    paths = [
        with_blocks(tmp_path, "baseline", PLAIN, random, 0.0),
        with_blocks(tmp_path, "tst", BAGS, random, -0.1),
    ]
    metrics = paths[0] / "metrics.jsonl"
    kept = metrics.read_text().splitlines()[:1]
    metrics.write_text("\n".join(kept) + "\n")
    validation(metrics, {1000: 2.5})
    comparison = compare_runs(paths)
    assert "noise alone" in comparison.pairs[0].sentence
    assert [note for note in comparison.notes if "the run has logged 2.50000" in note]


def test_run_of_an_arm_without_a_common_evaluation_is_left_out(tmp_path):
    made = [Made(tmp_path / f"tst-seed{seed}", BAGS, seed=seed) for seed in (1, 2)]
    made[0].validation({500: 3.0, 1000: 2.0})
    made[1].validation({300: 3.3})
    comparison = compare_runs([each.path for each in made])
    assert [run.seed for run in comparison.arms[0].runs] == [1]
    assert "is left out of tst" in comparison.notes[0]


def test_runs_of_other_trackers_are_compared_with_ours(tmp_path):
    made = Made(tmp_path / "tst", BAGS).validation({500: 3.0, 1000: 2.0})
    other = tmp_path / "other.csv"
    other.write_text("step,val_loss,tokens\n500,3.1,1024000\n1000,2.2,2048000\n2000,1.9,4096000\n")
    comparison = compare_runs([made.path, other])
    (pair,) = comparison.pairs
    assert (pair.arm, pair.baseline, pair.compared_at) == ("tst", "other", (1000, 1000))
    assert pair.gap.value == pytest.approx(-0.2)
    # It goes on, and comes down to 2.0 after two thirds of its last 1,000 steps.
    assert pair.equal_loss["steps"].value == pytest.approx((1000 + 2000 / 3) / 1000)
    tokens = 2048 * (1000 + 2000 / 3) / (2048 * 1900)
    assert pair.equal_loss["raw tokens"].value == pytest.approx(tokens)


def test_bad_runs_are_refused_together(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError) as error:
        compare_runs([tmp_path / "none", tmp_path / "empty"])
    assert len(error.value.problems) == 2


def test_foreign_run_that_ends_in_the_middle_of_the_baseline_says_nothing(tmp_path):
    """One at its full learning rate, and one that has decayed: no verdict, whoever is lower."""
    baseline = Made(tmp_path / "baseline", PLAIN).validation({500: 3.0, 1000: 2.0})
    for end, losses in (("half", {500: 2.5}), ("long", {500: 2.9, 1000: 2.2, 2000: 1.5})):
        rows = "".join(f"{step},{loss}\n" for step, loss in losses.items())
        peer = tmp_path / f"{end}.csv"
        peer.write_text("step,validation loss\n" + rows)
        (pair,) = compare_runs([baseline.path, peer], baseline="baseline").pairs
        assert pair.verdict == "says nothing" and " is compared at step " in pair.sentence
        assert " ends " not in pair.sentence


def test_sentence_names_what_else_differs(tmp_path):
    baseline = Made(tmp_path / "baseline", PLAIN).validation({500: 3.0, 1000: 2.0})
    tst = Made(tmp_path / "tst", BAGS, lr=0.02).validation({500: 3.1, 1000: 1.8})
    (pair,) = compare_runs([baseline.path, tst.path]).pairs
    assert pair.sentence.endswith("; they differ in learning rate too.")


def test_arm_that_is_still_in_superposition_is_said_to_be(tmp_path):
    pair = pair_of(tmp_path, {200: 3.0, 1000: 2.0}, {200: 4.2})
    assert pair.verdict == "says nothing" and "tst is still in superposition" in pair.sentence
