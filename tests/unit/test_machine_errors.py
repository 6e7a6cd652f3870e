"""A file system that fails for a while is no damage: nothing is passed over or deleted for it."""

import errno
import io
import os

import pytest
from rich.console import Console
from test_checkpoints import SHARD, folder, saved  # noqa: F401
from torch.distributed.checkpoint.api import CheckpointException

from tst_megatron.report.checkpoints import verify
from tst_megatron.system.machine_errors import machine_error
from tst_megatron.training.checkpoint_record import RECORD
from tst_megatron.training.checkpoints import (
    TRACKER,
    find_start,
    list_checkpoints,
    record_save,
    repair_tracker,
    step_of,
    whole_before,
)
from tst_megatron.training.retention import Keeper, KeepingRule

READ = (".metadata", "metadata.json", RECORD, SHARD)
FOR_A_WHILE = (errno.ESTALE, errno.EACCES, errno.EMFILE, errno.ETIMEDOUT)


@pytest.fixture
def fail(monkeypatch):
    """Let the system refuse to open a file."""
    opened = io.open

    def ask(number, place):
        def refused(file, *args, **kwargs):
            if str(file) == str(place):
                raise OSError(number, os.strerror(number), str(file))
            return opened(file, *args, **kwargs)

        monkeypatch.setattr(io, "open", refused)
        monkeypatch.setattr("builtins.open", refused)

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
def test_checkpoint_that_the_disk_cannot_read_is_damaged(newest, fail, name):
    fail(errno.EIO, newest / name)
    start = find_start(newest.parent)
    assert start.step == 8
    assert start.notes[0].startswith("iter_0000012: ") and "Input/output error" in start.notes[0]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_checkpoint_that_cannot_be_read_now_is_not_deleted(newest, fail, number):
    said = []
    keeper = Keeper(newest.parent, KeepingRule(keep_last=2), say=said.append)
    fail(number, newest.parent / "iter_0000008" / "metadata.json")
    keeper.after_save(12)
    left = [step_of(path) for path in list_checkpoints(newest.parent)]
    assert left == ([12, 8, 4] if number == errno.ESTALE else [12, 4])
    assert any("Stale file handle" in line for line in said) == (number == errno.ESTALE)


def test_error_is_judged_by_the_one_that_it_comes_from():
    stale, broken = OSError(errno.ESTALE, "stale"), OSError(errno.EIO, "broken")
    assert machine_error(stale) is stale and machine_error(broken) is None
    for number in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL):
        assert machine_error(OSError(number, "")) is None
    assert machine_error(OSError("not a gzipped file")) is None
    assert machine_error(ValueError("x")) is None
    wrapped = ValueError("x")
    wrapped.__cause__ = stale
    assert machine_error(wrapped) is stale
    assert machine_error(CheckpointException("", {0: (KeyError("x"), None)})) is None
    assert machine_error(CheckpointException("", {0: (broken, None), 1: (wrapped, None)})) is stale
    assert isinstance(machine_error(MemoryError()), MemoryError)
