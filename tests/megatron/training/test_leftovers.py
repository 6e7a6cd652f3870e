"""A rank that is killed leaves no process, which would stay where no control group ends it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

RANK = """
import sys
from tst_megatron.megatron.cpu import host as cpu
cpu.install()
from tst_megatron.megatron.repairs.apply import repair_wheel
from tst_megatron.system.processes import signals as stopping
from tst_megatron.megatron import names
stopping.listen()
repair_wheel()
queue = names.filesystem_async.get_write_results_queue()
assert names.filesystem_async.get_write_results_queue() is queue
queue.put("works")
print(queue.get(timeout=30), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def rank():
    process = subprocess.Popen(
        [sys.executable, "-c", RANK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=tiny.environment(),
    )
    yield process
    process.kill()
    process.wait()


def test_queue_of_a_save_ends_with_a_killed_rank(rank):
    assert rank.stdout.readline() == "works\n"
    servers = [child for child in tiny.children(rank.pid) if "spawn_main" in command(child)]
    assert servers
    os.kill(rank.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any("spawn_main" in command(server) for server in servers):
        assert time.monotonic() < deadline, "the queue's server lives on"
        time.sleep(0.1)


def command(process):
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""
