import os
import subprocess
import sys
import time

from tst_megatron.system.processes import stacks

RANK = """
import subprocess, sys, time
from tst_megatron.system.processes import stacks

def waits_for_others():
    print(child.pid, flush=True)
    sys.stdin.readline()

stacks.listen()
stacks.listen()
child = subprocess.Popen(["sleep", "60"])
waits_for_others()
child.poll() is None or sys.exit("the child died")
child.kill()
"""


def test_sigusr1_shows_every_thread_and_ends_neither_rank_nor_child():
    rank = subprocess.Popen(
        [sys.executable, "-c", RANK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    child = int(rank.stdout.readline())
    for process in (rank.pid, child):
        os.kill(process, stacks.SIGNAL)
    time.sleep(0.5)
    _, shown = rank.communicate("\n", timeout=30)
    assert rank.returncode == 0, shown
    assert "in waits_for_others" in shown
    assert shown.count("most recent call first") == 2, shown
