"""Ranks are shell scripts here: ``launch`` starts ``sys.executable -m tst_megatron``."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tst_megatron.system.processes import signals
from tst_megatron.training.run import launch as launcher
from tst_megatron.training.run.launch import free_port, launch

PYTHON = sys.executable
WAIT_FOR_TERM = "trap 'exit 75' TERM USR2 INT; : > ready-$RANK; "
WAIT_FOR_TERM += "n=0; while [ $n -lt 1200 ]; do sleep 0.05; n=$((n+1)); done; exit 9"


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """Run the shell text ``script`` as every rank; gives (status, what was shown)."""
    stand_in = tmp_path / "stand-in"
    stand_in.write_text(
        # Ranks are started with the stop signals blocked, and a shell cannot unblock them.
        "#!/usr/bin/env -S --default-signal=TERM,USR2,INT sh\n"
        '[ "$1 $2" = "-m tst_megatron" ] || exit 99\neval "$3"\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    monkeypatch.setattr(launcher, "SECONDS_TO_STOP", 0.4)
    monkeypatch.chdir(tmp_path)
    stop_signals = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in stop_signals}

    def run(script, num_processes=2, **options):
        shown = io.StringIO()
        console = Console(file=shown, width=1000)
        status = launch(
            [script], num_processes=num_processes, logs=tmp_path, console=console, **options
        )
        return status, shown.getvalue()

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def test_all_ranks_that_end_well_give_status_0(ranks, tmp_path):
    assert ranks(": > done-$RANK", num_processes=3) == (0, "")
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-0", "done-1", "done-2"]


def test_ranks_are_told_who_they_are(ranks, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("RANK", "5")
    names = "$RANK $LOCAL_RANK $WORLD_SIZE $OMP_NUM_THREADS $MASTER_ADDR $MASTER_PORT"
    assert ranks(f"echo {names} > rank-$RANK.txt")[0] == 0
    said = [(tmp_path / f"rank-{rank}.txt").read_text().split() for rank in (0, 1)]
    assert [words[:5] for words in said] == [
        ["0", "0", "2", "7", "127.0.0.1"],
        ["1", "1", "2", "7", "127.0.0.1"],
    ]
    assert said[0][5] == said[1][5]
    assert int(said[0][5]) > 0


@pytest.mark.parametrize(("cores", "num_processes", "threads"), [(8, 2, 4), (1, 2, 1), (9, 2, 4)])
def test_cores_are_shared_out_when_no_thread_count_is_given(
    ranks, tmp_path, monkeypatch, cores, num_processes, threads
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launcher, "num_cores", lambda: cores)
    ranks("echo $OMP_NUM_THREADS > threads-$RANK", num_processes=num_processes)
    assert (tmp_path / "threads-0").read_text().strip() == str(threads)


def test_status_of_the_failed_rank_is_returned_and_the_others_are_ended(ranks, tmp_path):
    ticks = tmp_path / "ticks"
    loop = "n=0; while [ $n -lt 1200 ]; do echo . >> ticks; sleep 0.05; n=$((n+1)); done"
    status, shown = ranks(f'[ "$RANK" = 1 ] && exit 3; {loop}')
    assert status == 3
    assert f"rank 1 ended with status 3. The end of {tmp_path / 'rank-1.log'}:" in shown
    num_ticks = len(ticks.read_text())
    time.sleep(0.2)
    assert len(ticks.read_text()) == num_ticks


def test_others_have_time_to_end_by_themselves(ranks, tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "SECONDS_TO_STOP", 10.0)
    assert ranks('[ "$RANK" = 1 ] && exit 3; sleep 0.5; : > saved')[0] == 3
    assert (tmp_path / "saved").exists()


SLOW_SAVE = '[ "$RANK" = 1 ] && exit 75; sleep 0.8; : > saved; exit 75'


def test_others_have_much_longer_to_save_after_one_has_stopped(ranks, tmp_path):
    assert ranks(SLOW_SAVE) == (75, "")
    assert (tmp_path / "saved").exists()


def test_others_do_not_have_for_ever_after_one_has_stopped(ranks, tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "SECONDS_TO_SAVE", 0.3)
    assert ranks(SLOW_SAVE) == (75, "")
    assert not (tmp_path / "saved").exists()


def test_rank_that_fails_after_another_has_stopped_ends_the_wait(ranks):
    start = time.monotonic()
    script = 'case "$RANK" in 0) exit 75;; 1) sleep 0.5; exit 3;; esac; exec sleep 20'
    ranks(script, num_processes=3)
    assert time.monotonic() - start < 10


def test_last_30_lines_of_the_failed_rank_are_shown_as_they_are(ranks, tmp_path):
    lines = [f"line {number} [bold]x[/]" for number in range(100)]
    (tmp_path / "written").write_text("\n".join(lines))
    (tmp_path / "rank-1.log").write_text("the other log")
    status, shown = ranks('[ "$RANK" = 0 ] && cat written >>rank-0.log && exit 1; exit 0')
    assert status == 1
    assert shown.splitlines()[-30:] == lines[70:]
    assert "line 69" not in shown
    assert "the other log" not in shown


def test_log_that_is_missing_or_no_text_hides_no_status(ranks, tmp_path):
    (tmp_path / "written").write_bytes(b"caf\xe9 \xff\n")
    assert ranks('[ "$RANK" = 0 ] && exit 4; exit 0')[0] == 4
    status, shown = ranks('[ "$RANK" = 1 ] && cat written >rank-1.log && exit 5; exit 0')
    assert status == 5
    assert "caf" in shown


def test_what_an_earlier_start_wrote_is_not_shown_as_the_reason(ranks, tmp_path):
    (tmp_path / "rank-0.log").write_text("an old traceback\n")
    _, shown = ranks('[ "$RANK" = 0 ] && exit 4; exit 0')
    assert "an old traceback" not in shown and "(nothing of this start)" in shown
    _, shown = ranks('[ "$RANK" = 0 ] && echo a new one >>rank-0.log && exit 4; exit 0')
    assert shown.splitlines()[-1] == "a new one" and "an old traceback" not in shown


@pytest.mark.parametrize("status", [2, 75])
def test_bad_input_and_a_stop_are_no_failure_to_show(ranks, tmp_path, status):
    (tmp_path / "rank-0.log").write_text("a long log")
    assert ranks(f"exit {status}") == (status, "")


@pytest.mark.parametrize(("name", "status"), [("KILL", 137), ("TERM", 143)])
def test_rank_ended_by_a_signal_gives_the_status_a_shell_gives(ranks, name, status):
    got, shown = ranks(f'[ "$RANK" = 0 ] && kill -{name} $$; exec sleep 0.2')
    assert got == status
    assert f"rank 0 was ended by SIG{name}" in shown
    assert ("memory runs out" in shown) == (name == "KILL")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 3", ["rank 0 ended with status 3"]),
        ("kill -KILL $$", ["rank 0 was ended by SIGKILL, as the kernel does when memory runs out"]),
        ("exit 2", []),
        ("exit 75", []),
        ("exit 0", []),
    ],
)
def test_failure_that_no_rank_can_tell_of_is_told(ranks, tmp_path, script, told):
    ended = []
    assert ranks(f'[ "$RANK" = 0 ] && {script}; exit 0', on_failure=ended.append)
    assert ended == told


@pytest.mark.parametrize(("given", "wanted"), [(None, "5"), ("", "5"), ("3", "3")])
def test_only_rank_takes_the_threads_that_a_started_one_would_get(monkeypatch, given, wanted):
    taken = []
    monkeypatch.setattr(launcher, "num_cores", lambda: 5)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(set_num_threads=taken.append))
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    launcher.take_threads_of_the_only_rank()
    assert os.environ["OMP_NUM_THREADS"] == wanted
    # torch has read what the user gave, or has made as many threads as it likes.
    assert taken == ([] if given else [5])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_stop_signal_is_passed_on_to_every_rank(ranks, tmp_path, number):
    signal.signal(number, lambda *_: None)  # were launch to set none, pytest would end

    def send():
        for _ in range(3000):  # a minute, on a busy machine
            if len(list(tmp_path.glob("ready-*"))) == 2:
                break
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    assert ranks(f"{WAIT_FOR_TERM}; : > deaf-$RANK") == (75, "")
    sender.join()
    assert list(tmp_path.glob("deaf-*")) == []


def interrupt_twice(folder, seconds_between):
    """Send SIGINT to this process twice, once both ranks have said that they are ready."""

    def send():
        for _ in range(3000):
            if len(list(folder.glob("ready-*"))) == 2:
                break
            time.sleep(0.02)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(seconds_between)

    sender = threading.Thread(target=send)
    sender.start()
    return sender


def test_second_interrupt_ends_ranks_that_do_not_listen(ranks, tmp_path):
    """The first came before they had begun to, say."""

    sender = interrupt_twice(tmp_path, signals.SECONDS_OF_ONE_STOP + 0.2)
    (tmp_path / "rank-0.log").write_text("a long log")
    assert ranks("trap '' TERM INT; : > ready-$RANK; sleep 60 & wait; sleep 60") == (130, "")
    sender.join()


def test_interrupt_that_comes_twice_at_once_is_one(ranks, tmp_path):
    """From the terminal, say, and through a wrapper."""

    sender = interrupt_twice(tmp_path, 0.1)
    saves = "sleep 0.5; : > saved-$RANK; exit 75"
    assert ranks(f"trap '{saves}' TERM INT; : > ready-$RANK; sleep 60 & wait") == (75, "")
    sender.join()
    assert len(list(tmp_path.glob("saved-*"))) == 2


LAUNCHER = """
import sys
from pathlib import Path
from rich.console import Console
from tst_megatron.training.run.launch import launch
sys.executable, script = sys.argv[1:]
launch([script], num_processes=2, logs=Path(), console=Console())
"""


def test_ranks_end_with_a_killed_launcher_whatever_they_are_doing(ranks, tmp_path):
    """Deaf to what else would end them; a rank that imports has not even begun to listen."""
    script = "trap '' TERM INT HUP; echo $$ > rank-$RANK.pid; n=0; "
    script += "while [ $n -lt 600 ]; do sleep 0.1; n=$((n+1)); done"
    command = [PYTHON, "-c", LAUNCHER, str(tmp_path / "stand-in"), script]
    process = subprocess.Popen(command, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (pids := [f.read_text() for f in tmp_path.glob("*.pid")]) or len(pids) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    while any(is_alive(int(pid)) for pid in pids if pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_signals_are_the_callers_again_afterwards(ranks):
    def mine(*_):
        pass

    signal.signal(signal.SIGTERM, mine)
    ranks("exit 0")
    assert signal.getsignal(signal.SIGTERM) is mine


def test_free_port_is_one_that_can_be_listened_on():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


def test_port_is_none_that_the_kernel_hands_out():
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 10
    assert all(launcher.LOWEST_PORT <= port < launcher._first_handed_out() for port in ports)


def test_port_in_use_is_passed_over(monkeypatch):
    free = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        drawn = iter([taken.getsockname()[1], free])
        monkeypatch.setattr(launcher.random.SystemRandom, "randrange", lambda *_: next(drawn))
        assert free_port() == free
