"""Collect what a process can see of its machine: memory, limits, disks, clock, network."""

from __future__ import annotations

import ctypes
import getpass
import mmap
import os
import resource
import shutil
import socket
import struct
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tst_megatron.nodes.doctor.facts import Disk, Machine
from tst_megatron.nodes.doctor.limits import LIMITS, UNLIMITED
from tst_megatron.system.machine import node

CAP_IPC_LOCK = 14
"""The number of the capability; ``capabilities(7)``."""

MOST_TO_LOCK_BYTES = 64 * 2**20
"""Most bytes that are locked to try it."""

STA_UNSYNC = 0x40
TIMEX_BYTES = 512
"""More than ``struct timex`` has."""
STATUS_OFFSET = 40
"""Offset of ``status`` in it, where a long has 8 bytes; ``adjtimex(2)``."""


def machine(folder: Path | None, package: Path) -> Machine:
    """Facts of this process's machine.

    Args:
        folder: of the run, or None.
        package: a file of this project, beside which its others are.
    """
    limits = {name: resource.getrlimit(number) for name, number in LIMITS.items()}
    return Machine(
        shared_memory=_disk("shared memory", node.SHARED_MEMORY),
        disks=tuple(_disks(folder)),
        limits=limits,
        most_tasks_of_container=_most_tasks(),
        may_lock_memory=_may_lock_beyond(limits["memlock"][0]),
        infiniband=_names(Path("/sys/class/infiniband")),
        interfaces=tuple(name for _, name in socket.if_nameindex()),
        compiler=_compiler(),
        has_python_headers=Path(sysconfig.get_paths()["include"], "Python.h").exists(),
        user=_user(),
        is_clock_synchronised=_is_clock_synchronised(),
        now=time.time(),
        written=max(file.stat().st_mtime for file in package.parent.glob("*.py")),
        environment=dict(os.environ),
    )


# --- disks ----------------------------------------------------------------------------------------


def _disks(folder: Path | None) -> Iterator[Disk]:
    if folder is not None:
        yield _disk("run folder", folder)
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield Disk(name="temporary folder", path="none", problem=str(error))
        return
    yield _disk("temporary folder", temporary)
    # As triton.knobs and torch._inductor.runtime.cache_dir_utils have them.
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    triton = os.environ.get("TRITON_CACHE_DIR") or Path(home) / ".triton" / "cache"
    compiled = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or temporary / f"torchinductor_{_user()}"
    yield _disk("Triton's cache", Path(triton), is_of_compilers=True)
    yield _disk("cache of torch.compile", Path(compiled), is_of_compilers=True)


def _disk(name: str, path: Path, *, is_of_compilers: bool = False) -> Disk:
    """Free space, and whether a file can be written, in a folder or where it would be made."""
    place = path
    try:
        place = next(each for each in (path, *path.absolute().parents) if each.exists())
        free = node.free_gib(place)
        node.probe_seconds(place)
    except OSError as error:
        absent = "" if place == path else f"not there, and in {place} no file can be written: "
        seen: dict[str, Any] = {"problem": f"{absent}{error.strerror or error}"}
    else:
        seen = {"free_gib": free}
    return Disk(name=name, path=str(path), is_of_compilers=is_of_compilers, **seen)


# --- process --------------------------------------------------------------------------------------


def _most_tasks(
    process: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """The least that the control group of this process and those above it allow."""
    try:
        lines = process.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = []
    for line in lines:
        # As cgroups(7): version 2 has no controllers in the middle, version 1 a tree for each.
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "pids"):
            continue
        top = groups / controllers
        place = top / path.lstrip("/")
        branch = [each for each in (place, *place.parents) if each.is_relative_to(top)]
        found += [_number(each / "pids.max") for each in branch]
    return min((number for number in found if number is not None), default=None)


def _number(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _may_lock_beyond(limit: int) -> bool:
    """Tell whether memory beyond a limit in bytes can be locked.

    It is tried, for the capability does not count in a user namespace. What is too much to try is
    left to the capability.
    """
    if limit == UNLIMITED or limit > MOST_TO_LOCK_BYTES:
        return limit == UNLIMITED or _has_capability(CAP_IPC_LOCK)
    memory = ctypes.create_string_buffer(limit + 2 * mmap.PAGESIZE)
    size = ctypes.c_size_t(len(memory))
    library = ctypes.CDLL(None)
    is_locked: bool = library.mlock(memory, size) == 0
    library.munlock(memory, size)
    return is_locked


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> number & 1)
    return False


def _names(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(path.name for path in folder.iterdir()))
    except OSError:
        return ()


def _compiler() -> str | None:
    """Find the C compiler in the way of triton.runtime.build."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def _is_clock_synchronised() -> bool | None:
    """Ask the kernel, to which every time service reports; the clock is not changed."""
    answer = ctypes.create_string_buffer(TIMEX_BYTES)
    try:
        state = ctypes.CDLL(None).adjtimex(answer)
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    (status,) = struct.unpack_from("i", answer, STATUS_OFFSET)
    return not status & STA_UNSYNC
