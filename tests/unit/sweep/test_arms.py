"""The paper's arms: what each changes of a recipe, and that nothing else changes."""

import pytest
from sweep_runs import SHORT, TST

from tst_megatron.recipe.recipe import load_recipe
from tst_megatron.sweep.arms import ARMS, OF_SUPERPOSITION, arms_named
from tst_megatron.sweep.grid import read_grid
from tst_megatron.sweep.keys import differences, flat_keys, words_of
from tst_megatron.sweep.members import check_members, make_members


def arm(name, *overrides):
    """The keys of the given recipe and of an arm of it."""
    given = load_recipe(TST, [*SHORT, *overrides])
    made = load_recipe(TST, [*SHORT, *overrides, *words_of(ARMS[name].keys(given))])
    assert made.problems == ()
    return given, made


def changed(name, *overrides):
    given, made = arm(name, *overrides)
    return differences(flat_keys(given), flat_keys(made))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("tst", {}),
        ("input-only", {"tst.targets": "tokens"}),
        ("output-only", {"tst.inputs": "tokens"}),
        ("slot-weights-1-over-i", {"tst.slot-weights": "1/i"}),
        ("slot-weights-exp", {"tst.slot-weights": "exp(-i)"}),
        ("reset-embeddings", {"tst.reset-embeddings": True}),
        ("reset-optimizer", {"tst.reset-optimizer": True}),
        ("baseline", {"tst.bag-size": 1, "tst.superposition-fraction": 0.0}),
        (
            "mtp",
            {"tst.bag-size": 1, "tst.superposition-fraction": 0.0, "mtp-num-layers": 1},
        ),
    ],
)
def test_arm_changes_its_keys_and_no_other(name, keys):
    assert changed(name) == keys


def test_every_switch_of_the_block_is_turned_off_in_a_baseline():
    given = ["tst.slot-weights=1/i", "tst.reset-optimizer=true", "tst.linear-cross-entropy=true"]
    _, made = arm("baseline", *given)
    assert [key for key in flat_keys(made) if key in OF_SUPERPOSITION] == []
    _, made = arm("baseline", "tst.bag-size=1", "tst.schedule=[[4, 0.4], [1, 0.6]]")
    assert made.schedule().switch_step == 0


def test_input_only_of_weighted_slots_has_no_slots():
    assert changed("input-only", "tst.slot-weights=1/i") == {
        "tst.targets": "tokens",
        "tst.slot-weights": "uniform",
    }


@pytest.mark.parametrize(
    ("name", "steps"),
    [("longer-1.25", 50), ("longer-1.5", 60), ("longer-2", 80), ("longer-2.5", 100)],
)
def test_longer_baseline_has_more_steps_and_as_many_of_decay(name, steps):
    keys = changed(name)
    assert keys == {"tst.bag-size": 1, "tst.superposition-fraction": 0.0, "train-iters": steps}
    assert changed(name, "lr-decay-iters=38")["lr-decay-iters"] == 38 + steps - 40


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("tst.inputs=tokens",),
        ("tst.targets=tokens",),
        ("tst.bag-size=1", "tst.schedule=[[4, 0.2], [2, 0.3], [1, 0.5]]"),
    ],
)
def test_baseline_of_equal_data_reads_as_many_raw_tokens(overrides):
    given, made = (recipe.schedule() for recipe in arm("equal-data", *overrides))
    assert made.raw_tokens_before(made.num_steps) == given.raw_tokens_before(given.num_steps)
    assert made.switch_step == 0
    assert made.num_steps == (40 if overrides == ("tst.inputs=tokens",) else made.num_steps) >= 40


def test_formula_of_equal_data_is_that_of_the_table():
    steps, fraction, bag_size = 40, 0.4, 4
    assert changed("equal-data")["train-iters"] == steps * (1 + fraction * (bag_size - 1))


def test_recovery_alone_has_the_steps_after_the_switch():
    given, made = (recipe.schedule() for recipe in arm("recovery-only"))
    assert made.num_steps == given.num_steps - given.switch_step == 24


def test_names_are_read_in_their_order_and_wrong_ones_are_all_said():
    assert [each.name for each in arms_named("tst, baseline")] == ["tst", "baseline"]
    assert arms_named(None) == []
    with pytest.raises(ValueError) as caught:
        arms_named("baseline,longer-2.6,tst,tst,,input-onyl")
    said = str(caught.value).splitlines()
    assert len(said) == 4
    assert said[0].startswith("--arms: 'longer-2.6' is none of baseline, tst, input-only")
    assert said[0].endswith("Did you mean longer-2.5?")
    assert said[1] == "--arms: tst is named twice. Name it once"
    assert said[3].endswith("Did you mean input-only?")


# --- combined with a grid ------------------------------------------------------------------------


def names(arms, *grid, **changes):
    members = make_members(
        TST, SHORT, grid=read_grid(grid, ()), arms=arms_named(arms), num_seeds=1, **changes
    )
    return [run.arm for run in members.runs], members


def test_arm_is_made_once_for_the_keys_that_mean_nothing_in_it():
    found, _ = names(
        "baseline,tst,recovery-only,equal-data,reset-optimizer",
        "tst.bag-size=2,4",
        "tst.superposition-fraction=0.2,0.3",
    )
    assert [name for name in found if "baseline" in name] == ["baseline"]
    assert [name for name in found if "recovery" in name] == [
        "superposition-fraction-0.2_recovery-only",
        "superposition-fraction-0.3_recovery-only",
    ]
    assert sum("equal-data" in name for name in found) == 4
    assert sum("reset-optimizer" in name for name in found) == 4
    assert "bag-size-2_superposition-fraction-0.3_tst" in found
    assert len(found) == 1 + 4 + 2 + 4 + 4


@pytest.mark.parametrize("name", ARMS)
def test_keys_on_which_an_arm_does_not_depend_change_nothing_in_it(name):
    values = {
        "tst.bag-size": 8,
        "tst.superposition-fraction": 0.3,
        "tst.slot-weights": "1/i",
        "tst.linear-cross-entropy": True,
        "tst.reset-embeddings": True,
        "tst.reset-optimizer": True,
        "mtp-num-layers": 2,
    }
    for key, value in values.items():
        given = load_recipe(TST, [*SHORT, *words_of({key: value})])
        own = words_of({key: value, **ARMS[name].keys(given)})
        is_same = flat_keys(load_recipe(TST, [*SHORT, *own])) == flat_keys(arm(name)[1])
        assert is_same >= (key in ARMS[name].own), key


def test_bag_size_1_in_a_grid_is_the_baseline_and_is_said():
    found, members = names("baseline,tst", "tst.bag-size=1,4")
    assert found == ["baseline", "bag-size-4_tst"]
    assert members.notes == ("bag-size-1_tst would be the same run as baseline, and is left out",)


def test_every_arm_of_the_quickstart_passes_the_plain_check():
    _, members = names(",".join(ARMS))
    assert len(members.runs) == len(ARMS)
    checks, missing = check_members(members.runs, world_size=1, needs_text=False)
    assert len(checks) == len(ARMS) and len(missing) == 1
    assert {check.recipe.tst.stream_unit_bags for check in checks.values()} == {4}


def test_arms_of_a_recipe_without_steps_are_refused_for_the_steps():
    from tst_megatron.recipe.recipe import RecipeError

    grid, arms = read_grid([], ()), arms_named("equal-data,longer-2")
    members = make_members(TST, ["train-iters="], grid=grid, arms=arms, num_seeds=2)
    with pytest.raises(RecipeError) as caught:
        check_members(members.runs, world_size=1)
    assert "train-iters: is missing" in str(caught.value)


def test_arm_of_the_plan_stays_when_a_value_before_it_makes_the_same_run():
    fractions = "tst.superposition-fraction=0.2,0.3"
    found, _ = names(None, "tst.bag-size=1,4", "tst.superposition-fraction=0.3")
    plain = next(name for name in found if name.startswith("bag-size-1"))
    grown, _ = names(None, "tst.bag-size=1,4", fractions, known=found)
    assert plain in grown and set(found) < set(grown)
    alone, _ = names(None, "tst.bag-size=1,4", fractions)
    assert plain not in alone


@pytest.mark.parametrize(
    "values",
    [
        "tst.schedule=[[4, 0.2], [1, 0.8]],[[2, 0.2], [1, 0.8]]",
        "tst.superposition-steps=5,6",
        "tst.superposition-fraction=0.2,0.4",
    ],
)
def test_grid_gives_phases_in_another_way_than_the_recipe(values):
    _, members = names(None, values)
    checks = [member.recipe.schedule().phases for member in members.runs]
    assert len(set(checks)) == 2 and not any(member.recipe.problems for member in members.runs)
