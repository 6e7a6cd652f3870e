import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import typer.main
from rich.console import Console
from typer.testing import CliRunner

from tst_megatron import __version__
from tst_megatron.cli import app as cli
from tst_megatron.cli.app import app, main
from tst_megatron.megatron.cpu import device
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.schedule import Schedule, resolve_phases
from tst_megatron.training import train as train_command
from tst_megatron.training.check import check_recipe as check
from tst_megatron.training.run import indexes as data_ready
from tst_megatron.training.run import launch, prepare, saves
from tst_megatron.training.run import start as starting
from tst_megatron.training.run.state import STARTED

COMMANDS = {
    "check": {
        *("recipe", "overrides", "--nproc", "--run-folder", "--environment", "--starting"),
        "--no-data",
    },
    "train": {"recipe", "overrides", "--run-folder", "--nproc", "--fresh"},
    "branch": {"run", "overrides", "--step", "--output"},
    "params": {"recipe", "overrides"},
    "plan": {
        *("recipe", "overrides", "--baseline", "--gpus", "--gpu", "--mfu", "--price"),
        *(
            "--tokens-available",
            "--memory",
            "--advise",
            "--max-flops",
            "--max-days",
            "--max-dollars",
            "--max-tokens",
            "--picture",
            "--run-folder",
            "--json",
        ),
    },
    "data tokenizer": {"inputs", "--output", "--vocab-size", "--text-key"},
    "data prepare": {
        *("inputs", "--tokenizer", "--output", "--text-key"),
        *("--held-out-fraction", "--test-fraction", "--workers", "--shard", "--allow-empty-splits"),
        *("--eod-token", "--special-tokens-in-text"),
        *("--max-rejected-fraction", "--max-changed-fraction", "--deduplicate", "--fast"),
    },
    "data adopt": {
        *("pair", "--tokenizer", "--output", "--held-out-fraction", "--test-fraction"),
        *("--eod-token", "--special-tokens-in-text", "--workers"),
    },
    "data merge": {"prepared", "--output"},
    "data index": {"recipe", "overrides"},
    "data trace": {"recipe", "overrides", "--step"},
    "data verify": {"prepared", "--against", "--sample"},
    "data inspect": {"prepared", "--samples", "--split", "--seed", "--picture"},
    "checkpoint verify": {"folder", "--quick"},
    "status": {"runs", "--json"},
    "compare": {"runs", "--html", "--baseline", "--json"},
    "audit": {
        *("models", "--text", "--html", "--margin", "--loss", "--baseline-seed", "--bag-size"),
        *("--items", "--max-tokens", "--seed", "--batch-size", "--device", "--scores", "--json"),
    },
    "sweep": {
        *("recipe", "overrides", "--output", "--grid", "--arms", "--seeds", "--share-trunks"),
        *("--at-once", "--nproc", "--plan", "--slurm"),
    },
    "evaluate": {
        *("hf_dir", "--tasks", "--limit", "--batch-size", "--device", "--dtype"),
        *("--output", "--data", "--compare", "--special-tokens-in-text"),
    },
    "evaluate-data": {"output", "--tasks"},
    "export": {
        *("checkpoint", "output", "--iteration", "--dtype", "--verify", "--logits"),
        *("--text", "--tokenizer", "--no-tokenizer"),
    },
    "generate": {
        *("hf_dir", "--prompt", "--num-tokens", "--dtype", "--temperature", "--top-p", "--seed"),
    },
    "import": {"hf_dir", "output", "--tensor-parallel", "--verify", "--logits"},
    "quantize": {
        *("hf_dir", "output", "--format", "--text", "--text-key", "--num-sequences"),
        *("--sequence-length", "--device"),
    },
    "doctor": {"--profile", "--folder", "--imports", "--json"},
    "preflight": {
        *("folder", "--backend", "--mebibytes", "--baseline", "--write-baseline"),
        *("--min-fraction", "--min-free-gib", "--timeout"),
    },
    "preflight-verdict": {"folder", "--hosts", "--ranks"},
    "quickstart": {"--folder", "--short", "--compare"},
    "bench loss": {"--rounds", "--seed", "--device", "--output"},
    "bench embedding": {"--rounds", "--seed", "--device", "--output"},
    "bench step": {
        *("recipe", "overrides", "--bag-size", "--profile"),
        *("--rounds", "--seed", "--device", "--output"),
    },
    "bench loader": {
        *("prepared", "--workers", "--bag-size", "--seq-length"),
        *("--rounds", "--seed", "--output"),
    },
}


def commands(group=None, prefix=""):
    """Every command by its full name."""
    group = group or typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[f"{prefix}{name}"] = command
    return found


def run_main(monkeypatch, capsys, *arguments):
    """What the shell sees: (exit status, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["tst-megatron", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    printed = capsys.readouterr()
    return caught.value.code or 0, printed.out, printed.err


SHELL_OF_SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "1",
    "SLURM_STEP_NUM_TASKS": "1",
}
"""What a shell has that `srun --pty` starts."""


@pytest.fixture
def outside_a_job(outside_a_job, monkeypatch):
    for name in SHELL_OF_SRUN:
        monkeypatch.delenv(name, raising=False)


# --- help ----------------------------------------------------------------------------------------


def test_commands_and_their_options_are_the_known_ones():
    names = {
        name: {
            parameter.opts[0] if parameter.opts[0].startswith("--") else parameter.name
            for parameter in command.params
        }
        for name, command in commands().items()
    }
    assert names == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_says_what_it_and_all_its_options_do(name):
    command = commands()[name]
    assert command.help and command.help.endswith((".", "status 2 if there is one."))
    for parameter in command.params:
        assert parameter.help, f"{name}: {parameter.name} has no help"
        assert parameter.help.strip().endswith("."), f"{name}: {parameter.name}"
    result = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for parameter in command.params:
        shown = parameter.opts[0] if parameter.opts[0].startswith("--") else parameter.help
        assert shown in result.output


def test_help_without_a_command_names_every_command():
    for arguments in ([], ["--help"], ["data"], ["data", "--help"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code in (0, 2)
        wanted = (
            ("tokenizer", "prepare", "merge", "index", "trace", "verify", "inspect")
            if "data" in arguments
            else {n.split()[0] for n in COMMANDS}
        )
        for name in wanted:
            assert f" {name} " in result.output


def test_version_is_the_packages(monkeypatch, capsys):
    assert run_main(monkeypatch, capsys, "--version") == (0, f"{__version__}\n", "")


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "absent.yaml"], "absent.yaml: there is no such recipe"),
        (["train", "absent.yaml"], "absent.yaml: there is no such recipe"),
        (["check", "r.yaml", "lr"], "lr: an override is key=value"),
        (["check", "r.yaml", "lr=[1"], "lr=[1: "),
        (["check"], "Missing argument 'recipe'"),
        (["chek", "r.yaml"], "No such command 'chek'"),
        (["check", "r.yaml", "--nproc", "two"], "'--nproc': Input should be a valid integer"),
        (["check", "r.yaml", "--nproc", "0"], "--nproc"),
        (["train", "r.yaml", "--nproc", "-1"], "--nproc"),
        (
            ["data", "prepare", "a.jsonl", "--tokenizer", "absent.model", "--output", "out"],
            "absent.model",
        ),
        (
            ["data", "tokenizer", "absent.jsonl", "--output", "o.model", "--vocab-size", "300"],
            "absent.jsonl",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_in_one_message_and_status_2(
    monkeypatch, capsys, tmp_path, outside_a_job, arguments, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "check_with_megatron", lambda *_, **__: pytest.fail("it was"))
    (tmp_path / "r.yaml").write_text("num-layers: 1\n")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    status, out, error = run_main(monkeypatch, capsys, *arguments)
    assert status == 2
    assert message in click.unstyle(error)
    assert "Traceback" not in out + error
    assert out == ""


def test_problems_are_counted_and_each_has_its_line(monkeypatch, capsys):
    def refuse(*_):
        raise cli.RecipeError(["lr: 'x' is not [a] number", "seed: " + "long " * 40])

    monkeypatch.setattr(check, "checked_recipe", refuse)
    status, _, error = run_main(monkeypatch, capsys, "check", "r.yaml")
    lines = click.unstyle(error).splitlines()
    assert status == 2
    assert lines[:2] == ["2 problems:", "  - lr: 'x' is not [a] number"]
    assert len(lines) == 3


def test_one_problem_is_one_problem(monkeypatch, capsys, tmp_path):
    _, _, error = run_main(monkeypatch, capsys, "check", str(tmp_path / "absent.yaml"))
    assert click.unstyle(error).splitlines()[0] == "1 problem:"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FileNotFoundError(2, "no such file", "x"), 2),
        (PermissionError(13, "not allowed", "x"), 2),
        (OSError(28, "no space left on device"), 1),
        (OSError(5, "input/output error"), 1),
    ],
)
def test_wrong_name_is_bad_input_and_a_full_disk_is_a_failure(monkeypatch, capsys, error, status):
    def fail(*_):
        raise error

    monkeypatch.setattr(check, "checked_recipe", fail)
    seen, _, said = run_main(monkeypatch, capsys, "check", "r.yaml")
    assert seen == status and error.strerror in said


# --- train ---------------------------------------------------------------------------------------


@pytest.fixture
def stand_ins(monkeypatch, outside_a_job, tmp_path):
    """``train`` without Megatron: the check, the folder and the training are stand-ins."""
    import tst_megatron.training.pretrain as training
    from tst_megatron.training.run.folder import RunFolder

    schedule = Schedule(
        phases=resolve_phases([(1, 1.0)], num_steps=10), num_latent_positions=8, global_batch_size=2
    )
    checked = SimpleNamespace(
        recipe=SimpleNamespace(profile="cpu"),
        is_on_cpu=True,
        saves_manifest=False,
        last_evaluations=frozenset(),
        schedule=schedule,
        stream="the stream",
        corpora=(),
        plan=lambda: ["the plan"],
        warnings=["a risk"],
        flags=(),
        arguments=SimpleNamespace(pretrained_checkpoint=None),
    )
    calls, ready = [], []
    monkeypatch.setattr(data_ready, "build_indexes", lambda *text: ready.append(text[:2]))
    monkeypatch.setattr(data_ready, "wait_until_ready", lambda *text: ready.append("waited"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "checked_recipe", lambda *arguments: checked)
    monkeypatch.setattr(starting, "folder_problems", lambda *_, **__: [])
    monkeypatch.setattr(prepare, "prepare", lambda run, plan: calls.append(run.path) or [])
    for module in (train_command, starting):
        monkeypatch.setattr(module, "run_plan", lambda checked: checked)
    monkeypatch.setattr(train_command, "redirect_output_to", lambda path: Console(width=60))
    monkeypatch.setattr(train_command, "load_recipe", lambda *_: checked.recipe)
    monkeypatch.setattr(training, "pretrain", lambda plan, run, start, console: 75)
    # Restored at the end, whatever the command puts there.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return SimpleNamespace(
        calls=calls, ready=ready, training=training, folder=RunFolder, checked=checked
    )


def test_plan_and_warnings_come_first_and_the_status_is_the_runs(stand_ins, monkeypatch, capsys):
    status, out, _ = run_main(monkeypatch, capsys, "train", "moe/tst.yaml")
    assert status == 75
    assert click.unstyle(out).splitlines() == ["the plan", "warning: a risk"]


def test_run_folder_is_named_after_the_recipe_unless_given(stand_ins, monkeypatch, capsys):
    run_main(monkeypatch, capsys, "train", "moe/tst.yaml")
    run_main(monkeypatch, capsys, "train", "moe/tst.yaml", "--run-folder", "here")
    assert [str(path) for path in stand_ins.calls] == ["runs/moe-tst", "here"]
    assert stand_ins.ready == [("the stream", ())] * 2


def test_finished_run_ends_with_0_and_starts_nothing(stand_ins, monkeypatch, capsys):
    monkeypatch.setattr(saves, "is_finished", lambda run, plan: True)
    status, out, _ = run_main(monkeypatch, capsys, "train", "tst.yaml", "--run-folder", "done")
    assert status == 0 and out.startswith("done: this run is finished.\n")
    assert out.splitlines()[-1].split(maxsplit=1) == ["next", "tst-megatron export done done/hf"]
    assert stand_ins.calls == [Path("done")]


def test_other_ranks_of_a_finished_run_say_nothing(stand_ins, monkeypatch, capsys):
    monkeypatch.setattr(saves, "is_finished", lambda run, plan: True)
    monkeypatch.setattr(prepare, "wait_until_prepared", lambda run, *, is_held: None)
    as_rank(monkeypatch, 3)
    Path("done").mkdir()
    arguments = ("train", "tst.yaml", "--run-folder", "done")
    assert run_main(monkeypatch, capsys, *arguments) == (0, "", "")


@pytest.mark.parametrize("nproc", [(), ("--nproc", "2")])
@pytest.mark.parametrize("profile", [None, "bf16"])
def test_recipe_that_this_machine_cannot_train_is_refused_before_anything_else(
    stand_ins, monkeypatch, capsys, nproc, profile
):
    def takes_longer(*_):
        raise AssertionError("the check takes much longer")

    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    stand_ins.checked.recipe.profile = profile
    monkeypatch.setattr(check, "checked_recipe", takes_longer)
    arguments = ("train", "tst.yaml", "--run-folder", "here", *nproc)
    status, out, error = run_main(monkeypatch, capsys, *arguments)
    assert (status, out) == (2, "") and not Path("here").exists()
    assert "profile=cpu" in error and "`profile: cpu`" in error and "GPU" in error


def test_finished_run_needs_no_gpu(stand_ins, monkeypatch, capsys):
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(saves, "is_finished", lambda run, plan: True)
    stand_ins.checked.recipe.profile = "bf16"
    state = {"reason": "all steps are done", "step": 0, "device": "B200", "exit_status": 0}
    Path("done").mkdir()
    stand_ins.folder(Path("done")).write_state("finished", **state)
    assert run_main(monkeypatch, capsys, "train", "tst.yaml", "--run-folder", "done")[0] == 0


def test_profile_that_is_none_is_left_to_the_check(stand_ins, monkeypatch, capsys):
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    stand_ins.checked.recipe.profile = "cup"
    assert run_main(monkeypatch, capsys, "train", "tst.yaml")[0] == 75


def ends_as(word, status):
    """Training that says how it ended, as ``pretrain`` does."""

    def pretrain(plan, run, start, console):
        # A launcher, which notes a start for its ranks, is none here.
        assert launch.is_started_here() or run.state()["reason"] == STARTED
        if os.environ["RANK"] == "0":
            run.write_state(word, reason="why", step=4, device="cpu", exit_status=status)
        return status

    return pretrain


@pytest.mark.parametrize(
    ("word", "status", "following"),
    [
        ("finished", 0, "tst-megatron export 'a run' 'a run/hf'"),
        ("stopped", 75, "tst-megatron train tst.yaml 'tst.schedule=[[4, 2]]' --run-folder 'a run'"),
    ],
)
def test_end_is_summed_up_on_the_console(stand_ins, monkeypatch, capsys, word, status, following):
    monkeypatch.setattr(stand_ins.training, "pretrain", ends_as(word, status))
    arguments = ("train", "tst.yaml", "tst.schedule=[[4, 2]]", "--run-folder", "a run")
    seen, out, _ = run_main(monkeypatch, capsys, *arguments)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert seen == status
    assert f"{word}: why" in lines and "steps 4 of 10" in lines
    assert lines[-1] == f"next {following}" and sum("steps" in line for line in lines) == 1


def test_rank_of_a_job_says_that_the_job_is_to_be_started_again(stand_ins, monkeypatch, capsys):
    monkeypatch.setattr(stand_ins.training, "pretrain", ends_as("stopped", 75))
    as_rank(monkeypatch, 0)
    _, out, _ = run_main(monkeypatch, capsys, "train", "tst.yaml", "--run-folder", "here")
    assert "start the same job again, in which every rank runs: tst-megatron train" in out


def test_started_rank_says_how_its_launcher_is_started_again(stand_ins, monkeypatch, capsys):
    monkeypatch.setattr(stand_ins.training, "pretrain", ends_as("stopped", 75))
    monkeypatch.setenv("TST_LAUNCHER", str(os.getppid()))
    as_rank(monkeypatch, 0)
    Path("here").mkdir()
    _, out, _ = run_main(monkeypatch, capsys, "train", "tst.yaml", "--run-folder", "here")
    following = "next tst-megatron train tst.yaml --run-folder here --nproc 4"
    assert " ".join(out.splitlines()[-1].split()) == following


def test_only_rank_takes_threads_as_a_started_one_does(stand_ins, monkeypatch, capsys):
    taken = []
    monkeypatch.setattr(launch, "take_threads_of_the_only_rank", lambda: taken.append(1))
    run_main(monkeypatch, capsys, "train", "tst.yaml")
    assert taken == [1]
    # Its job has told a rank, and a launcher computes nothing.
    monkeypatch.setattr(launch, "launch", lambda *_, **__: 0)
    run_main(monkeypatch, capsys, "train", "tst.yaml", "--nproc", "2", "--run-folder", "two")
    as_rank(monkeypatch, 0)
    run_main(monkeypatch, capsys, "train", "tst.yaml", "--run-folder", "three")
    assert taken == [1]


def test_ctrl_c_before_there_are_ranks_is_a_stop(stand_ins, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(data_ready, "build_indexes", interrupted)
    arguments = ("train", "tst.yaml", "--nproc", "2", "--run-folder", "here")
    assert run_main(monkeypatch, capsys, *arguments)[0] == 75
    assert not Path("here").exists()


def as_rank(monkeypatch, rank):
    """As srun starts ranks."""
    values = {"SLURM_PROCID": rank, "SLURM_NTASKS": 4, "SLURM_LOCALID": 1, "SLURM_STEP_ID": 0}
    for name, value in {**values, "MASTER_ADDR": "node1", "MASTER_PORT": 29500}.items():
        monkeypatch.setenv(name, str(value))


def test_other_ranks_wait_and_prepare_nothing(stand_ins, monkeypatch, capsys):
    waited = stand_ins.ready
    monkeypatch.setattr(
        prepare,
        "wait_until_prepared",
        lambda run, *, is_held: waited.append((str(run.path), is_held)),
    )
    as_rank(monkeypatch, 3)
    Path("shared").mkdir()
    status, out, _ = run_main(monkeypatch, capsys, "train", "tst.yaml", "--run-folder", "shared")
    assert (status, out) == (75, "")
    # For the indexes first, which the first rank may take hours to build.
    assert waited == ["waited", ("shared", False)]
    assert stand_ins.calls == []


def test_srun_without_an_address_is_refused_in_words(stand_ins, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    status, _, error = run_main(monkeypatch, capsys, "train", "tst.yaml")
    assert status == 2
    assert "MASTER_ADDR and MASTER_PORT: not set" in click.unstyle(error)


def test_wrong_variable_of_a_rank_is_refused_in_words(stand_ins, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "x")
    status, out, error = run_main(monkeypatch, capsys, "train", "tst.yaml")
    assert (status, out, stand_ins.calls) == (2, "", [])
    error = click.unstyle(error)
    assert error.count("RANK") == 2 and "RANK='x' in the environment: must be a whole" in error


def test_nproc_wins_over_a_shell_in_a_job(stand_ins, monkeypatch, capsys):
    import tst_megatron.training.run.launch as launcher

    monkeypatch.setattr(launcher, "launch", lambda command, **_: 0)
    for name, value in SHELL_OF_SRUN.items():
        monkeypatch.setenv(name, value)
    assert run_main(monkeypatch, capsys, "train", "tst.yaml", "--nproc", "2")[0] == 0
    assert len(stand_ins.calls) == 1
    # Every other task of an srun would be a second start of the same run.
    monkeypatch.setenv("SLURM_PROCID", "1")
    status, _, error = run_main(monkeypatch, capsys, "train", "tst.yaml", "--nproc", "2")
    assert status == 2 and "--nproc 2: this is task 1 of an srun" in click.unstyle(error)
    assert len(stand_ins.calls) == 1


def test_ranks_are_started_with_the_same_words(stand_ins, monkeypatch, capsys):
    import tst_megatron.training.run.launch as launcher

    started = []

    def launch(command, *, num_processes, logs, console, on_failure):
        started.append((command, num_processes, str(logs)))
        on_failure("rank 1 was ended by SIGKILL")
        return 3

    monkeypatch.setattr(launcher, "launch", launch)
    arguments = ("train", "tst.yaml", "lr=1", "--nproc", "2", "--run-folder", "here", "--fresh")
    status, out, _ = run_main(monkeypatch, capsys, *arguments)
    assert status == 3
    assert out.splitlines()[-1] == "failed: rank 1 was ended by SIGKILL (logs: here/logs)"
    assert state_in("here") == ("failed", "rank 1 was ended by SIGKILL", 1)
    assert started == [(["train", "tst.yaml", "lr=1", "--run-folder", "here"], 2, "here/logs")]


def state_in(folder):
    state = json.loads((Path(folder) / "state.json").read_text())
    return state["status"], state["reason"], state["exit_status"]


def raises(error):
    def fault(*_, **__):
        raise error

    return fault


@pytest.mark.parametrize(
    "error", [ValueError("shapes do not match"), OSError(28, "full"), KeyError(1)]
)
def test_fault_inside_training_is_no_bad_input_and_not_mute(stand_ins, monkeypatch, capsys, error):
    """Status 2 would tell a scheduler that the recipe is wrong."""
    monkeypatch.setattr(stand_ins.training, "pretrain", raises(error))
    status, out, log = run_main(monkeypatch, capsys, "train", "tst.yaml", "--run-folder", "here")
    reason = f"rank 0: {error!r}"
    assert status == 1 and state_in("here") == ("failed", reason, 1)
    assert out.splitlines()[-1] == f"failed: {reason} (log: here/logs/rank-0.log)"
    assert "Traceback" in log and "Traceback" not in out


@pytest.mark.parametrize(
    ("error", "status"),
    [(OSError(5, "input/output error"), 1), (RecipeError(["none is whole"]), 2)],
)
def test_failure_before_there_is_a_log_is_in_the_state_too(
    stand_ins, monkeypatch, capsys, error, status
):
    monkeypatch.setattr(saves, "repair", raises(error))
    seen, _, said = run_main(monkeypatch, capsys, "train", "tst.yaml", "--run-folder", "here")
    reason = "none is whole" if status == 2 else repr(error)
    assert seen == status and state_in("here") == ("failed", f"rank 0: {reason}", status)
    assert ("input/output error" if status == 1 else "none is whole") in said


def test_failure_of_a_started_rank_before_its_log_is_in_the_state(stand_ins, monkeypatch, capsys):
    """The launcher has noted the start, and has nothing to read but its status."""
    refused = RecipeError(["lr: is no number"])
    monkeypatch.setattr(check, "checked_recipe", raises(refused))
    monkeypatch.setenv("TST_LAUNCHER", str(os.getppid()))
    as_rank(monkeypatch, 1)
    Path("here").mkdir()
    begun = {"reason": STARTED, "step": 0, "device": "cpu", "exit_status": 1}
    stand_ins.folder(Path("here")).write_state("failed", **begun)
    arguments = ("train", "tst.yaml", "--run-folder", "here")
    assert run_main(monkeypatch, capsys, *arguments)[0] == 2
    assert state_in("here") == ("failed", "rank 1: lr: is no number", 2)


def test_refused_start_leaves_the_state_of_the_one_before(stand_ins, monkeypatch, capsys):
    monkeypatch.setattr(starting, "folder_problems", lambda *_, **__: ["another run"])
    Path("here").mkdir()
    begun = {"reason": STARTED, "step": 0, "device": "cpu", "exit_status": 1}
    stand_ins.folder(Path("here")).write_state("failed", **begun)
    for nproc in ((), ("--nproc", "2")):
        arguments = ("train", "tst.yaml", "--run-folder", "here", *nproc)
        assert run_main(monkeypatch, capsys, *arguments)[0] == 2
        assert state_in("here") == ("failed", STARTED, 1)
