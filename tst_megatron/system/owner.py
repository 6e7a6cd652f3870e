"""Which process holds something on disk, and whether it is known to have ended."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

SECONDS_OF_A_WRITE = 600.0
"""What is beside a small file for longer was left there, if its process is not to be found: a
process of another container may have the host's name, and not be seen from here."""


def this_process() -> str:
    """One word each: host, its boot, the processes that are seen from here, number, start."""
    return " ".join((*_view(), str(os.getpid()), _start_of(os.getpid()) or "unknown"))


def is_gone(words: str) -> bool:
    """Whether a process has ended for certain: one that cannot be seen from here may go on.

    Args:
        words: what ``this_process`` said in it.
    """
    parts = words.split()
    if len(parts) != 5 or tuple(parts[:3]) != _view() or not parts[3].isdecimal():
        return False
    return _start_of(int(parts[3])) != parts[4]


def in_words(words: str) -> str:
    """A process for a person, of what ``this_process`` said in it."""
    parts = words.split()
    return f"process {parts[3]} on {parts[0]}" if len(parts) == 5 else "another process"


def is_left_behind(path: Path, name: str) -> bool:
    """Whether a file or folder that bears a host and a process number was left by a killed one.

    Args:
        path: of it.
        name: what stands before host and number in its name.
    """
    host, _, process = path.name.removeprefix(name).rpartition(".")
    if host != socket.gethostname() or not process.isdecimal() or _start_of(int(process)):
        return False
    try:
        times = [each.lstat().st_mtime for each in (path, *path.rglob("*"))]
    except OSError:
        return False
    return max(times) < time.time() - SECONDS_OF_A_WRITE


def _view() -> tuple[str, str, str]:
    """Host, boot and process namespace: where all three are equal, so are the numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot, space = "unknown", "unknown"
    return socket.gethostname(), boot, space


def _start_of(process: int) -> str | None:
    """When a process started, in ticks since the boot; None where there is none of this number."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in brackets may hold anything.
    after = text.rpartition(")")[2].split()
    # A zombie holds nothing any more.
    return None if after[0] in "ZX" else after[19]
