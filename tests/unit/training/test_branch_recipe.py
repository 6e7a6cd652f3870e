"""The recipe of a branch: all that the trunk was, in one file, with the changes."""

import pytest

from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.recipe.tst_config import TSTConfig
from tst_megatron.schedule import phases_until
from tst_megatron.training.branch.recipe import recipe_of_branch, text_of_recipe


def trunk(tst, phases, **keys):
    """What a run folder keeps of a run."""
    return {
        "lr": 1e-2,
        "train-iters": 20,
        "seq-length": 8,
        "global-batch-size": 2,
        "seed": None,
        **keys,
        "profile": "cpu",
        "data": {"/text": 1.0},
        "tst": {**TSTConfig().as_keys(), **tst},
        "phases": phases,
        "given by the profile": {"transformer-impl": "local"},
        "training text": ["ab12"],
    }


SHARE = trunk({"bag-size": 4, "superposition-fraction": 0.4}, [[4, 8], [1, 12]])
STEPS = trunk({"bag-size": 4, "superposition-steps": 8}, [[4, 8], [1, 12]])
THREE = trunk({"schedule": [[4, 0.25], [2, 0.25], [1, 0.5]]}, [[4, 5], [2, 5], [1, 10]])
PLAIN = trunk({}, [[1, 20]])


def phases(recipe):
    return [[each.bag_size, each.num_steps] for each in recipe.schedule().phases]


@pytest.mark.parametrize("before", [SHARE, STEPS, THREE, PLAIN], ids=["share", "steps", "3", "1"])
def test_unchanged_recipe_is_the_trunks(before):
    recipe = recipe_of_branch(before, [])
    assert recipe.problems == ()
    assert phases(recipe) == before["phases"]
    assert recipe.megatron == {key: before[key] for key in recipe.megatron}
    assert set(recipe.megatron) == {
        *("lr", "train-iters", "seq-length", "global-batch-size"),
        "seed",
    }
    assert recipe.tst.stream_unit_bags == max(bag_size for bag_size, _ in before["phases"])


@pytest.mark.parametrize(
    ("before", "changes", "wanted"),
    [
        # A switch stays where it was, in steps.
        (SHARE, ["train-iters=30"], [[4, 8], [1, 22]]),
        (THREE, ["train-iters=30"], [[4, 5], [2, 5], [1, 20]]),
        (PLAIN, ["train-iters=30"], [[1, 30]]),
        # Whoever names phases says them, and what is not named stays.
        (SHARE, ["tst.superposition-steps=10"], [[4, 10], [1, 10]]),
        (STEPS, ["tst.superposition-fraction=0.5"], [[4, 10], [1, 10]]),
        (STEPS, ["tst.superposition-fraction=0.5", "train-iters=30"], [[4, 15], [1, 15]]),
        (STEPS, ["tst.schedule=[[4, 8], [2, 2], [1, 10]]"], [[4, 8], [2, 2], [1, 10]]),
        (STEPS, ["tst.bag-size=2"], [[2, 8], [1, 12]]),
        (THREE, ["tst.bag-size=4", "tst.superposition-steps=5"], [[4, 5], [1, 15]]),
        (STEPS, ["tst={bag-size: 4, superposition-fraction: 0.45}"], [[4, 9], [1, 11]]),
    ],
)
def test_phases_that_are_named_change_and_others_stay(before, changes, wanted):
    recipe = recipe_of_branch(before, changes)
    assert recipe.problems == ()
    assert phases(recipe) == wanted


def test_unit_of_the_stream_stays_that_of_the_trunk():
    recipe = recipe_of_branch(THREE, ["tst.schedule=[[2, 5], [1, 15]]"])
    assert recipe.tst.stream_unit_bags == 4
    own = recipe_of_branch({**THREE, "tst": {**THREE["tst"], "stream-unit-bags": 8}}, [])
    assert own.tst.stream_unit_bags == 8


def test_recipe_is_one_file_that_says_everything_and_where_it_comes_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {**SHARE, "data": {"text": 0.5, "/other": 2.0}}
    recipe = recipe_of_branch(before, ["lr=5e-3", "tst.reset-optimizer=true"])
    path = tmp_path / "recipe.yaml"
    path.write_text(text_of_recipe(recipe, trunk=tmp_path / "r\u00fcn\nx: 1", step=12))
    again = load_recipe(path)
    assert again.problems == ()
    assert (again.megatron, again.tst, again.profile) == (recipe.megatron, recipe.tst, "cpu")
    assert again.megatron["lr"] == 5e-3
    assert again.tst.reset_optimizer
    # From any working folder.
    assert {str(folder): weight for folder, weight in again.data.items()} == {
        str(tmp_path / "text"): 0.5,
        "/other": 2.0,
    }
    assert "base" not in path.read_text()
    assert "after step 12" in path.read_text().partition("\n")[0]


@pytest.mark.parametrize("change", ["lr", "=3", "base=other.yaml"])
def test_change_that_is_none_is_refused(change):
    with pytest.raises(RecipeError):
        recipe_of_branch(SHARE, [change])


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (0, []),
        (3, [[4, 3]]),
        (5, [[4, 5]]),
        (7, [[4, 5], [2, 2]]),
        (20, [[4, 5], [2, 5], [1, 10]]),
        (99, [[4, 5], [2, 5], [1, 10]]),
    ],
)
def test_phases_until_a_step(step, wanted):
    assert phases_until(THREE["phases"], step) == wanted
