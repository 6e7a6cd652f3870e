"""The folder of a branch: what is in it, whole or not at all, and apart from its trunk's."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import forged_checkpoints
import pytest
import yaml
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog
from test_branch_recipe import STEPS

from tst_megatron.checkpoint.folder import TRACKER
from tst_megatron.checkpoint.retention import Keeper, KeepingRule, finish_deleting
from tst_megatron.checkpoint.run_files import read_branch, steps_of_trunk
from tst_megatron.checkpoint.whole import problems, record_save
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.system import files
from tst_megatron.system.files import file_sha256
from tst_megatron.system.records import Damaged
from tst_megatron.training.branch import folder as branch_folder
from tst_megatron.training.branch.folder import NewBranch, make_folder
from tst_megatron.training.branch.recipe import recipe_of_branch
from tst_megatron.training.branch.source import place_problems, trunk_of
from tst_megatron.training.run import start
from tst_megatron.training.run.folder import RunFolder

MARK = "events.out.tfevents."

ROWS = [
    {"event": "step", "step": 1, "bag loss": 6.0},
    {"event": "step", "step": 8, "bag loss": 5.0},
    {"event": "validation", "step": 8, "lm loss validation": 5.5},
    {"event": "step", "step": 9, "lm loss": 4.0},
]
LAYOUTS = [{"after step": 0, "layout": {}}, {"after step": 8, "layout": {"x": 1}}]


SHARD = "__0_0.distcp"


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Checkpoints of three steps, as a run saves them."""
    folder = tmp_path_factory.mktemp("saved")
    for step in (4, 8, 12):
        checkpoint = forged_checkpoints.save(folder, forged_checkpoints.weights(), step=step)
        record_save(checkpoint)
    return folder


def truncate(path, size):
    with Path(path).open("r+b") as file:
        file.truncate(size)


@pytest.fixture
def trunk(saved, tmp_path):
    """A run folder with all that a branch takes, and more."""
    run = RunFolder(tmp_path / "runs" / "trunk")
    for path in (run.checkpoints, run.tensorboard, run.logs, run.path / "evaluations"):
        path.mkdir(parents=True)
    for step in (4, 8, 12):
        name = f"iter_{step:07d}"
        shutil.copytree(saved / name, run.checkpoints / name)
    (run.checkpoints / TRACKER).write_text("12")
    (run.checkpoints / "tokenizer.model").write_bytes(b"pieces")
    run.resolved.write_text(yaml.safe_dump({**STEPS, "lr-decay-style": "cosine"}))
    run.recipe.write_text("lr: 0.01\n")
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + '{"event": "st')
    run.saves.write_text('{"newest completed save": 12}\n')
    run.versions.write_text(json.dumps({"tst_megatron": "1", "device": "cpu", "layouts": LAYOUTS}))
    run.state_file.write_text("{}")
    (run.path / "wandb.json").write_text("{}")
    (run.tensorboard / "events.out").write_bytes(b"curves")
    (run.log(0)).write_text("words")
    for name in ("validation-0000004.npz", "validation-0000012.npz", "test-0000008.npz", "notes"):
        (run.path / "evaluations" / name).write_bytes(name.encode())
    return run


def new_branch(trunk, step=8):
    return NewBranch(
        trunk=trunk,
        checkpoint=trunk.checkpoints / f"iter_{step:07d}",
        recipe="lr: 0.02\n",
        resolved="lr: 0.02\n",
        has_manifest=False,
    )


def content(folder):
    """Every file of a folder, with its bytes; the mark for TensorBoard has a name of its own."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(MARK)
    }


@pytest.fixture
def output(tmp_path):
    return tmp_path / "runs" / "new"


def test_branch_begins_with_what_its_trunk_was_at_the_step(trunk, output):
    before = content(trunk.path)
    assert make_folder(new_branch(trunk), output, console=None) == []
    assert content(trunk.path) == before
    run, found = RunFolder(output), content(output)
    checkpoint = run.checkpoints / "iter_0000008"
    assert problems(checkpoint, deep=True) == []
    assert set(found) == {
        *("recipe.yaml", "resolved.yaml", "saves.json", "versions.json", "metrics.jsonl"),
        *("branch.json", "tensorboard/events.out", "checkpoints/tokenizer.model"),
        *("evaluations/validation-0000004.npz", "evaluations/test-0000008.npz"),
        f"checkpoints/{TRACKER}",
        *(f"checkpoints/iter_0000008/{path.name}" for path in checkpoint.iterdir()),
    }
    # TensorBoard is told to show none of the trunk's later steps.
    (mark,) = run.tensorboard.glob(f"{MARK}*")
    (event,) = [each for each in LegacyEventFileLoader(str(mark)).Load() if each.step]
    assert (event.step, event.session_log.status) == (9, SessionLog.START)
    # Other ranks write into these at once.
    assert all(folder.is_dir() for folder in (run.logs, run.report, run.tensorboard))
    assert (run.checkpoints / TRACKER).read_text() == "8"
    assert json.loads(run.saves.read_text()) == {"newest completed save": 8}
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == ROWS[:3]
    assert json.loads(run.versions.read_text())["layouts"] == LAYOUTS[:1]
    branch = read_branch(output)
    assert (branch.trunk, branch.trunk_name, branch.step) == (trunk.path, "trunk", 8)
    assert branch.words() == "branch of trunk at step 8"
    assert branch.recipe_sha256 == file_sha256(trunk.recipe)
    assert branch.checkpoint_sha256 == {
        name: file_sha256(checkpoint / name) for name in (".metadata", "metadata.json")
    }
    assert not run.has_begun()


def test_files_of_the_checkpoint_are_linked_and_nothing_else_is(trunk, output):
    trunk_shard = trunk.checkpoints / "iter_0000008" / SHARD
    trunk_shard.chmod(0o440)
    make_folder(new_branch(trunk), output, console=None)
    assert os.path.samefile(trunk_shard, output / "checkpoints" / "iter_0000008" / SHARD)
    # Its permissions are the trunk's matter.
    assert trunk_shard.stat().st_mode & 0o777 == 0o440
    linked = {
        path.name for path in output.rglob("*") if path.is_file() and path.stat().st_nlink > 1
    }
    assert linked == {path.name for path in trunk_shard.parent.iterdir()}


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_files_are_copied_where_they_cannot_be_linked(trunk, output, monkeypatch, number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(branch_folder.os, "link", refused)
    (said,) = make_folder(new_branch(trunk), output, console=None)
    assert "files of the checkpoint" in said and "were copied" in said
    shard = output / "checkpoints" / "iter_0000008" / SHARD
    assert shard.stat().st_nlink == 1
    assert problems(shard.parent, deep=True) == []


def test_other_error_of_the_disk_is_raised_and_leaves_nothing(trunk, output, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EIO, "read error")

    monkeypatch.setattr(branch_folder.os, "link", refused)
    with pytest.raises(OSError, match="read error"):
        make_folder(new_branch(trunk), output, console=None)
    assert sorted(path.name for path in output.parent.iterdir()) == ["trunk"]


def test_copy_that_the_disk_has_no_room_for_is_refused_before_it(trunk, output, monkeypatch):
    monkeypatch.setattr(branch_folder, "_link", lambda source, target, names: list(names))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match="a copy of the checkpoint needs"):
        make_folder(new_branch(trunk), output, console=None)
    assert not output.exists()


def test_checkpoint_that_changes_meanwhile_is_refused(trunk, output, monkeypatch):
    link = os.link

    def cut(source, target):
        link(source, target)
        if Path(source).name == SHARD:
            truncate(source, 10)

    monkeypatch.setattr(branch_folder.os, "link", cut)
    with pytest.raises(ValueError, match="Does its run save this step again"):
        make_folder(new_branch(trunk), output, console=None)
    assert not output.exists()


@pytest.mark.parametrize("first", ["trunk", "branch"])
def test_trunk_and_branch_never_write_into_each_other(trunk, output, first):
    """A save writes into files in place; before it, a run gives up those that it shares."""
    make_folder(new_branch(trunk), output, console=None)
    saving, other = trunk.checkpoints, output / "checkpoints"
    if first == "branch":
        saving, other = other, saving
    before = content(other)
    said = []
    Keeper(saving, KeepingRule(), say=said.append).clear(8)
    finish_deleting()
    assert said == []
    checkpoint = saving / "iter_0000008"
    checkpoint.mkdir(exist_ok=True)
    for name in (SHARD, ".metadata", "metadata.json"):
        # As torch and Megatron open them.
        with (checkpoint / name).open("wb") as file:
            file.write(b"another save")
    assert content(other) == before
    assert problems(other / "iter_0000008", deep=True) == []


def test_trunk_that_deletes_its_checkpoint_leaves_the_branchs(trunk, output):
    make_folder(new_branch(trunk), output, console=None)
    Keeper(trunk.checkpoints, KeepingRule(keep_last=1), say=lambda _: None).after_save(12)
    finish_deleting()
    assert not (trunk.checkpoints / "iter_0000008").exists()
    assert problems(output / "checkpoints" / "iter_0000008", deep=True) == []


# --- killed ---------------------------------------------------------------------------------------

STEPS_OF_MAKING = [
    (branch_folder.os, "link"),
    (shutil, "copyfile"),
    (shutil, "copytree"),
    (Path, "write_text"),
    (Path, "replace"),
    (files.os, "fsync"),
]
"""Between any two of these calls a kill may come, or in the middle of one."""


def make_and_be_killed(new, output, at):
    """Make a branch in a process that is killed at one of the calls; True if it was."""
    process = os.fork()
    if not process:
        left = [at]
        for place, name in STEPS_OF_MAKING:
            setattr(place, name, counted(getattr(place, name), left))
        make_folder(new, output, console=None)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def counted(function, left):
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return call


def test_branch_that_is_killed_at_any_moment_leaves_nothing_half_made(trunk, output):
    before, at = content(trunk.path), 0
    while make_and_be_killed(new_branch(trunk), output, at):
        at += 1
        if output.exists():
            # Killed after the rename: the branch is whole.
            assert read_branch(output).step == 8
            shutil.rmtree(output)
        assert content(trunk.path) == before
    assert at > 30
    whole = content(output)
    shutil.rmtree(output)
    # What the killed calls left is in the way of no later one.
    assert make_and_be_killed(new_branch(trunk), output, 10)
    make_folder(new_branch(trunk), output, console=None)
    assert content(output) == whole
    assert sorted(path.name for path in output.parent.iterdir()) == ["new", "trunk"]


# --- refused before anything is made --------------------------------------------------------------


def problems_of(trunk, output, step=8, changes=()):
    found, before = trunk_of(trunk)
    return place_problems(found, before, recipe_of_branch(before, changes), step, output)


def test_place_that_is_free_has_no_problem(trunk, output):
    assert problems_of(trunk.path, output) == []
    assert problems_of(trunk.checkpoints, output) == []
    output.mkdir()
    assert problems_of(trunk.path, output) == []


def test_missing_checkpoint_is_refused_with_those_there(trunk, output):
    (problem,) = problems_of(trunk.path, output, step=7)
    assert problem == (
        f"--step: {trunk.path} has no checkpoint of step 7. It has checkpoints of the steps 4, 8, "
        "12. A run always saves and keeps its last superposition step, the step at which its WSD "
        "decay starts (here 8), and every save-retain-interval steps"
    )
    shutil.rmtree(trunk.checkpoints)
    (problem,) = problems_of(trunk.path, output)
    assert "no checkpoint of step 8. It has none. A run" in problem


def test_damaged_checkpoint_is_refused(trunk, output):
    truncate(trunk.checkpoints / "iter_0000008" / SHARD, 10)
    (problem,) = problems_of(trunk.path, output)
    assert problem.startswith(f"--step: {trunk.checkpoints / 'iter_0000008'} is not whole ({SHARD}")
    assert problem.endswith("of the steps 4, 8, 12: branch at another step")


def test_several_problems_are_named_at_once(trunk, output):
    output.mkdir()
    (output / "file").touch()
    found = problems_of(trunk.path, output, 12, ["train-iters=12", "profile=bf16"])
    assert [each.partition(":")[0] for each in found] == ["--output", "train-iters", "profile"]
    assert "12 steps end at step 12, and the branch begins after step 12" in found[1]


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("trunk", "is a run already"),
        ("full", "is not empty"),
        ("file", "is a file"),
        ("trunk/new", "is inside the run"),
        ("trunk/checkpoints/new", "is inside the run"),
        ("trunk/../trunk/logs/x", "is inside the run"),
        ("file/new", "is a file"),
    ],
)
def test_output_that_cannot_be_one_is_refused(trunk, place, problem):
    (trunk.path.parent / "file").touch()
    (trunk.path.parent / "full").mkdir()
    (trunk.path.parent / "full" / "x").touch()
    (said,) = problems_of(trunk.path, trunk.path.parent / place)
    assert said.startswith("--output: ") and problem in said


@pytest.mark.parametrize(
    ("place", "problem"),
    [("absent", "there is no such folder"), ("runs", "is no run (resolved.yaml is missing)")],
)
def test_trunk_that_is_no_run_is_refused(trunk, tmp_path, place, problem):
    with pytest.raises(RecipeError, match=problem.replace("(", r"\(").replace(")", r"\)")):
        trunk_of(tmp_path / place)


def test_trunk_that_does_not_say_what_it_is_is_refused(trunk):
    trunk.resolved.write_text("lr: 1\n")
    with pytest.raises(RecipeError, match="says no 'data', and it says what the trunk is"):
        trunk_of(trunk.path)


# --- the record -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not JSON"),
        ("[]", "holds no block"),
        ('{"format": 1}', "says no 'trunk'"),
        ('{"format": 2, "trunk": "/t", "trunk name": "t", "step": 3}', "has the format 2"),
        ('{"format": 1, "trunk": "/t", "trunk name": "t", "step": 0}', "says step 0"),
        ('{"format": 1, "trunk": "/t", "trunk name": "t", "step": true}', "'step' that fits"),
    ],
)
def test_damaged_record_is_told_from_none(tmp_path, text, problem):
    assert read_branch(tmp_path) is None and steps_of_trunk(tmp_path) == 0
    assert read_branch(tmp_path / "absent") is None
    (tmp_path / "branch.json").write_text(text)
    with pytest.raises(Damaged, match=problem):
        read_branch(tmp_path)


def test_start_of_a_branch_whose_record_is_damaged_is_refused(tmp_path):
    run = RunFolder(tmp_path)
    assert start.branch_of(run) is None
    (tmp_path / "branch.json").write_text("{")
    with pytest.raises(RecipeError, match="up to which step this run is another's"):
        start.branch_of(run)


def test_checkpoint_without_a_cursor_of_the_stream_is_none_to_go_on_from():
    (problem,) = start._stream_problems(None, Path("iter_0000008"), {"stream": {}}, True)
    assert problem.startswith("iter_0000008: holds no cursor of the token stream")
    assert problem.endswith("Nothing can go on from it")
