"""Two never make one output, what a kill leaves goes with the next call, runs are left alone."""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from dataclasses import asdict, replace

import pytest

from tst_megatron.checkpoint.outputs import check_output
from tst_megatron.cli.app import main
from tst_megatron.system.files import (
    SECONDS_OF_A_WRITE,
    check_not_claimed,
    claimed,
    copy_beside,
    folder_appearing_whole,
    write_beside,
)
from tst_megatron.system.processes import lock
from tst_megatron.system.processes.holder import this_process

FORK = multiprocessing.get_context("fork")
ENDED = 2**22 + 1
"""More than Linux numbers processes."""


def in_a_process(target, *arguments):
    process = FORK.Process(target=target, args=arguments)
    process.start()
    return process


def make_for_ever(output, made):
    with folder_appearing_whole(output) as folder:
        (folder / "half").write_text("x" * 1000)
        made.set()
        time.sleep(600)


@pytest.fixture
def making(tmp_path):
    """A process that makes ``output``, and is killed at the end."""
    made = FORK.Event()
    process = in_a_process(make_for_ever, tmp_path / "output", made)
    assert made.wait(30)
    yield process
    process.kill()
    process.join()


def test_second_maker_of_an_output_is_refused_at_its_start_and_harms_nothing(making, tmp_path):
    output = tmp_path / "output"
    sentence = rf"output: process {making.pid} on .* is making it. Wait for it, or name another"
    with pytest.raises(ValueError, match=sentence), folder_appearing_whole(output):
        pytest.fail("it began")
    with pytest.raises(ValueError, match=sentence):
        check_not_claimed(output)
    assert (tmp_path / ".output.unfinished" / "folder" / "half").exists()


def test_what_a_killed_maker_left_goes_with_the_next_call(making, tmp_path):
    making.kill()
    making.join()
    assert (tmp_path / ".output.unfinished" / "folder" / "half").exists()
    with folder_appearing_whole(tmp_path / "output") as folder:
        assert list(folder.iterdir()) == []
        (folder / "whole").write_text("y")
    assert [path.name for path in tmp_path.rglob("*")] == ["output", "whole"]


def test_check_alone_takes_away_what_was_left(making, tmp_path):
    making.kill()
    making.join()
    check_not_claimed(tmp_path / "output")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_maker_that_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(error), folder_appearing_whole(tmp_path / "output") as folder:
        (folder / "half").mkdir()
        raise error
    assert list(tmp_path.iterdir()) == []


def make_once(output, start):
    start.wait()
    with contextlib.suppress(ValueError), folder_appearing_whole(output) as folder:
        (folder / str(os.getpid())).touch()
        time.sleep(0.002)


def test_of_many_that_start_together_each_output_is_of_one(tmp_path):
    start = FORK.Event()
    processes = [in_a_process(make_once, tmp_path / "output", start) for _ in range(8)]
    start.set()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    (path,) = (tmp_path / "output").iterdir()
    assert int(path.name) in [process.pid for process in processes]
    assert [each.name for each in tmp_path.iterdir()] == ["output"]


def test_output_that_something_else_made_meanwhile_is_said(tmp_path):
    output = tmp_path / "output"
    with (
        pytest.raises(ValueError, match="output: was made by something else"),
        folder_appearing_whole(output),
    ):
        output.mkdir()
        (output / "theirs").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["output", "theirs"]


def another(**changes):
    """What another process would have written into its lock."""
    return json.dumps(asdict(replace(this_process(), **changes)))


@pytest.mark.parametrize(
    "make_holder,is_taken",
    [
        (lambda: "", True),
        (lambda: another(process=ENDED), True),
        (lambda: another(process=1, started="99999999999"), True),
        (another, False),
        (lambda: another(process=ENDED, host="node-7"), False),
        (lambda: another(process=ENDED, machine="another"), False),
        (lambda: another(process=ENDED, namespace="pid:[1]"), False),
    ],
    ids=[
        "nobody",
        "ended",
        "number of another",
        "this process",
        "another host",
        "another boot",
        "another container",
    ],
)
def test_without_locks_only_what_has_ended_for_certain_is_taken(
    tmp_path, monkeypatch, make_holder, is_taken
):
    place = tmp_path / ".output.unfinished"
    (place / "folder").mkdir(parents=True)
    (place / "lock").write_text(make_holder())

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "_SECONDS_TO_SETTLE", 0.0)
    if is_taken:
        with claimed(tmp_path / "output"):
            pass
        assert list(tmp_path.iterdir()) == []
    else:
        with pytest.raises(ValueError, match=r"If it has ended for certain, delete .*unfinished"):
            check_not_claimed(tmp_path / "output")
        assert (place / "folder").exists()


@pytest.mark.parametrize(
    "host,process,age,is_removed",
    [
        (socket.gethostname(), ENDED, SECONDS_OF_A_WRITE + 60, True),
        # A process of another container may be at work, and not be seen from here.
        (socket.gethostname(), ENDED, 0, False),
        (socket.gethostname(), os.getppid(), SECONDS_OF_A_WRITE + 60, False),
        ("node-7", ENDED, SECONDS_OF_A_WRITE + 60, False),
    ],
)
@pytest.mark.parametrize("write", [write_beside, copy_beside, folder_appearing_whole])
def test_what_was_left_beside_goes_if_its_process_ended(
    tmp_path, host, process, age, is_removed, write
):
    """Also the folders that earlier versions left, as large as a model."""
    output, left = tmp_path / "output", tmp_path / f".output.{host}.{process}"
    left.write_text("half") if write is write_beside else left.mkdir()
    if left.is_dir():
        (left / "model.safetensors").write_text("half")
    for path in (*left.glob("*"), left):
        os.utime(path, (time.time() - age,) * 2)
    if write is write_beside:
        write_beside(output, "new")
    elif write is copy_beside:
        (tmp_path / "source").write_text("new")
        copy_beside(tmp_path / "source", output)
    else:
        with folder_appearing_whole(output):
            pass
    assert left.exists() != is_removed and output.exists()


def test_write_that_fails_leaves_nothing_beside(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_beside(tmp_path / "a.json", "x")
    assert list(tmp_path.iterdir()) == []


# --- places that are a run's ---------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint, an imported checkpoint, and checkpoints that were copied away."""
    for folder in ("run/checkpoints/iter_0000020", "copied/iter_0000020", "imported/release"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / ".metadata").touch()
        (tmp_path / folder / "metadata.json").touch()
    for folder in ("tensorboard", "logs", "slurm", "report"):
        (tmp_path / "run" / folder).mkdir()
    for name in ("run/checkpoints", "imported"):
        (tmp_path / name / "latest_checkpointed_iteration.txt").write_text("20")
    (tmp_path / "run" / "resolved.yaml").touch()
    (tmp_path / "link").symlink_to(tmp_path / "run" / "checkpoints" / "iter_0000020")
    return tmp_path


REFUSED = [
    "run/checkpoints",
    "run/checkpoints/hf",
    "run/checkpoints/iter_0000020",
    "run/checkpoints/iter_0000020/x",
    "run/checkpoints/iter_0000020/deep/x",
    "run/checkpoints/iter_0000040",
    "run/checkpoints/new/../x",
    "run/report/../logs/x",
    "run/tensorboard/x",
    "run/logs/x",
    "run/slurm/x",
    "run/metrics.jsonl",
    "run/facts.json",
    "run/saves.json",
    "run/evaluations/x",
    "run/STOP",
    "link",
    "link/x",
    "link/../x",
    "copied/iter_0000020/x",
    "imported/x",
    "imported/release/x",
]
FREE = ["hf", "run/hf", "run/report/hf", "run/new/hf", "copied/hf", "new/iter_0000020", "logs/x"]


@pytest.mark.parametrize("path", REFUSED)
def test_place_that_is_a_runs_is_refused(run, path):
    with pytest.raises(ValueError, match=r": is in .*\. Name a place outside"):
        check_output(run / path)


@pytest.mark.parametrize("path", FREE)
def test_place_beside_is_free(run, path):
    check_output(run / path)


def test_run_is_known_by_its_other_files_too(run):
    (run / "run" / "resolved.yaml").unlink()
    check_output(run / "run" / "logs" / "x")
    (run / "run" / "state.json").symlink_to("gone")
    with pytest.raises(ValueError, match="which the run in"):
        check_output(run / "run" / "logs" / "x")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_place_where_nothing_can_be_made_is_refused_before_any_work(tmp_path, monkeypatch, number):
    def refuse(dir):
        raise OSError(number, os.strerror(number), str(dir))

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    for output in (tmp_path / "new", tmp_path / "deep" / "er" / "new"):
        with pytest.raises(ValueError, match=rf"new: nothing can be made in {tmp_path} \("):
            check_output(output)
    # Of a folder that is there, whoever makes it says whether it will do.
    check_output(tmp_path / "there")


def test_full_disk_is_not_the_fault_of_a_name(tmp_path, monkeypatch):
    def refuse(dir):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    check_output(tmp_path / "new")


def test_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/new: .*/file is a file\. Name a place in a folder"):
        check_output(tmp_path / "file" / "new")


def test_place_in_a_loop_of_links_is_looked_at_as_it_is(run):
    (run / "loop").symlink_to("loop")
    check_output(run / "loop")
    with pytest.raises(ValueError, match="is in"):
        check_output(run / "run" / "logs" / ".." / "logs" / "x")


COMMANDS = {
    "export": ("export", "run/checkpoints", "OUTPUT"),
    "import": ("import", "hf", "OUTPUT"),
    "quantize": ("quantize", "hf", "OUTPUT", "--format", "fp8", "--text", "t.jsonl"),
    "evaluate": ("evaluate", "hf", "--output", "OUTPUT"),
    "evaluate-data": ("evaluate-data", "OUTPUT"),
    "tokenizer": ("data", "tokenizer", "t", "--vocab-size", "300", "--output", "OUTPUT"),
    "prepare": ("data", "prepare", "t", "--tokenizer", "m", "--output", "OUTPUT"),
    "merge": ("data", "merge", "a", "b", "--output", "OUTPUT"),
    "inspect": ("data", "inspect", "a", "--picture", "OUTPUT"),
    "bench": ("bench", "loss", "--output", "OUTPUT"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_refuses_its_output_before_any_work(run, monkeypatch, capfd, name):
    monkeypatch.chdir(run)
    monkeypatch.setattr("tst_megatron.cli.hf.evaluate._need_lm_eval", lambda: None)
    before = sorted(run.rglob("*"))
    for output, said in (
        ("run/checkpoints/iter_0000020/x", "is in "),
        ("y" * 250, "too long"),
        ("y" * 300, "too long"),
    ):
        arguments = [output if each == "OUTPUT" else each for each in COMMANDS[name]]
        monkeypatch.setattr(sys, "argv", ["tst-megatron", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capfd.readouterr()
        assert end.value.code == 2, printed
        assert said in printed.err and "Traceback" not in printed.err
        assert "[Errno" not in printed.err
        assert sorted(run.rglob("*")) == before
