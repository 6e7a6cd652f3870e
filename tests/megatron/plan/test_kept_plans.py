"""A plan that is kept in a run's folder: by hand before a run, or by the run at its start."""

from types import SimpleNamespace

import pytest
import tiny
import yaml
from typer.testing import CliRunner

from tst_megatron.cli.app import app
from tst_megatron.system.machine import nvidia_smi
from tst_megatron.training.check import planning
from tst_megatron.training.report.plan_file import read_plan
from tst_megatron.training.run.folder import RunFolder


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**tiny.TINY, "tst": {"bag-size": 4}}))
    return path


def gpus(monkeypatch, *names):
    answer = nvidia_smi.Answer(rows=tuple((name,) for name in names), problem=None)
    monkeypatch.setattr(nvidia_smi, "ask", lambda *_, **__: answer)


def test_plan_is_kept_in_a_folder_that_a_run_can_begin_in(tmp_path, recipe):
    run = RunFolder(tmp_path / "runs" / "new")
    words = ["plan", str(recipe), "--gpus", "8", "--gpu", "h100", "--run-folder", str(run.path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    plan = read_plan(run.plan)
    assert (plan["cost"]["gpu"], plan["cost"]["gpus"]) == ("h100", 8)
    assert [path.name for path in run.path.iterdir()] == ["plan.json"]


def test_run_on_known_gpus_plans_itself_beside_its_training(tmp_path, recipe, monkeypatch):
    gpus(monkeypatch, "NVIDIA H200", "NVIDIA H200")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = RunFolder(tmp_path / "run")
    run.logs.mkdir(parents=True)
    run.resolved.write_text("what a prepared folder has")
    process = planning.plan_in_background([str(recipe), "train-iters=20"], run, num_gpus=2)
    assert process.wait(timeout=300) == 0, (run.logs / planning.LOG).read_text()
    cost = read_plan(run.plan)["cost"]
    assert (cost["gpu"], cost["gpus"], cost["arms"][0]["steps"]) == ("h200", 2, 20)


@pytest.mark.parametrize("names", [(), ("NVIDIA A100-SXM4-80GB",), ("Tesla T4",)])
def test_run_on_gpus_without_a_known_price_plans_nothing(tmp_path, monkeypatch, names):
    gpus(monkeypatch, *names)
    run = RunFolder(tmp_path / "run")
    assert planning.plan_in_background(["r.yaml"], run, num_gpus=1) is None


def test_start_plans_only_on_gpus_and_only_where_nobody_has(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(planning, "plan_in_background", lambda *words, **_: begun.append(words))
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    command = ["train", "r.yaml", "seed=3", "--run-folder", str(run.path)]
    arguments = SimpleNamespace(world_size=64)
    on_cpu = SimpleNamespace(is_on_cpu=True, arguments=arguments)
    on_gpus = SimpleNamespace(is_on_cpu=False, arguments=arguments)
    planning.plan_if_nobody_did(on_cpu, run, command)
    assert begun == []
    planning.plan_if_nobody_did(on_gpus, run, command)
    assert begun == [(["r.yaml", "seed=3"], run)]
    run.plan.write_text("{}")
    planning.plan_if_nobody_did(on_gpus, run, command)
    assert len(begun) == 1
