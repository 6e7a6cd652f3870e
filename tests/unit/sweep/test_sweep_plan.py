"""The plan of a sweep: its files, how it grows, and what is refused before anything is written."""

import json
from dataclasses import replace

import pytest
from rich.console import Console
from sweep_runs import FAKE, SHORT, TST, options

from tst_megatron.recipe.check.plain import check_plainly
from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.sweep import command
from tst_megatron.sweep.plan import read_plan

pytestmark = pytest.mark.usefixtures("outside_a_job")


@pytest.fixture
def planned(text, tmp_path):
    """Plan a sweep and return what it printed: ``planned(*overrides, **options)``."""

    def plan(*overrides, status=0, **changes):
        console = Console(record=True, width=200, quiet=False, file=open("/dev/null", "w"))
        given = {"plan_only": True, "text": text, **changes}
        made = options(tmp_path / "sweep", *overrides, **given)
        assert command.sweep(made, console, command=FAKE) == status
        return console.export_text()

    return plan


def files(folder):
    found = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {str(path.relative_to(folder)): found[path] for path in found if path.name != "lock"}


def begin(folder):
    """Make the folder of the first run, as its start does."""
    run = read_plan(folder).runs[0]
    (folder / "runs" / run.name).mkdir(parents=True)


GRID = ("tst.bag-size=2,4", "tst.superposition-fraction=0.25,0.4")


def test_plan_is_a_folder_of_recipes_that_pass_their_check(planned, tmp_path, monkeypatch):
    said = planned(grid=GRID, seeds=2)
    plan = read_plan(tmp_path / "sweep")
    assert [run.name for run in plan.runs] == [
        f"bag-size-{bag_size}_superposition-fraction-{fraction}_seed-{seed}"
        for seed in (1234, 1235)
        for bag_size in (2, 4)
        for fraction in (0.25, 0.4)
    ]
    monkeypatch.chdir(tmp_path)
    for run in plan.runs:
        checked = check_plainly(load_recipe(plan.recipe(run.name)), world_size=1)
        assert checked.values.seed == run.seed and run.name.startswith(run.arm)
        assert checked.recipe.tst.stream_unit_bags == 4
        assert checked.schedule.num_steps == run.num_steps == 40
        assert f"bag-size-{checked.recipe.tst.bag_size}_" in run.name
    # 0.25 switches after step 10, and 0.4 goes on from there.
    assert [run.trunk.step if run.trunk else None for run in plan.runs] == [None, 10] * 4
    assert "8 runs, 280 steps instead of 320: 4 branches save 12%" in said
    assert "all arms read the stream in units of 4 chunks" in said
    rows = [line.split() for line in said.splitlines() if "seed-1234" in line]
    assert rows[1] == ["└─", plan.runs[1].name, "40", "30", "10"]
    said = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert said["runs"][1]["trunk"] == {"name": plan.runs[0].name, "step": 10}


def test_all_runs_of_a_seed_read_one_permutation(planned, text, tmp_path):
    """In the end that is what the seed and the unit are for."""
    planned(grid=["tst.bag-size=2,3"], seeds=2, arms="tst,baseline")
    plan = read_plan(tmp_path / "sweep")
    assert plan.unit_chunks == 6
    order = {}
    for run in plan.runs:
        stream = check_plainly(load_recipe(plan.recipe(run.name)), world_size=1).stream
        units = tuple(stream.place(sample).unit for sample in range(1))
        order.setdefault(run.seed, set()).add((stream.seed, stream.unit_chunks))
    assert order == {1234: {(1234, 6)}, 1235: {(1235, 6)}} and units


def test_unit_of_the_recipe_stays_where_every_bag_size_divides_it(planned, tmp_path):
    planned("tst.stream-unit-bags=8", grid=["tst.bag-size=2,4"])
    assert read_plan(tmp_path / "sweep").unit_chunks == 8


def test_without_shared_trunks_every_run_trains_all_of_its_steps(planned, tmp_path):
    said = planned(grid=GRID, share_trunks=False)
    assert {run.trunk for run in read_plan(tmp_path / "sweep").runs} == {None}
    assert "4 runs, 160 steps\n" in said


def test_runs_of_two_seeds_share_nothing(planned, tmp_path):
    planned(seeds=3)
    assert [run.trunk for run in read_plan(tmp_path / "sweep").runs] == [None] * 3
    assert [run.name for run in read_plan(tmp_path / "sweep").runs][0] == "tst_seed-1234"


def test_same_command_changes_no_file(planned, tmp_path):
    planned(grid=GRID)
    before = files(tmp_path / "sweep")
    planned(grid=GRID)
    assert files(tmp_path / "sweep") == before and len(before) == 6


def test_more_values_arms_and_seeds_add_runs_and_change_none(planned, tmp_path):
    planned(grid=["tst.superposition-fraction=0.4"])
    begin(tmp_path / "sweep")
    before = files(tmp_path / "sweep")
    planned(grid=["tst.superposition-fraction=0.25,0.4"], seeds=2)
    after = files(tmp_path / "sweep")
    assert {name: after[name] for name in before if name != "sweep.json"} == {
        name: before[name] for name in before if name != "sweep.json"
    }
    plan = read_plan(tmp_path / "sweep")
    trunks = {run.name.removeprefix("superposition-fraction-"): run.trunk for run in plan.runs}
    # The first run may have been trained without a checkpoint of step 10, and stays what it is.
    assert [*trunks] == ["0.4_seed-1234", "0.25_seed-1234", "0.25_seed-1235", "0.4_seed-1235"]
    assert trunks["0.4_seed-1234"] is trunks["0.25_seed-1234"] is None
    assert trunks["0.4_seed-1235"].step == 10


@pytest.mark.parametrize(
    ("overrides", "changes", "said"),
    [
        (("lr=3e-3",), {}, "lr was 0.002 in .*sweep, and is now 0.003. Give the old value, or"),
        ((), {"grid": ["tst.bag-size=4"]}, "has the run bag-size-2_seed-1234, which this command"),
        ((), {"grid": ["tst.bag-size=2,3,4"]}, "units of 4 chunks, and these bag sizes need 12"),
        ((), {"grid": ["lr=1e-3,2e-3"]}, "has the run bag-size-2_seed-1234, which this command"),
    ],
)
def test_command_that_would_change_a_run_is_refused(planned, tmp_path, overrides, changes, said):
    planned(grid=["tst.bag-size=2,4"])
    begin(tmp_path / "sweep")
    before = files(tmp_path / "sweep")
    with pytest.raises(RecipeError, match=said):
        planned(*overrides, **{"grid": ["tst.bag-size=2,4"], **changes})
    assert files(tmp_path / "sweep") == before


def test_plan_of_which_no_run_has_begun_may_be_another(planned, tmp_path):
    """Such as after Megatron has refused a recipe, or after a look at ``--plan``."""
    planned(grid=["tst.bag-size=2,4"])
    planned("lr=3e-3", grid=["tst.bag-size=3"], arms="tst,baseline")
    plan = read_plan(tmp_path / "sweep")
    assert [run.arm for run in plan.runs] == ["bag-size-3_tst", "baseline"]
    recipes = {path.stem: load_recipe(path) for path in (tmp_path / "sweep/recipes").iterdir()}
    assert recipes.keys() == plan.trunks().keys()
    assert {recipe.megatron["lr"] for recipe in recipes.values()} == {0.003}


def test_recipe_that_somebody_has_edited_is_refused(planned, tmp_path):
    planned(grid=["tst.bag-size=2,4"])
    begin(tmp_path / "sweep")
    path = tmp_path / "sweep" / "recipes" / "bag-size-2_seed-1234.yaml"
    text = path.read_text()
    path.write_text(text.replace("weight-decay: 0.1", "weight-decay: 0.2"))
    with pytest.raises(RecipeError, match=r"weight-decay was 0.2 in .*, and is now 0.1"):
        planned(grid=["tst.bag-size=2,4"])
    path.write_text(f"{text}weight-decay: 0.2\n")
    with pytest.raises(RecipeError, match=r"weight-decay: stands on line \d+ and again on line"):
        planned(grid=["tst.bag-size=2,4"])


# --- refused before anything is written ----------------------------------------------------------


def refused(planned, tmp_path, *overrides, **changes):
    with pytest.raises(ValueError) as caught:
        planned(*overrides, **changes)
    assert not (tmp_path / "sweep").exists()
    return str(caught.value).splitlines()


def test_all_problems_of_all_arms_are_said_with_their_arms(planned, tmp_path):
    said = refused(
        planned,
        tmp_path,
        "weight-decay=x",
        grid=["tst.bag-size=2,four", "lr=1e-3,-1"],
        seeds=2,
    )
    assert said[0].startswith("all 4 arms: weight-decay: ")
    of_lr = [line for line in said if ": lr: " in line]
    assert len(of_lr) == 1
    assert of_lr[0].startswith("bag-size-2_lr--1, bag-size-four_lr--1: lr: ")
    of_size = [line for line in said if "'four' is not a whole number" in line]
    assert len(of_size) == 1 and of_size[0].startswith("bag-size-four_lr-0.001, bag-size-four_lr")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "a single run needs none. Give --grid, --arms or --seeds"),
        ({"grid": ["seed=1,2"]}, "--grid seed: give --seeds N"),
        ({"arms": "longest", "grid": ["lr"]}, "--arms: 'longest' is none of"),
        ({"grid": ["no-such-key=1,2"]}, "no-such-key"),
        ({"grid": ["expert-model-parallel-size=3,5"], "nproc": 2}, "expert-model-parallel-size"),
    ],
)
def test_wrong_option_is_refused_in_words(planned, tmp_path, changes, said):
    assert any(said in line for line in refused(planned, tmp_path, **changes))


def test_wrong_seed_is_refused(planned, tmp_path):
    assert refused(planned, tmp_path, "seed=one", seeds=2) == ["seed: 'one' is not a whole number"]


def test_missing_text_is_only_said_with_a_plan_and_refused_before_training(planned, tmp_path):
    folder = tmp_path / "no-text"
    assert f"data: {folder}: no such manifest" in planned(text=folder, seeds=2)
    with pytest.raises(RecipeError, match=r"^tst: data: .*no such manifest"):
        planned(text=folder, seeds=2, plan_only=False)


@pytest.mark.parametrize("name", ["a file", "sweep.json", "runs"])
def test_folder_of_something_else_is_refused(planned, tmp_path, name):
    folder = tmp_path / "sweep"
    folder.mkdir()
    if name == "runs":
        (folder / name).mkdir()
    else:
        (folder / name).write_text('{"format": 2, "stream unit bags": 4, "runs": []}')
    before = sorted(folder.rglob("*"))
    said = "has the format 2" if name == "sweep.json" else "is not empty, and has no sweep.json"
    with pytest.raises(ValueError, match=said):
        planned(seeds=2)
    assert sorted(folder.rglob("*")) == before


RUN = {"name": "b", "arm": "b", "seed": 1, "steps": 4}
DAMAGED = [
    *("", "{", "[]", '{"format": 1, "stream unit bags": 4}'),
    *(
        json.dumps({"format": 1, "stream unit bags": 4, "runs": runs})
        for runs in (
            [7],
            [{**RUN, "steps": "4"}],
            [RUN, RUN],
            [{**RUN, "trunk": {"name": "a", "step": 2}}],
            [{**RUN, "trunk": {"name": "b"}}],
        )
    ),
]


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_plan_is_refused_in_words(planned, tmp_path, damage):
    planned(seeds=2)
    (tmp_path / "sweep" / "sweep.json").write_text(damage)
    with pytest.raises(ValueError, match=r"sweep.json: .*Bring it back, or use another --output"):
        planned(seeds=2)


def test_file_in_the_place_of_the_folder_is_refused(planned, tmp_path):
    (tmp_path / "sweep").write_text("")
    with pytest.raises(ValueError, match="is not a folder"):
        planned(seeds=2)


def test_what_a_killed_first_call_has_left_is_written_again(planned, tmp_path):
    planned(grid=["lr=1e-3,2e-3"])
    (tmp_path / "sweep" / "sweep.json").unlink()
    planned(grid=["lr=1e-3,3e-3"], arms="tst")
    plan = read_plan(tmp_path / "sweep")
    rates = [load_recipe(plan.recipe(run.name)).megatron["lr"] for run in plan.runs]
    assert rates == [0.001, 0.003]


def test_ranks_are_the_fewest_that_hold_the_models():
    from types import SimpleNamespace as Check

    given = options("out", seeds=2)
    sizes = {"one": Check(world_size=2), "two": Check(world_size=2)}
    assert command._num_ranks(given, sizes) == 2
    assert command._num_ranks(given, {"one": Check(world_size=1)}) is None
    sizes["two"].world_size = 4
    assert command._num_ranks(replace(given, nproc=8), sizes) == 8
    with pytest.raises(ValueError, match="the arms need 2, 4 ranks at the least"):
        command._num_ranks(given, sizes)


def test_megatron_is_asked_once_for_each_shape(monkeypatch):
    from sweep_runs import checked

    one = command._shape(checked(*SHORT))
    for word in ("lr=1e-3", "seed=3", "train-iters=50", "weight-decay=0.2", "tst.bag-size=2"):
        assert command._shape(checked(*SHORT, word)) == one, word
    for word in ("num-layers=2", "num-experts=4", "profile=bf16", "micro-batch-size=4"):
        assert command._shape(checked(*SHORT, word)) != one, word


def test_recipe_names_the_one_that_was_given(planned, tmp_path):
    planned(arms="input-only,tst", seeds=1)
    folder = tmp_path / "sweep"
    base = (folder / "base.yaml").read_text()
    assert base.startswith(f"# {TST}, with what the command line gave.")
    lines = (folder / "recipes" / "input-only_seed-1234.yaml").read_text().splitlines()
    assert lines[:3] == [
        "# A latent position reads a bag and predicts the one token after it.",
        "# Beside base.yaml: tst.targets=tokens",
        "num-layers: 4",
    ]
    assert not [line for line in lines if line.startswith("base:")]
    lines = (folder / "recipes" / "tst_seed-1234.yaml").read_text().splitlines()
    assert lines[:2] == ["# The given recipe, with token superposition.", "num-layers: 4"]
