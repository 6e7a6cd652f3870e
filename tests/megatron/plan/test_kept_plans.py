"""A plan that is kept in a run's folder: by hand before a run, or by the run at its first step."""

import pytest
import tiny
import yaml
from typer.testing import CliRunner

from tst_megatron.megatron.cpu import host

host.install()

from tst_megatron.cli.app import app
from tst_megatron.recipe.recipe import load_recipe
from tst_megatron.training.report.facts_of_run import plan_of_facts
from tst_megatron.training.report.plan_file import read_plan, write_plan
from tst_megatron.training.run.folder import RunFolder

RECIPE = {**tiny.TINY, "tst": {"bag-size": 4}}


@pytest.fixture
def kept(tmp_path):
    """The folder of a run that was planned for 8 GPUs, and nothing else."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    run = RunFolder(tmp_path / "runs" / "new")
    words = ["plan", str(recipe), "--gpus", "8", "--gpu", "h100", "--run-folder", str(run.path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return run


def test_plan_is_kept_in_a_folder_that_a_run_can_begin_in(kept):
    plan = read_plan(kept.plan)
    assert (plan["cost"]["gpu"], plan["cost"]["gpus"]) == ("h100", 8)
    assert [path.name for path in kept.path.iterdir()] == ["plan.json"]


def test_run_that_nobody_planned_makes_the_same_plan_of_what_it_counts(kept, tmp_path):
    schedule = load_recipe(tmp_path / "recipe.yaml").schedule()
    by_hand = read_plan(kept.plan)["cost"]
    facts = {
        "device": "NVIDIA H100 80GB HBM3",
        "world size": 8,
        "parameters": {"active": by_hand["active parameters"]},
        "FLOPs per step": by_hand["this run"]["flops"] / by_hand["this run"]["steps"],
    }
    made = plan_of_facts(schedule, facts, is_moe=True)
    write_plan(tmp_path / "plan.json", made)
    cost = read_plan(tmp_path / "plan.json")["cost"]
    assert cost["this run"]["gpu hours"] == pytest.approx(by_hand["this run"]["gpu hours"])
    for key in ("gpu", "gpus", "mfu", "mfu range", "dollars per gpu hour", "peak flops per gpu"):
        assert cost[key] == by_hand[key], key
    for key in ("steps", "raw tokens by phase"):
        assert cost["this run"][key] == by_hand["this run"][key]


@pytest.mark.parametrize("device", ["cpu", "NVIDIA A100-SXM4-80GB", "Tesla T4"])
def test_run_on_a_device_without_a_known_price_makes_none(device, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    schedule = load_recipe(tmp_path / "recipe.yaml").schedule()
    facts = {"device": device, "world size": 1, "parameters": {"active": 1}, "FLOPs per step": 1.0}
    assert plan_of_facts(schedule, facts, is_moe=True) is None
