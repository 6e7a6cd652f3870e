"""A file system that fails for a while is no damage: nothing is passed over or deleted for it."""

import errno
import io
import os
import shutil

import forged_checkpoints
import pytest
import torch
from rich.console import Console
from test_checkpoints import SHARD, folder, saved  # noqa: F401
from torch.distributed.checkpoint.api import CheckpointException

from tst_megatron.checkpoint.folder import TRACKER, list_checkpoints, step_of
from tst_megatron.checkpoint.record import RECORD
from tst_megatron.checkpoint.retention import Keeper, KeepingRule
from tst_megatron.checkpoint.run_files import is_tokenizer
from tst_megatron.checkpoint.start import find_start, repair_tracker
from tst_megatron.checkpoint.whole import examine, record_save, whole_before
from tst_megatron.cli.views.checkpoints import verify
from tst_megatron.system.machine.errors import machine_error
from tst_megatron.training.run import prepare
from tst_megatron.training.run.folder import RunFolder
from tst_megatron.training.run.records import damaged_records

READ = (".metadata", "metadata.json", RECORD, SHARD)
FOR_A_WHILE = (errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ETIMEDOUT)


@pytest.fixture
def fail(monkeypatch):
    """Let the system refuse a file: to open it, or to look whether it is there.

    The first so many times it does not. Returns what counts the times. The last word holds.
    """
    real = {"io.open": io.open, "builtins.open": open, "os.stat": os.stat}

    def ask(number, place, *, where=("io.open", "builtins.open"), times_before=0):
        asked = []

        def refusing(function):
            def refused(file, *args, **kwargs):
                if str(file) == str(place):
                    asked.append(file)
                    if len(asked) > times_before:
                        raise OSError(number, os.strerror(number), str(file))
                return function(file, *args, **kwargs)

            return refused

        for name in where:
            monkeypatch.setattr(name, refusing(real[name]))
        return asked

    return ask


@pytest.fixture
def newest(folder):  # noqa: F811
    record_save(folder / "iter_0000012")
    return folder / "iter_0000012"


@pytest.mark.parametrize("number", FOR_A_WHILE)
@pytest.mark.parametrize("name", READ)
def test_checkpoint_that_cannot_be_read_now_is_not_passed_over(newest, fail, name, number):
    fail(number, newest / name)
    for look in (find_start, repair_tracker, lambda place: list(whole_before(place, 20, False))):
        with pytest.raises(OSError) as caught:
            look(newest.parent)
        assert caught.value.errno == number and caught.value.filename == str(newest / name)
    assert (newest.parent / TRACKER).read_text() == "12"
    # `verify` goes on with the others, and says which it is.
    said = io.StringIO()
    assert not verify(newest.parent, deep=True, console=Console(file=said, width=1000))
    lines = said.getvalue().splitlines()
    assert [line for line in lines if line.endswith("whole")] == [
        "iter_0000004: whole",
        "iter_0000008: whole",
    ]
    (line,) = (line for line in lines if line.startswith("iter_0000012: "))
    assert line.startswith("iter_0000012: not known: ") and os.strerror(number) in line


@pytest.mark.parametrize("name", READ)
def test_file_that_cannot_be_looked_at_now_is_not_missing(newest, fail, name):
    fail(errno.ESTALE, newest / name, where=["os.stat"])
    with pytest.raises(OSError) as caught:
        find_start(newest.parent)
    assert caught.value.errno == errno.ESTALE


def test_verify_knows_nothing_of_what_it_cannot_read_later(tmp_path, fail):
    """Not even where the few bytes that a start looks at could be read."""
    checkpoint = forged_checkpoints.save(
        tmp_path, forged_checkpoints.with_state(forged_checkpoints.weights())
    )
    asked = fail(0, checkpoint / SHARD, times_before=1 << 30)
    examine(checkpoint)
    num_shallow = len(asked)
    assert examine(checkpoint, deep=True).problems == []
    num_deep = len(asked) - num_shallow
    assert num_deep > num_shallow + 30
    for number in range(num_shallow, num_deep, 5):
        fail(errno.ESTALE, checkpoint / SHARD, times_before=number)
        found = examine(checkpoint, deep=True)
        assert found.problems and found.not_read.errno == errno.ESTALE
    fail(errno.EIO, checkpoint / SHARD, times_before=num_shallow)
    found = examine(checkpoint, deep=True)
    assert "Input/output error" in found.problems[0] and found.not_read is None


@pytest.mark.parametrize("number", [errno.EIO, errno.EUCLEAN, errno.EBADMSG])
@pytest.mark.parametrize("name", READ)
def test_checkpoint_that_the_disk_cannot_read_is_damaged(newest, fail, name, number):
    fail(number, newest / name)
    start = find_start(newest.parent)
    assert start.step == 8
    assert start.notes[0].startswith("iter_0000012: ") and os.strerror(number) in start.notes[0]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_checkpoint_that_cannot_be_read_now_is_not_deleted(newest, fail, number):
    said = []
    keeper = Keeper(newest.parent, KeepingRule(keep_last=2), say=said.append)
    fail(number, newest.parent / "iter_0000008" / "metadata.json")
    keeper.after_save(12)
    assert [step_of(path) for path in list_checkpoints(newest.parent)] == [12, 8, 4]
    assert f"an old checkpoint was not deleted: [Errno {number}]" in said[0]


def test_part_of_a_save_that_cannot_be_read_now_ends_no_run(newest, fail):
    """It is of the step that is saved next, and would be written over."""
    said = []
    fail(errno.ESTALE, newest / "metadata.json")
    Keeper(newest.parent, KeepingRule(), say=said.append).clear(12)
    assert said[0].startswith("iter_0000012: cannot be read ([Errno 116] Stale file handle")
    assert [step_of(path) for path in list_checkpoints(newest.parent)] == [8, 4]


def test_too_little_memory_is_no_damage(newest, monkeypatch):
    def too_little(*_):
        raise MemoryError

    monkeypatch.setattr("tst_megatron.checkpoint.whole.read_description", too_little)
    with pytest.raises(OSError, match="not enough memory"):
        find_start(newest.parent)


@pytest.mark.parametrize("name", [".metadata", "metadata.json", RECORD])
def test_pipe_in_the_place_of_a_file_is_damage(newest, name):
    """Whoever opened it would wait for ever."""
    (newest / name).unlink()
    os.mkfifo(newest / name)
    assert find_start(newest.parent).step == 8
    assert any("is no file" in problem for problem in examine(newest, deep=True).problems)


def test_link_to_nowhere_is_a_checkpoint_that_is_missing(newest):
    shutil.move(newest, newest.parent / "elsewhere")
    newest.symlink_to("/not/mounted")
    start = find_start(newest.parent)
    assert start.step == 8
    said = "iter_0000012: is a link to /not/mounted, which is not there; skipped"
    assert start.notes[0] == said
    lines = []
    Keeper(newest.parent, KeepingRule(), say=lines.append).clear(12)
    assert lines == [said.replace("; skipped", "; removed before it is saved again")]
    assert not newest.is_symlink() and not list(newest.parent.glob(".deleted*"))


def test_copy_of_a_checkpoint_by_megatrons_name_for_weights_is_whole(newest):
    release = newest.parent / "release"
    shutil.copytree(newest, release)
    assert examine(release, deep=True).problems == []


# --- records --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["metrics.jsonl", "state.json", "versions.json", "resolved.yaml"])
def test_record_that_cannot_be_read_now_is_not_moved_aside(tmp_path, fail, name):
    run = RunFolder(tmp_path)
    for each in (run.metrics, run.state_file, run.versions, run.resolved):
        each.write_text("")
    fail(errno.ESTALE, tmp_path / name)
    with pytest.raises(OSError, match="Stale file handle"):
        damaged_records(run)
    with pytest.raises(RuntimeError, match="was not prepared by rank 0"):
        prepare.wait_until_prepared(run, seconds=0)


def test_tokenizer_that_cannot_be_read_now_is_not_another(tmp_path, fail):
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(b"x")
    fail(errno.ESTALE, tokenizer)
    with pytest.raises(OSError, match="Stale file handle"):
        is_tokenizer(tokenizer, "0")


def test_error_is_judged_by_the_one_that_it_comes_from():
    stale, broken = OSError(errno.ESTALE, "stale"), OSError(errno.EIO, "broken")
    assert machine_error(stale) is stale and machine_error(broken) is None
    for number in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EUCLEAN):
        assert machine_error(OSError(number, "")) is None
    assert machine_error(OSError("not a gzipped file")) is None
    assert machine_error(ValueError("x")) is None
    wrapped = ValueError("x")
    wrapped.__cause__ = stale
    assert machine_error(wrapped) is stale
    assert machine_error(CheckpointException("", {0: (KeyError("x"), None)})) is None
    assert machine_error(CheckpointException("", {0: (broken, None), 1: (wrapped, None)})) is stale
    assert machine_error(MemoryError()).errno == errno.ENOMEM
    assert machine_error(torch.OutOfMemoryError("CUDA out of memory")).errno == errno.ENOMEM
