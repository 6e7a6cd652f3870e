"""What a start would end on is found by building all of it, and the text may be left out."""

import os
import time

import pytest

from tst_megatron.megatron.cpu import host

host.install()

import torch
import torch._dynamo  # So that no process that builds has to import it.
import typer.testing
from checks import check

from tst_megatron.cli.app import app
from tst_megatron.megatron import setup_without_values
from tst_megatron.megatron.distributed_checkpoint.model import start_alone
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.training.check import rehearse as rehearsal
from tst_megatron.training.check.rehearse import rehearse_start

TST = {"bag-size": 4, "superposition-fraction": 0.4}

pytestmark = pytest.mark.usefixtures("outside_a_job")


def rehearse(checked, *, is_exact=True):
    return rehearse_start(checked.arguments, checked.recipe.tst, is_exact=is_exact)


def problems(text, **changes):
    found, notes = rehearse(check(text, TST, **changes))
    assert notes == []
    return found


def test_process_that_belongs_to_a_job_can_find_out_too(text):
    start_alone()
    assert torch.distributed.is_initialized()
    assert problems(text, world_size=2, pipeline_model_parallel_size=2) == []
    assert torch.distributed.get_world_size() == 1


# --- what a start would build --------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bf16": True, "overlap_grad_reduce": True, "overlap_param_gather": True},
        {"use_distributed_optimizer": False, "optimizer": "sgd"},
        {"expert_model_parallel_size": 4, "world_size": 4},
        {"pipeline_model_parallel_size": 2, "world_size": 2},
        {
            "pipeline_model_parallel_size": 2,
            "num_layers": 3,
            "account_for_embedding_in_pipeline_split": True,
            "world_size": 2,
        },
        {
            "pipeline_model_parallel_size": 4,
            "num_layers": 6,
            "account_for_embedding_in_pipeline_split": True,
            "account_for_loss_in_pipeline_split": True,
            "world_size": 4,
        },
        {
            "pipeline_model_parallel_size": 2,
            "num_layers": 3,
            "pipeline_model_parallel_layout": "Et|ttL",
            "world_size": 2,
        },
        {
            "pipeline_model_parallel_size": 2,
            "num_layers": 4,
            "num_virtual_stages_per_pipeline_rank": 2,
            "world_size": 2,
        },
        {
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
            "expert_model_parallel_size": 2,
            "world_size": 4,
        },
    ],
    ids=str,
)
def test_what_starts_can_be_built_for_the_whole_job(text, changes):
    assert problems(text, **changes) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "sgd"}, "Only Adam, HybridDeviceOptimizer"),
        (
            {
                "pipeline_model_parallel_size": 2,
                "num_layers": 4,
                "decoder_first_pipeline_num_layers": 5,
                "world_size": 2,
            },
            "the 2 stages would get 5+-1 layers, and num-layers is 4",
        ),
    ],
    ids=str,
)
def test_what_no_start_survives_is_named(text, changes, said):
    (problem,) = problems(text, **changes)
    assert said in problem


@pytest.mark.parametrize(
    "changes",
    [
        {"context_parallel_size": 2, "expert_model_parallel_size": 4, "world_size": 4},
        {
            "use_precision_aware_optimizer": True,
            "exp_avg_dtype": "bf16",
            "exp_avg_sq_dtype": "bf16",
            "world_size": 2,
        },
    ],
    ids=str,
)
def test_what_only_a_gpu_builds_is_built_in_a_plain_form(text, changes):
    changes = {"profile": "bf16", "use_distributed_optimizer": None, **changes}
    assert rehearse(check(text, TST, **changes), is_exact=False) == ([], [])


@pytest.mark.parametrize(
    "changes",
    [
        {"apply_layernorm_1p": True},
        {"moe_latent_size": 16},
        {"cpu_offloading_num_layers": 1},
    ],
    ids=str,
)
def test_what_has_no_plain_form_is_not_refused(text, changes):
    changes = {"profile": "bf16", "use_distributed_optimizer": None, **changes}
    found, (note,) = rehearse(check(text, TST, **changes), is_exact=False)
    assert found == [] and note.startswith("not known whether")


def test_what_was_built_leaves_nothing_behind(text, monkeypatch):
    children, fork = [], os.fork
    monkeypatch.setattr(os, "fork", lambda: children.append(fork()) or children[-1])
    device, threads = host.DEVICE, torch.get_num_threads()
    current, new_group = torch.cuda.current_device, torch.distributed.new_group
    is_initialized = torch.distributed.is_initialized()
    assert problems(text) == []
    assert (host.DEVICE, torch.get_num_threads()) == (device, threads)
    assert torch.cuda.current_device is current
    assert torch.distributed.new_group is new_group
    assert torch.distributed.is_initialized() is is_initialized
    (child,) = children
    with pytest.raises(ChildProcessError):
        os.waitpid(child, os.WNOHANG)


def test_building_that_does_not_end_is_ended(text, monkeypatch):
    checked = check(text, TST)
    monkeypatch.setattr(setup_without_values, "set_up", lambda *_, **__: time.sleep(600))
    monkeypatch.setattr(rehearsal, "SECONDS", 3.0)
    before = time.monotonic()
    found, (note,) = rehearse(checked)
    assert found == [] and note.endswith("building it takes longer than 3 s here")
    assert time.monotonic() - before < 60


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda *_, **__: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda *_, **__: [].x, "AttributeError: 'list' object has no attribute 'x'"),
        (lambda *_, **__: exit(3), "SystemExit: 3"),
    ],
)
def test_any_end_of_building_is_a_problem_in_a_line(text, monkeypatch, end, said):
    checked = check(text, TST)
    monkeypatch.setattr(setup_without_values, "set_up", end)
    (problem,), notes = rehearse(checked)
    assert said in problem and problem.startswith("a start would end in building the model")
    assert notes == []
    # Of a plain form it may be that form's own fault.
    found, (note,) = rehearse(checked, is_exact=False)
    assert found == [] and said in note and note.startswith("not known whether model, optimizer")


def test_building_that_is_killed_says_nothing_of_the_recipe(text, monkeypatch):
    checked = check(text, TST)
    killed = lambda *_, **__: os.kill(os.getpid(), 9)  # noqa: E731
    monkeypatch.setattr(setup_without_values, "set_up", killed)
    found, (note,) = rehearse(checked)
    assert found == [] and note.endswith("was killed, perhaps for want of memory")


def test_package_that_is_missing_here_is_not_a_fault_of_the_model(text, monkeypatch):
    def needs_a_package(*_, **__):
        raise ImportError("emerging-optimizers package is required")

    checked = check(text, TST)
    monkeypatch.setattr(setup_without_values, "set_up", needs_a_package)
    found, (note,) = rehearse(checked)
    assert found == [] and "emerging-optimizers package is required" in note


def test_command_refuses_what_no_start_survives(text):
    check(text, TST, use_distributed_optimizer=False, optimizer="sgd")
    path = str(text.parent / "checked.yaml")
    assert run("check", path).exit_code == 0
    refused = run("check", path, "use-distributed-optimizer=true")
    assert isinstance(refused.exception, RecipeError)
    assert "Only Adam" in str(refused.exception)


# --- without the text ----------------------------------------------------------------------------


def run(*arguments):
    return typer.testing.CliRunner().invoke(app, list(arguments))


@pytest.fixture
def recipe(text):
    check(text, TST)
    return str(text.parent / "checked.yaml")


def test_text_may_be_left_out(recipe):
    answer = run("check", recipe, "--no-data", "data={/nowhere: 1}")
    assert answer.exit_code == 0, answer.exception
    lines = answer.stdout.splitlines()
    assert lines[0] == "superposition: steps 1-8, bag size 4, 8,192 raw tokens"
    assert lines[4].startswith("/nowhere: the run reads 11,264 raw tokens of it; for one epoch")
    assert lines[5].startswith("learning rate: ")
    assert lines[-3] == "this machine could run it, with 1 rank"
    assert lines[-2].startswith("not known without the text: how often it is read")
    assert lines[-1] == "No problem found in the rest."


def test_problems_of_the_rest_are_named_without_the_text(recipe):
    answer = run("check", recipe, "--no-data", "data={/nowhere: 1}", "lr=-1")
    assert isinstance(answer.exception, RecipeError)
    assert [problem.partition(":")[0] for problem in answer.exception.problems] == ["lr"]


def test_missing_text_does_not_hide_what_megatron_would_say(recipe):
    wrong = ("use-distributed-optimizer=true", "optimizer=sgd")
    answer = run("check", recipe, "data={/nowhere: 1}", *wrong)
    assert isinstance(answer.exception, RecipeError)
    text, build = answer.exception.problems
    assert "/nowhere: no such manifest" in text and "Only Adam" in build


def test_missing_text_alone_is_the_problem_and_the_rest_is_told(recipe):
    answer = run("check", recipe, "data={/nowhere: 1}")
    assert isinstance(answer.exception, RecipeError)
    (problem,) = answer.exception.problems
    assert "/nowhere: no such manifest" in problem
    assert "not known without the text" in answer.stdout


@pytest.mark.parametrize("option", ["--run-folder", "--environment", "--starting"])
def test_what_a_start_needs_cannot_be_had_without_its_text(recipe, tmp_path, option):
    place = [] if option == "--starting" else [str(tmp_path / "x")]
    answer = run("check", recipe, "--no-data", option, *place)
    assert "--no-data: a start needs its text" in str(answer.exception)
    assert not list(tmp_path.iterdir())


def test_text_that_is_there_is_looked_at_beside_one_that_is_missing(recipe, text):
    both = f"data={{/nowhere: 1, {text}: 1}}"
    answer = run("check", recipe, both, "vocab-size=300")
    missing, small = answer.exception.problems
    assert "/nowhere: no such manifest" in missing
    assert small.startswith("vocab-size: 300 is smaller than the tokenizer's")


def test_machine_without_a_gpu_is_no_place_for_a_recipe_without_a_profile(recipe):
    answer = run("check", recipe, "profile=null")
    assert answer.exit_code == 0, answer.exception
    lines = answer.stdout.splitlines()
    assert lines[-2].startswith("not here: profile: the recipe names no profile")
    assert "write `profile: cpu` into the recipe" in lines[-2]


def test_model_that_export_refuses_is_warned_of(recipe):
    answer = run("check", recipe, "normalization=LayerNorm")
    assert "warning: export will refuse this model" in answer.stdout
    assert "normalization" in answer.stdout


@pytest.mark.parametrize("options", [(), ("--no-data",)], ids=["with the text", "without it"])
def test_weights_to_start_from_that_are_not_there_are_named(recipe, tmp_path, options):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "nowhere", tmp_path / "empty"):
        error = run("check", recipe, *options, f"pretrained-checkpoint={place}").exception
        assert isinstance(error, RecipeError)
        assert f"pretrained-checkpoint: {place}" in str(error)
