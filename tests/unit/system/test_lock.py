"""One folder, one job: with real processes, and with a file system that has no locks."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace

import pytest

from tst_megatron.system.processes import holder as words
from tst_megatron.system.processes import lock
from tst_megatron.system.processes.holder import this_process
from tst_megatron.system.processes.lock import InUse, held, holder, join, read_holder


def start(body, *arguments, **environment):
    """A process that runs ``body`` and prints lines."""
    head = "import os, signal, sys, time\nfrom pathlib import Path\n"
    head += "from tst_megatron.system.processes.lock import held, holder, join\n"
    head += "folder = Path(sys.argv[1])\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(body), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


HOLD = """
    with held(folder):
        print("held", flush=True)
        sys.stdin.readline()
    print("free", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    process = start(HOLD, tmp_path, SLURM_JOB_ID="812")
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "MASTER_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """What there is to wait for is said at once."""
    monkeypatch.setattr(lock, "_SECONDS_OF_A_LOOK", 0.0)


def take(folder, seconds=0.0):
    """What was said while the folder was taken and let go."""
    said = []
    with held(folder, say=said.append, seconds=seconds):
        pass
    return said


def test_second_is_refused_by_host_process_and_job_and_told_what_to_do(other, tmp_path):
    with pytest.raises(InUse) as refused:
        take(tmp_path)
    text, host = str(refused.value), os.uname().nodename
    assert text.startswith(
        f"{tmp_path}: in use by process {other.pid} of job 812 on {host}, since "
    )
    assert f"delete {tmp_path / 'lock'} and {tmp_path / 'lock-ranks'}" in text
    assert not refused.value.is_earlier_start
    assert holder(tmp_path).process == other.pid


def test_second_waits_for_one_that_is_about_to_end_and_says_so(other, tmp_path):
    other.stdin.write("go\n")
    other.stdin.flush()
    assert other.stdout.readline() == "free\n"
    assert take(tmp_path) == [] and holder(tmp_path) is None
    said = []
    again = start(HOLD, tmp_path)
    again.stdout.readline()

    def say(line):
        said.append(line)
        again.kill()

    with held(tmp_path, say=say):
        again.wait()
    assert len(said) == 1 and f"in use by process {again.pid} on " in said[0]
    assert said[0].endswith("Waiting up to 10 s for the end of that")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_dead_holder_holds_nothing(other, tmp_path, number):
    other.send_signal(number)
    other.wait()
    assert read_holder(tmp_path).process == other.pid
    assert take(tmp_path) == []


def test_holder_that_is_stopped_still_holds(other, tmp_path):
    other.send_signal(signal.SIGSTOP)
    with pytest.raises(InUse):
        take(tmp_path)


def test_looking_takes_nothing_and_makes_nothing(tmp_path):
    assert holder(tmp_path) is None and list(tmp_path.iterdir()) == []
    with held(tmp_path):
        assert holder(tmp_path).process == os.getpid()


@pytest.mark.parametrize("way", ["fork", "join", "spawned"])
def test_folder_stays_held_until_the_last_that_may_write_has_gone(tmp_path, way):
    """The holder is killed; a forked worker, a rank of it, and a worker of that rank live on."""
    begin = {
        "fork": "pid = os.fork()\n    if not pid: time.sleep(60)",
        "join": f"pid = subprocess.Popen([sys.executable, '-c', {JOIN!r}, folder]).pid",
        "spawned": f"""join(folder)
    pid = subprocess.Popen([sys.executable, '-c', {JOIN_WITH_PARENT!r}]).pid""",
    }[way]
    process = start(
        f"""
import subprocess
with held(folder):
    {begin}
    while not (folder / "joined").exists() and {way != "fork"}: time.sleep(0.01)
    print(pid, flush=True)
    time.sleep(60)
""",
        tmp_path,
    )
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        # Whoever looks for the first process finds it gone, and must not take that for the whole.
        said = f"in use by ranks or workers of an earlier start, which process {process.pid} on"
        with pytest.raises(InUse, match=said):
            take(tmp_path)
        assert holder(tmp_path).process == process.pid
    finally:
        os.kill(worker, signal.SIGKILL)
    take(tmp_path, seconds=10)


def test_forked_child_that_leaves_the_block_does_not_end_it(tmp_path):
    body = """
    with held(folder):
        if not (pid := os.fork()):
            # As when an exception goes up through the block.
            sys.exit()
        os.waitpid(pid, 0)
        print("left", flush=True)
        sys.stdin.readline()
    """
    process = start(body, tmp_path)
    assert process.stdout.readline() == "left\n"
    assert not read_holder(tmp_path).is_over
    with pytest.raises(InUse):
        take(tmp_path)
    process.communicate("go\n")
    assert take(tmp_path) == []


JOIN = """
import sys, time; from pathlib import Path; from tst_megatron.system.processes.lock import join
folder = Path(sys.argv[1]); join(folder); (folder / "joined").touch(); time.sleep(60)
"""
JOIN_WITH_PARENT = """
import os, time; from pathlib import Path
from tst_megatron.system.processes.lock import join_with_parent
join_with_parent(); (Path(os.environ["TST_LOCKED_FOLDER"]) / "joined").touch(); time.sleep(60)
"""


def test_ranks_hold_a_folder_together(tmp_path):
    with held(tmp_path):
        ranks = [
            start("join(folder)\nprint('in', flush=True)\ntime.sleep(60)", tmp_path) for _ in "ab"
        ]
        assert [rank.stdout.readline() for rank in ranks] == ["in\n"] * 2
    for rank in ranks:
        with pytest.raises(InUse):
            take(tmp_path)
        rank.kill()
        rank.communicate()
    assert take(tmp_path) == []


def test_of_many_that_start_at_once_one_has_it(tmp_path):
    body = """
    sys.stdin.readline()
    try:
        with held(folder, seconds=0):
            print("held", flush=True)
            time.sleep(2)
    except ValueError:
        print("refused", flush=True)
    """
    racers = [start(body, tmp_path) for _ in range(4)]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    words = sorted(racer.communicate()[0].strip() for racer in racers)
    assert words == ["held", "refused", "refused", "refused"]


def test_lock_that_is_deleted_while_it_is_opened_is_not_taken(tmp_path, monkeypatch):
    flock = fcntl.flock

    def deleted(descriptor, kind):
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "lock").unlink()
        return flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", deleted)
    with held(tmp_path):
        with pytest.raises(InUse):
            take(tmp_path)


def test_start_is_this_one_only_while_its_first_rank_holds_the_folder(tmp_path, monkeypatch):
    """The ranks of two starts may meet at the same place, as under torchrun."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert not lock.is_of_this_start(tmp_path)
    with held(tmp_path):
        assert lock.is_of_this_start(tmp_path)
        monkeypatch.setenv("MASTER_PORT", "29501")
        assert not lock.is_of_this_start(tmp_path)
        monkeypatch.setenv("MASTER_PORT", "29500")
    assert not lock.is_of_this_start(tmp_path)


def test_start_whose_first_rank_was_killed_is_not_taken_for_this_one(other, tmp_path):
    other.kill()
    other.wait()
    assert read_holder(tmp_path).meeting == lock.meeting() and not lock.is_of_this_start(tmp_path)


# --- a job that starts again ----------------------------------------------------------------------


def test_same_job_waits_for_the_lease_of_its_node_that_died(other, tmp_path, monkeypatch):
    """The server of NFS holds what a dead client held; here a process does."""
    monkeypatch.setenv("SLURM_JOB_ID", "812")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    said = []

    def say(line):
        said.append(line)
        other.kill()

    with held(tmp_path, say=say, seconds=0.1):
        pass
    assert said[0].endswith("Waiting up to 180 s for the end of that")


def test_same_job_is_to_try_again_where_waiting_does_not_help(other, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "812")
    monkeypatch.setattr(lock, "SECONDS_OF_A_LEASE", 0.3)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(InUse) as refused:
        take(tmp_path, seconds=0.1)
    assert refused.value.is_earlier_start
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with pytest.raises(InUse) as refused:
        take(tmp_path, seconds=0.1)
    assert not refused.value.is_earlier_start, "two starts in one allocation"


def test_next_job_of_a_chain_waits_for_the_lease_of_another_node(other, tmp_path, monkeypatch):
    said = []
    monkeypatch.setenv("SLURM_JOB_ID", "813")
    monkeypatch.setattr(lock, "SECONDS_OF_A_LEASE", 0.3)
    monkeypatch.setattr(words.socket, "gethostname", lambda: "another-node")
    with pytest.raises(InUse) as refused, held(tmp_path, say=said.append, seconds=0.1):
        pass
    assert not refused.value.is_earlier_start
    assert said[0].endswith("Waiting up to 0 s for the end of that")


# --- without locks --------------------------------------------------------------------------------


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, "local"])
def no_locks(request, monkeypatch):
    """A file system without locks, or one that keeps them to this node."""
    monkeypatch.setattr(lock, "_SECONDS_TO_SETTLE", 0.0)
    if request.param == "local":
        monkeypatch.setattr(lock, "is_only_here", lambda folder: True)
        return

    def refused(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refused)


def leave(folder, **changes):
    """What another process has written into ``lock``."""
    left = replace(this_process(), **changes)
    (folder / "lock").write_text(json.dumps(asdict(left)))
    return left


@pytest.fixture
def dead():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_without_locks_is_said_once_with_the_consequence(no_locks, tmp_path):
    (line,) = take(tmp_path)
    assert line.startswith(f"warning: {tmp_path} is on a file system whose locks are not seen")
    assert holder(tmp_path) is None
    assert len(take(tmp_path)) == 1
    join(tmp_path)


def test_without_locks_a_living_process_of_this_machine_holds(no_locks, tmp_path):
    leave(tmp_path)
    with pytest.raises(InUse, match=f"in use by process {os.getpid()} on"):
        take(tmp_path)
    assert holder(tmp_path).process == os.getpid()


@pytest.mark.parametrize("is_number_used_again", [True, False])
def test_without_locks_a_dead_process_of_this_machine_does_not(
    no_locks, tmp_path, dead, is_number_used_again
):
    own = os.getpid()
    leave(tmp_path, process=own if is_number_used_again else dead, started="12")
    assert holder(tmp_path) is None
    assert len(take(tmp_path)) == 1


@pytest.mark.parametrize(
    "changes", [{"host": "another"}, {"namespace": "pid:[1]"}, {"machine": "x"}]
)
def test_without_locks_what_cannot_be_judged_holds_until_a_person_says(
    no_locks, tmp_path, dead, changes
):
    """Another node, another container of the same name, another start of this machine."""
    left = leave(tmp_path, process=dead, **changes)
    with pytest.raises(InUse, match=f"in use by process {dead} on {left.host}"):
        take(tmp_path)
    (tmp_path / "lock").unlink()
    assert len(take(tmp_path)) == 1


def test_without_locks_an_earlier_start_of_this_job_holds_nothing(no_locks, tmp_path, monkeypatch):
    leave(tmp_path, host="a-dead-node", job="812", restart="0")
    monkeypatch.setenv("SLURM_JOB_ID", "812")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with pytest.raises(InUse):
        take(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert len(take(tmp_path)) == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"host": "x"}', "\x00\xff", "[" * 5000])
def test_lock_that_says_nothing_bars_nobody(no_locks, tmp_path, text):
    (tmp_path / "lock").write_text(text)
    assert read_holder(tmp_path) is None
    assert len(take(tmp_path)) == 1


def test_of_two_that_write_at_once_the_first_finds_the_others_words(
    no_locks, tmp_path, monkeypatch
):
    monkeypatch.setattr(lock.time, "sleep", lambda _: leave(tmp_path, host="another", process=7))
    with pytest.raises(InUse, match="in use by process 7 on another"):
        take(tmp_path)


@pytest.mark.parametrize(
    ("line", "is_only_here"),
    [
        ("36 35 0:9 / {} rw,relatime shared:1 - lustre a@tcp:/x rw,flock", False),
        ("36 35 0:9 / {} rw,relatime shared:1 - lustre a@tcp:/x rw,localflock", True),
        ("36 35 0:9 / {} rw,relatime - nfs4 a:/x rw,vers=4.2,local_lock=none", False),
        ("36 35 0:9 / {} rw,relatime - nfs a:/x rw,vers=3,local_lock=all", True),
        ("36 35 0:9 / {} rw,relatime - nfs a:/x rw,vers=3,nolock", True),
    ],
)
def test_mount_that_keeps_locks_to_this_node_is_known(tmp_path, monkeypatch, line, is_only_here):
    folder = tmp_path / "with space"
    folder.mkdir()
    place = str(folder).replace(" ", "\\040")
    mounts = f"22 1 8:1 / / rw - nfs b:/ rw,nolock\n{line.format(place)}\n"
    text = words._text
    monkeypatch.setattr(
        words, "_text", lambda path: mounts if path.name == "mountinfo" else text(path)
    )
    assert words.is_only_here(folder / "run") == is_only_here


def test_start_time_of_a_process_is_its_own():
    begun = words.started_at(os.getpid())
    process = subprocess.Popen(["sleep", "60"])
    time.sleep(0.02)
    assert int(begun) <= int(words.started_at(process.pid))
    process.kill()
    process.wait()
    assert words.started_at(process.pid) == ""
