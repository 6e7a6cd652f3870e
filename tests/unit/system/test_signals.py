"""Each test is a process of its own: what listens does so for the rest of its life."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tst_megatron.system.processes import signals


def start(body, **options):
    head = "import os, signal, sys, time\nfrom tst_megatron.system.processes import signals\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(body)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def ready(process):
    assert process.stdout.readline() == "ready\n"


def ended(process, typed=""):
    out, _ = process.communicate(typed, timeout=30)
    return process.returncode, out


STOP_SIGNALS = [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_that_came_early_is_passed_on_when_there_is_a_run(number):
    process = start("""
        signals.listen()
        print("ready", flush=True)
        sys.stdin.readline()
        signals.pass_on_to(lambda: (print("stop", flush=True), os._exit(75)))
        time.sleep(20)
    """)
    ready(process)
    process.send_signal(number)
    process.send_signal(number)
    time.sleep(0.2)
    assert process.poll() is None
    assert ended(process, "go\n") == (75, "stop\n")


def test_signal_while_it_runs_is_passed_on_at_once():
    process = start("""
        signals.listen()
        signals.listen()
        signals.pass_on_to(lambda: os._exit(75))
        print("ready", flush=True)
        time.sleep(20)
    """)
    ready(process)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (75, "")


@pytest.mark.parametrize("first", STOP_SIGNALS)
def test_interrupt_that_comes_later_ends_at_once(first):
    process = start("""
        signals.SECONDS_OF_ONE_STOP = 0.2
        signals.listen()
        signals.pass_on_to(lambda: print("stop", flush=True))
        print("ready", flush=True)
        time.sleep(20)
    """)
    ready(process)
    process.send_signal(first)
    assert process.stdout.readline() == "stop\n"
    # From the terminal and from the launcher: one and the same.
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stop\n"
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "")


CHILDREN = """
    import multiprocessing
    if __name__ == "__main__":
        signals.listen()
        context = multiprocessing.get_context({method!r})
        process = context.Process(target=time.sleep, args=(60,), daemon=True)
        process.start()
        import subprocess
        other = subprocess.Popen(["sleep", "60"])
        print("ready", flush=True)
        sys.stdin.readline()
        print(process.is_alive(), other.poll(), flush=True)
        other.kill()
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_children_survive_a_signal_to_the_whole_group_and_end_with_their_parent(method, number):
    process = start(CHILDREN.format(method=method))
    ready(process)
    os.killpg(process.pid, number)
    time.sleep(0.3)
    assert ended(process, "go\n") == (0, "True None\n")


def test_process_started_while_blocked_gets_the_signal_when_it_listens():
    body = """
        sys.stdin.readline()
        signals.pass_on_to(lambda: (print("stop", flush=True), os._exit(75)))
        signals.listen()
        time.sleep(20)
    """
    with signals.blocked():
        process = start(body)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    process.send_signal(signal.SIGTERM)
    assert ended(process, "go\n") == (75, "stop\n")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_worker_ends_with_the_process_that_it_works_for(method):
    """Killed, that process cannot end it, and the worker hears no SIGTERM."""
    process = start(f"""
        import multiprocessing
        signals.listen()
        work = "from tst_megatron.system.processes import signals; import time; "
        work += "signals.die_with_parent(); print('ready', flush=True); time.sleep(60)"
        worker = multiprocessing.get_context("{method}").Process(target=exec, args=(work,))
        worker.start()
        print(worker.pid, flush=True)
        time.sleep(60)
    """)
    # The two write to one pipe, in either order.
    first, second = sorted(process.stdout.readline().strip() for _ in range(2))
    worker = int(first)
    assert second == "ready"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while is_alive(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_forked_workers_end_with_a_killed_rank():
    """At work, they would look for their parent only when that is done."""
    process = start("""
        import multiprocessing
        signals.listen()
        def work():
            os.fork()
            # At once, where `print` may write the end of the line by itself, between the other's.
            os.write(1, f"{os.getpid()}\\n".encode())
            time.sleep(60)
        multiprocessing.get_context("fork").Process(target=work).start()
        time.sleep(60)
    """)
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
