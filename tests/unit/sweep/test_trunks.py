"""Which steps runs have in common: against a step-by-step comparison, for many random schedules."""

import itertools
import random
from functools import cache

import pytest
from sweep_runs import checked

from tst_megatron.sweep.keys import branch_differences, flat_keys, from_anywhere, words_of
from tst_megatron.sweep.trunks import (
    Course,
    Trunk,
    in_turns,
    levels,
    num_common_steps,
    num_own_steps,
    plan_trunks,
)
from tst_megatron.training.branch.recipe import recipe_of_branch
from tst_megatron.training.run.identity import OF_THE_PHASES

BASE = ("train-iters=20", "lr-warmup-iters=3", "lr-wsd-decay-iters=6", "eval-interval=50")


EVALUATED = ("eval-iters=1", "expert-model-parallel-size=1", "tst.stream-unit-bags=4")


@cache
def recipe_of(*overrides):
    return checked(*BASE, *EVALUATED, *overrides).recipe


@cache
def course(*overrides):
    return Course.of(checked(*BASE, *EVALUATED, *overrides))


def drawn(draw):
    """A random run; several of the keys are often those of another one."""
    steps = draw.choice([12, 20, 20, 28, 40])
    warmup = draw.choice([2, 3, 3, 3])
    words = [f"train-iters={steps}", f"lr-warmup-iters={warmup}"]
    style = draw.choice(["WSD", "WSD", "WSD", "cosine", "constant"])
    words.append(f"lr-decay-style={style}")
    if style == "WSD":
        words.append(f"lr-wsd-decay-iters={draw.choice([4, 6, 6])}")
        words.append(f"lr-wsd-decay-style={draw.choice(['linear', 'linear', 'cosine'])}")
    bags = [draw.choice([1, 2, 4, 4])]
    if draw.random() < 0.3:
        words += ["tst.bag-size=1", f"tst.schedule=[[4, {draw.choice([3, 5])}], [2, 3], [1, null]]"]
        words[-1] = words[-1].replace("null", str(steps - 3 - int(words[-1][18])))
        words.append("tst.superposition-fraction=0.0")
        bags = [4]
    else:
        part = draw.choice([0.25, 0.25, 0.5])
        words += [f"tst.bag-size={bags[0]}", f"tst.superposition-fraction={part}"]
    if bags[0] > 1:
        if draw.random() < 0.2:
            words.append(f"tst.{draw.choice(['inputs', 'targets'])}=tokens")
        elif draw.random() < 0.2:
            words.append("tst.slot-weights=1/i")
        if draw.random() < 0.25:
            words.append(f"tst.reset-{draw.choice(['embeddings', 'optimizer'])}=true")
    words.append(f"lr={draw.choice(['1e-3', '1e-3', '1e-3', '2e-3'])}")
    return tuple(words)


def step_by_step(one, other):
    """The number of leading steps that do the same, from the definition."""

    def does(run, step):
        phase = next(p for p in run.schedule.phases if p.first_step <= step < p.last_step)
        is_bag = phase.bag_size > 1
        switch = run.schedule.phases[-1].first_step
        return (
            phase.bag_size,
            phase.num_inputs,
            phase.num_targets,
            run.tst.slot_weights if is_bag else None,
            run.rate.at(step),
            run.tst.reset_embeddings and step == switch,
            run.tst.reset_optimizer and step == switch,
        )

    count = 0
    for step in range(min(one.num_steps, other.num_steps)):
        if does(one, step) != does(other, step):
            break
        count += 1
    return count


def random_words(seed, number):
    draw = random.Random(seed)
    return list(dict.fromkeys(drawn(draw) for _ in range(3 * number)))[:number]


def random_courses(seed, number):
    return [course(*words) for words in random_words(seed, number)]


def random_recipes(seed, number):
    return [(course(*words), recipe_of(*words)) for words in random_words(seed, number)]


@pytest.mark.parametrize("seed", range(6))
def test_common_steps_are_those_of_a_comparison_step_by_step(seed):
    found = random_courses(seed, 8)
    counts = []
    for one, other in itertools.product(found, found):
        count = num_common_steps(one, other)
        assert count == step_by_step(one, other)
        counts.append(count)
    # Not all of them nothing or everything.
    assert any(0 < count < 12 for count in counts)


@pytest.mark.parametrize("seed", range(8))
def test_no_order_of_the_runs_trains_fewer_steps(seed):
    runs = {f"run-{number}": each for number, each in enumerate(random_courses(100 + seed, 5))}
    trunks = plan_trunks(runs)
    assert own_steps(runs, trunks) == min(
        own_steps(runs, greedily(order, runs)) for order in itertools.permutations(runs)
    )


def own_steps(runs, trunks):
    return sum(num_own_steps(runs[name], trunks[name]) for name in runs)


def greedily(order, runs):
    """The best trunks where runs may branch from those before them alone."""
    found = {}
    for name in order:
        options = [
            Trunk(name=other, step=step)
            for other, trunk in found.items()
            for step in runs[other].forks
            if (trunk.step if trunk else 0) < step <= step_by_step(runs[other], runs[name])
            and step < runs[name].num_steps
        ]
        found[name] = max(options, key=lambda each: each.step, default=None)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_every_branch_takes_a_checkpoint_that_its_trunk_makes_and_keeps(seed):
    runs = {f"run-{number}": each for number, each in enumerate(random_courses(500 + seed, 9))}
    trunks = plan_trunks(runs)
    assert trunks.keys() == runs.keys()
    seen = []
    for name, trunk in trunks.items():
        if trunk:
            assert trunk.name in seen
            of_trunk = trunks[trunk.name]
            assert trunk.step in runs[trunk.name].forks
            assert trunk.step > (of_trunk.step if of_trunk else 0)
            assert 0 < trunk.step <= step_by_step(runs[trunk.name], runs[name])
            assert num_own_steps(runs[name], trunk) > 0
        seen.append(name)


@pytest.mark.parametrize("seed", range(8))
def test_keys_of_a_branch_make_its_recipe_of_that_of_its_trunk(seed):
    runs = {f"run-{number}": each for number, each in enumerate(random_recipes(700 + seed, 9))}
    trunks = plan_trunks({name: found for name, (found, _) in runs.items()})
    for name, trunk in trunks.items():
        if trunk:
            (of_trunk, before), (own, recipe) = runs[trunk.name], runs[name]
            phases = [[phase.bag_size, phase.num_steps] for phase in of_trunk.schedule.phases]
            words = words_of(branch_differences(before, recipe))
            made = recipe_of_branch({**before.resolved(), "phases": phases}, words)
            assert made.problems == ()
            assert made.schedule() == own.schedule
            assert of_no_phase(made) == of_no_phase(recipe)


def of_no_phase(recipe):
    keys = flat_keys(from_anywhere(recipe))
    return {key: keys[key] for key in keys if key.removeprefix("tst.") not in OF_THE_PHASES}


def test_share_of_superposition_moves_the_switch_of_a_longer_branch():
    """The command keeps a switch at its step unless it is told otherwise."""
    before, own = (checked(*BASE, *TST, *EVALUATED, f"train-iters={n}") for n in (20, 40))
    assert branch_differences(before.recipe, own.recipe) == {
        "train-iters": 40,
        "tst.bag-size": 4,
        "tst.superposition-fraction": 0.4,
        "tst.superposition-steps": None,
        "tst.schedule": None,
    }


# --- by hand -------------------------------------------------------------------------------------

TST = ("tst.bag-size=4", "tst.superposition-fraction=0.4")
ORDINARY = ("tst.bag-size=1", "tst.superposition-fraction=0.0")


def planned(**words):
    runs = {name.replace("_", "-"): course(*each) for name, each in words.items()}
    found = plan_trunks(runs)
    return {name: (trunk.name, trunk.step) if trunk else None for name, trunk in found.items()}


def test_recoveries_of_one_superposition_branch_at_the_switch():
    assert planned(
        tst=TST,
        reset=(*TST, "tst.reset-embeddings=true"),
        longer=(*TST, "train-iters=40", "tst.superposition-fraction=0.2"),
        other_decay=(*TST, "lr-wsd-decay-iters=4"),
    ) == {
        "tst": None,
        "reset": ("tst", 8),
        "other-decay": ("tst", 14),
        "longer": ("other-decay", 16),
    }


def test_longer_baselines_branch_where_the_decay_of_a_shorter_one_starts():
    runs = {f"steps_{steps}": (*ORDINARY, f"train-iters={steps}") for steps in (40, 20, 28)}
    assert planned(**runs) == {
        "steps-20": None,
        "steps-28": ("steps-20", 14),
        "steps-40": ("steps-28", 22),
    }


@pytest.mark.parametrize(
    "word",
    [
        "seed=7",
        "lr=3e-3",
        "lr-warmup-iters=2",
        "weight-decay=0.2",
        "hidden-size=64",
        "num-experts=4",
        "data={elsewhere: 1.0}",
        "tst.stream-unit-bags=8",
        "tst.max-epochs=2",
        "tst.slot-weights=1/i",
        "tst.targets=tokens",
        "eval-interval=10",
        "micro-batch-size=4",
    ],
)
def test_runs_that_differ_from_the_first_step_on_share_nothing(word):
    # A warm-up begins at 0 in any case.
    expected = 1 if word.startswith(("lr=", "lr-warmup")) else 0
    assert num_common_steps(course(*TST), course(*TST, word)) == expected
    assert planned(one=TST, other=(*TST, word)) == {"one": None, "other": None}


def test_weights_that_decay_more_and_more_depend_on_the_length():
    growing = (
        *ORDINARY,
        *("weight-decay-incr-style=linear", "start-weight-decay=0.0", "end-weight-decay=0.1"),
    )
    assert num_common_steps(course(*growing), course(*growing, "train-iters=40")) == 0
    assert num_common_steps(course(*ORDINARY), course(*ORDINARY, "train-iters=40")) == 15


def test_output_superposition_alone_is_no_baseline():
    assert num_common_steps(course(*TST, "tst.inputs=tokens"), course(*ORDINARY)) == 0


def test_known_runs_keep_their_place_and_new_ones_may_branch_from_any_of_them():
    runs = {
        "long": course(*ORDINARY, "train-iters=40"),
        "short": course(*ORDINARY),
        "longest": course(*ORDINARY, "train-iters=40", "lr-wsd-decay-iters=4"),
    }
    found = plan_trunks(runs, {"long": None})
    assert found["long"] is None
    assert found["short"] is None, "the long one has no checkpoint of that step"
    assert found["longest"] == Trunk(name="long", step=34)


def test_levels_and_turns_of_a_forest():
    trunks = {
        "a": None,
        "b": Trunk(name="a", step=1),
        "c": Trunk(name="b", step=2),
        "d": None,
        "e": Trunk(name="a", step=1),
    }
    assert levels(trunks) == [["a", "d"], ["b", "e"], ["c"]]
    assert in_turns(["d", "c", "e", "b", "a"], trunks) == ["d", "a", "b", "c", "e"]
