"""The most memory that a process has taken, also what it has given back since."""

import subprocess
import sys
from pathlib import Path

import pytest

from tst_megatron.system.machine import memory

MANY = 100 << 20
SCRIPT = f"""
from tst_megatron.system.machine.memory import peak_resident_bytes
before = peak_resident_bytes()
taken = b"x" * {MANY}
del taken
print(before, peak_resident_bytes())
"""


def test_the_peak_counts_what_was_given_back():
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert 0.9 * MANY < after - before < 1.5 * MANY
    assert 1 << 20 < before < 1 << 30


def test_the_peak_is_known_without_a_proc_file_system(monkeypatch):
    expected = memory.peak_resident_bytes()

    def gone(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", gone)
    assert memory.peak_resident_bytes() == pytest.approx(expected, rel=0.5)
