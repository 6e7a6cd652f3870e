"""A branch goes on as its trunk would have, but for what was changed, and from there alone."""

import json
import math
from itertools import batched

import pytest
import recording
import tiny
import torch

from tst_megatron.checkpoint.content.facts import OPTIMIZER
from tst_megatron.checkpoint.run_files import read_branch
from tst_megatron.recipe.learning_rate import LearningRate
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.training.branch.branch import make_branch
from tst_megatron.training.branch.changes import MAY_CHANGE

SWITCH, STEPS, DECAY, LONGER = 4, 12, 3, 15

AT = {
    "inside superposition": 3,
    "last superposition step": SWITCH,
    "inside recovery": 6,
    "inside the decay": STEPS - DECAY + 1,
}

CHANGED = {
    # What is changed: (step of the branch, changes)
    "decay": (6, ["lr-wsd-decay-iters=5", "lr-wsd-decay-style=cosine", "min-lr=0.0"]),
    "length": (6, [f"train-iters={LONGER}"]),
    "resets": (SWITCH, ["tst.reset-embeddings=true", "tst.reset-optimizer=true"]),
}
"""None of them changes a step before the branch, so a run from step 0 could have had them."""


@pytest.fixture(scope="module")
def recipe(text, tmp_path_factory):
    return tiny.write_recipe(
        tmp_path_factory.mktemp("recipe") / "tst.yaml",
        text,
        {"bag-size": 4, "superposition-fraction": 0.34},
        expert_model_parallel_size=2,
        train_iters=STEPS,
        lr_wsd_decay_iters=DECAY,
        save_interval=1,
        eval_interval=6,
    )


def start(recipe, run, *overrides):
    """Start two ranks, which note in ``RUN.tokens`` what they read."""
    arguments = ("train", str(recipe), *overrides, "--run-folder", str(run))
    log, tokens = run.with_suffix(".log"), run.with_suffix(".tokens")
    return tiny.fork_ranks(*arguments, num_ranks=2, log=log, tokens=tokens), log


def run_in_pairs(starts, status=0):
    """Train runs, two at a time; each is what ``start`` takes."""
    for pair in batched(starts, 2):
        for ranks, log in [start(*arguments) for arguments in pair]:
            tiny.wait(ranks, log, status)


@pytest.fixture(scope="module")
def trunk(recipe, tmp_path_factory):
    """A run under expert parallelism with the distributed optimizer, saved at every step."""
    folder = tmp_path_factory.mktemp("trunk") / "trunk"
    run_in_pairs([(recipe, folder)])
    return folder


def branched(trunk, step, folder, *changes):
    make_branch(trunk, step, folder, changes)
    return folder / "recipe.yaml", folder


@pytest.fixture(scope="module")
def unchanged(trunk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unchanged")
    run_in_pairs([branched(trunk, step, folder / f"at-{step}") for step in AT.values()])
    return folder


@pytest.fixture(scope="module")
def from_the_start(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("from-the-start")
    run_in_pairs(
        [(recipe, folder / name, *STEPS_GIVEN, *made) for name, (_, made) in CHANGED.items()]
    )
    return folder


STEPS_GIVEN = ("tst.superposition-fraction=0", f"tst.superposition-steps={SWITCH}")
"""As a branch has them: a share of other steps would be another switch."""


@pytest.fixture(scope="module")
def changed(trunk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("changed")
    starts = {
        name: branched(trunk, step, folder / name, *made) for name, (step, made) in CHANGED.items()
    }
    # One of them in two starts: the second loads a checkpoint of the branch itself.
    run_in_pairs([(*starts["decay"], "exit-interval=8")], status=75)
    assert [row["step"] for row in tiny.metrics(folder / "decay")] == list(range(1, 9))
    run_in_pairs(starts.values())
    return folder


def bits(run):
    """Losses, gradient norms and learning rates, bit for bit."""
    return {
        event: {
            row["step"]: [
                row[key].hex()
                for key in row
                if "loss" in key or key in ("grad-norm", "learning-rate")
            ]
            for row in tiny.metrics(run, event)
        }
        for event in ("step", "validation")
    }


def last_weights(run):
    step = int((run / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())
    tensors = tiny.saved_tensors(run / "checkpoints" / f"iter_{step:07d}")
    # The optimizer's buckets have gaps, in which anything may be.
    return {name: value for name, value in tensors.items() if not OPTIMIZER.match(name)}


def assert_same_end(run, other):
    assert bits(run) == bits(other)
    ours, theirs = last_weights(run), last_weights(other)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("where", AT)
def test_unchanged_branch_is_bit_identical_to_its_trunk(trunk, unchanged, where):
    run = unchanged / f"at-{AT[where]}"
    assert [row["step"] for row in tiny.metrics(run)] == list(range(1, STEPS + 1))
    assert_same_end(run, trunk)


@pytest.mark.parametrize("what", CHANGED)
def test_branch_with_a_change_equals_the_run_that_had_it_from_the_start(
    trunk, changed, from_the_start, what
):
    step, _ = CHANGED[what]
    assert_same_end(changed / what, from_the_start / what)
    later = range(step + 1, STEPS + 1)
    of_trunk, of_branch = (bits(run)["step"] for run in (trunk, changed / what))
    assert [of_trunk[each] for each in later] != [of_branch[each] for each in later]


def test_trunk_and_branch_read_every_token_of_a_run_once(trunk, changed, from_the_start):
    step, _ = CHANGED["length"]
    of_trunk, of_branch, of_run = (
        recording.batches(run.with_suffix(".tokens"))
        for run in (trunk, changed / "length", from_the_start / "length")
    )
    assert sorted(of_branch) == list(range(step, LONGER))
    together = {**{each: of_trunk[each] for each in range(step)}, **of_branch}
    assert together == of_run
    # In recovery a sample is read with one token of look-ahead, in superposition with a bag.
    inputs = [tuple(sample[:32]) for each in range(SWITCH, LONGER) for sample in together[each]]
    inputs += [
        tuple(sample[first : first + 32])
        for each in range(SWITCH)
        for sample in together[each]
        for first in range(0, 128, 32)
    ]
    assert len(inputs) == len(set(inputs)) == 8 * (SWITCH * 4 + LONGER - SWITCH)


# --- every key that may change ------------------------------------------------------------------

TOGETHER = {
    # Step of the branch, and changes that are visible in its first step together.
    "wsd": (
        STEPS - 2,
        {
            "train-iters": 14,
            "lr": 0.02,
            "min-lr": 0.001,
            "lr-decay-iters": 13,
            "lr-wsd-decay-iters": 5,
            "lr-wsd-decay-style": "cosine",
            "weight-decay-incr-style": "linear",
            "start-weight-decay": 0.05,
            "end-weight-decay": 0.3,
            "clip-grad": 0.25,
        },
    ),
    "cosine": (
        STEPS - 2,
        {"lr-decay-style": "cosine", "lr-warmup-iters": 5, "weight-decay": 0.2},
    ),
    "warm-up": (
        1,
        {"lr-warmup-init": 0.001, "lr-warmup-fraction": 0.25, "lr-warmup-iters": 0},
    ),
}


@pytest.fixture(scope="module")
def first_steps(trunk, tmp_path_factory):
    """The settings of the first step of each of ``TOGETHER``, which ends after it."""
    folder = tmp_path_factory.mktemp("first-steps")
    starts = []
    for name, (step, made) in TOGETHER.items():
        words = [f"{key}={value}" for key, value in made.items()]
        arguments = branched(trunk, step, folder / name, *words)
        starts.append((*arguments, f"exit-interval={step + 1}"))
    run_in_pairs(starts, status=75)
    return folder


def rate(**changes):
    keys = {**tiny.TINY, "train-iters": STEPS, "lr-wsd-decay-iters": DECAY, **changes}
    defaults = {"lr-decay-iters": None, "lr-warmup-init": 0.0, "lr-warmup-fraction": None}
    names = {key.replace("-", "_"): value for key, value in {**defaults, **keys}.items()}
    return LearningRate.of(type("Values", (), names))


def decay(step, keys):
    """Weight decay of the step after ``step``."""
    if keys.get("weight-decay-incr-style") != "linear":
        return keys.get("weight-decay", tiny.TINY["weight-decay"])
    first, last = keys["start-weight-decay"], keys["end-weight-decay"]
    return first + step / keys.get("train-iters", STEPS) * (last - first)


def test_every_key_that_may_change_is_among_those_that_are_tried():
    tried = {key for _, made in TOGETHER.values() for key in made}
    assert tried == set(MAY_CHANGE)


@pytest.mark.parametrize("name", TOGETHER)
def test_changed_values_are_used_in_the_first_step(first_steps, name):
    step, made = TOGETHER[name]
    of_rate = {key: value for key, value in made.items() if key.startswith(("lr", "min", "train"))}
    wanted = rate(**of_rate).at(step)
    # Each of the changes has a part in what is expected.
    for key in of_rate if name != "warm-up" else ("lr-warmup-init", "lr-warmup-fraction"):
        others = {each: value for each, value in of_rate.items() if each != key}
        is_hidden = key == "train-iters" and "lr-decay-iters" in of_rate
        assert is_hidden or rate(**others).at(step) != wanted, key
    seen = recording.settings((first_steps / name).with_suffix(".tokens"))
    assert list(seen) == [step] and len(seen[step]) == 2
    for row in seen[step]:
        assert row["clip"] == made.get("clip-grad", tiny.TINY["clip-grad"])
        assert len(row["groups"]) >= 2
        for group in row["groups"]:
            assert group["lr"] == pytest.approx(wanted, rel=1e-12)
            assert group["max_lr"] == made.get("lr", tiny.TINY["lr"])
            assert group["weight_decay"] == pytest.approx(
                decay(step, made) * group["wd_mult"], rel=1e-12
            )
            assert group["betas"] == [0.9, tiny.TINY["adam-beta2"]]


def test_other_groups_of_the_optimizer_are_the_trunks(trunk, unchanged):
    step = AT["inside the decay"]
    of_trunk, of_branch = (
        recording.settings(run.with_suffix(".tokens")) for run in (trunk, unchanged / f"at-{step}")
    )
    assert of_branch == {each: of_trunk[each] for each in range(step, STEPS)}


# --- what a branch is -----------------------------------------------------------------------------


def test_branch_knows_its_trunk_and_a_branch_of_it_knows_the_branch(trunk, unchanged, tmp_path):
    step = AT["inside recovery"]
    first = unchanged / f"at-{step}"
    branch = read_branch(first)
    assert (branch.trunk, branch.trunk_name, branch.step) == (trunk.resolve(), "trunk", step)
    again = tmp_path / "again"
    make_branch(first / "checkpoints", step + 2, again, ["lr-wsd-decay-style=cosine"])
    assert read_branch(again).trunk == first.resolve()
    rows = tiny.metrics(again)
    assert [row["step"] for row in rows] == list(range(1, step + 3))
    assert rows[:step] == tiny.metrics(trunk)[:step]


def test_branch_of_a_run_is_refused_with_every_reason(trunk, tmp_path):
    with pytest.raises(RecipeError) as refused:
        make_branch(
            trunk,
            6,
            tmp_path / "new",
            [
                "seed=2",
                "adam-beta2=0.9",
                "moe-aux-loss-coeff=0.02",
                "micro-batch-size=1",
                "calculate-per-token-loss=true",
                "tst.superposition-steps=5",
                "tst.reset-optimizer=true",
                "tst.slot-weights=1/i",
                "tst.stream-unit-bags=8",
                "lr=0.02",
                "num-workers=1",
                "clip-grad=0.5",
            ],
        )
    said = {problem.partition(":")[0]: problem for problem in refused.value.problems}
    assert set(said) == {
        *("seed", "adam-beta2", "moe-aux-loss-coeff", "micro-batch-size"),
        *("calculate-per-token-loss", "phases", "tst.reset-optimizer"),
        *("tst.slot-weights", "tst.stream-unit-bags"),
    }
    assert said["seed"] == (
        "seed: the trunk was trained without this key, and a branch cannot change that to 2. "
        "It decides which text a step reads, and what the trunk has read would change"
    )
    assert "0.95, and a branch cannot change that to 0.9. Megatron takes it" in said["adam-beta2"]
    assert said["phases"].startswith(
        "phases: the trunk has read 4 steps with bags of 4 and 2 steps of single tokens, and with "
        "these changes its first 6 steps would have been 5 steps with bags of 4 and 1 step of"
    )
    assert "Branch at 5 or before" in said["tst.reset-optimizer"]
    assert "none follows step 6" in said["tst.slot-weights"]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("step", "changes", "problem"),
    [
        (
            STEPS,
            [],
            f"train-iters: {STEPS} steps end at step {STEPS}, and the branch begins after step "
            f"{STEPS}. Give train-iters above {STEPS}",
        ),
        (6, ["profile=bf16"], "profile: the trunk was trained with 'cpu', and a branch cannot"),
        (6, ["warp-drive=9"], "warp-drive: there is no such key"),
        (
            6,
            ["expert-model-parallel-size=1"],
            "expert-model-parallel-size 2 -> 1",
        ),
    ],
    ids=["no step left", "profile", "unknown key", "layout"],
)
def test_branch_is_refused_with_the_reason(trunk, tmp_path, step, changes, problem):
    with pytest.raises(RecipeError) as refused:
        make_branch(trunk, step, tmp_path / "new", changes)
    assert [each for each in refused.value.problems if each.startswith(problem)]
    assert not (tmp_path / "new").exists()


def test_what_changes_is_said(trunk, tmp_path):
    made = make_branch(
        trunk, 10, tmp_path / "new", ["lr=0.02", "lr-warmup-iters=3", "eval-iters=2"]
    )
    step, said = 10, "\n".join(made.notes)
    assert "eval-iters 1 -> 2: validation losses from here on are of other held-out" in said
    before, after = rate().at(step), rate(lr=0.02).at(step)
    assert (
        f"the learning rate of step 11 is {after:.3e}, where the trunk's was {before:.3e}" in said
    )
    assert "lr-warmup-iters: the warm-up is over at step 10, so this changes nothing" in said
    assert made.checked.world_size == 2 and math.isfinite(after)


def test_run_of_a_branch_says_what_it_is(unchanged):
    run = unchanged / f"at-{AT['inside recovery']}"
    log = run.with_suffix(".log").read_text()
    assert "branch of trunk at step 6: the steps up to that one are of the run in" in log
    assert json.loads((run / "branch.json").read_text())["format"] == 1
