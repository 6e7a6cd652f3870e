"""The arms that are shipped beside each model: each is generated, and passes its check."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import update_ablations  # noqa: E402

from tst_megatron.recipe.check.plain import check_plainly  # noqa: E402
from tst_megatron.recipe.recipe import load_recipe  # noqa: E402
from tst_megatron.sweep.arms import ARMS  # noqa: E402
from tst_megatron.sweep.keys import flat_keys  # noqa: E402

ORDINARY = ("baseline", "mtp", "longer-", "equal-data", "recovery-only")
MODELS = {path.name: path for path in update_ablations.MODELS}

pytestmark = pytest.mark.usefixtures("outside_a_job")


def test_table_and_recipes_are_up_to_date():
    """If not: ``python tools/update_ablations.py``."""
    assert update_ablations.stale() == []
    assert {"llama-270m", "llama-3b", "llama-600m", "quickstart", "qwen3-10b-a1b"} <= MODELS.keys()


@pytest.mark.parametrize("model", MODELS)
def test_every_arm_of_a_model_is_there_and_has_no_problem_but_its_text(model):
    folder = MODELS[model] / update_ablations.FOLDER
    arms = {path.stem: path for path in folder.glob("*.yaml")}
    # The given recipe and, where its steps are those of the pair, the baseline are at hand.
    assert ARMS.keys() - arms.keys() <= {"tst", "baseline"} and arms.keys() <= ARMS.keys()
    unit = load_recipe(MODELS[model] / "tst.yaml").tst.unit_chunks()
    for name, path in arms.items():
        checked = check_plainly(load_recipe(path), has_text=False)
        assert checked.recipe.tst.unit_chunks() == unit, path
        assert (checked.schedule.switch_step == 0) == name.startswith(ORDINARY), path


def test_recipe_is_a_few_lines_that_say_what_it_is_and_where_it_is_from():
    path = MODELS["llama-3b"] / update_ablations.FOLDER / "longer-2.5.yaml"
    assert path.read_text() == (
        "# The baseline with 2.5 times the steps: when is its loss equal?\n"
        "# Source: paper, tables 1 and 3.\n"
        "base: ../baseline.yaml\n\ntrain-iters: 50000\n"
    )
    assert load_recipe(path).megatron["lr-wsd-decay-iters"] == 2000


def test_stale_recipes_are_found(monkeypatch, tmp_path):
    wanted = update_ablations.files()
    path = next(path for path in wanted if path.suffix == ".yaml")
    monkeypatch.setattr(update_ablations, "files", lambda: {**wanted, path: "another"})
    assert update_ablations.stale() == [path]
    less = {key: value for key, value in wanted.items() if key != path}
    monkeypatch.setattr(update_ablations, "files", lambda: less)
    assert update_ablations.stale() == [path]


def test_longer_baseline_of_the_10b_model_is_that_of_the_paper():
    """Rounded: the paper's baseline has 125,000 steps, and its other arm 49,983."""
    folder = MODELS["qwen3-10b-a1b"] / update_ablations.FOLDER
    keys = flat_keys(load_recipe(folder / "longer-2.5.yaml"))
    assert abs(keys["train-iters"] - 125_000) < 50
