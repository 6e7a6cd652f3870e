"""Judge the machine: shared memory, disks, clock, user, environment variables."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

from tst_megatron.nodes.doctor.facts import Disk, Machine, Probe
from tst_megatron.nodes.doctor.finding import Finding, note, ok, problem
from tst_megatron.recipe.environment import strange_values
from tst_megatron.recipe.profiles import GPU_PROFILES
from tst_megatron.system.machine import node

SECONDS_OF_A_DAY = 86400.0
"""Files may come from a machine whose clock is a little ahead."""

INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")

HURTS = {
    "CUDA_LAUNCH_BLOCKING": "every kernel is waited for; for the search of a fault alone",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "every tensor is allocated by CUDA itself, which is slow",
    "NCCL_P2P_DISABLE": "GPUs of a node no longer send over NVLink",
    "NCCL_SHM_DISABLE": "GPUs of a node no longer send through shared memory",
    "NCCL_IB_DISABLE": "nodes send over Ethernet, although there may be InfiniBand",
    "TORCHDYNAMO_DISABLE": "what Megatron fuses by torch.compile is no longer fused",
    "PYTHONOPTIMIZE": "Python leaves out the assertions by which Megatron checks its arguments",
}
"""Variables that help to find a fault and slow a run down, with their cost."""

ATTENTION = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")
"""Megatron sets them by `attention-backend`, and refuses to start if they were set otherwise."""

FOLDERS = {
    "temporary folder": "TMPDIR",
    "Triton's cache": "TRITON_CACHE_DIR",
    "cache of torch.compile": "TORCHINDUCTOR_CACHE_DIR",
}
"""The variable that moves each of them."""

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def memory_findings(machine: Machine, profile: str) -> list[Finding]:
    """Check for enough shared memory for NCCL and loaders; without NCCL a little is enough."""
    return [
        _disk_finding(
            machine.shared_memory,
            needed_gib=node.MIN_SHARED_MEMORY_GIB,
            grade=problem if profile in GPU_PROFILES else note,
            fix="start the container with --shm-size=16g or --ipc=host; elsewhere mount -o "
            "remount,size=16g /dev/shm, and remove what ended processes left in it",
        )
    ]


def disk_findings(machine: Machine, profile: str) -> list[Finding]:
    """Check for free space and permission in the folders that a run writes to."""
    found = []
    for disk in machine.disks:
        if disk.is_of_compilers and profile not in GPU_PROFILES:
            continue
        variable = FOLDERS.get(disk.name)
        fix = "choose a folder that this user may write to, or correct its permissions"
        if not disk.problem:
            fix = "free space there, or choose another folder"
        fix = f"{fix}: export {variable}=FOLDER" if variable else fix
        found.append(_disk_finding(disk, needed_gib=node.MIN_FREE_GIB, fix=fix))
    return found


def compiler_findings(machine: Machine, profile: str) -> list[Finding]:
    """Check that Triton and torch.compile can compile; the CPU host needs no compiler."""
    if profile not in GPU_PROFILES:
        return []
    found = []
    if machine.compiler is None:
        found.append(
            problem(
                "C compiler",
                "none",
                needed="gcc, clang or what CC names: Triton compiles a part of each kernel with it",
                fix="apt-get install gcc, or export CC=COMPILER",
            )
        )
    if not machine.has_python_headers:
        found.append(
            problem(
                "Python.h",
                "not there",
                needed="the headers of this Python, against which Triton compiles",
                fix="apt-get install python3.12-dev, or a Python that uv brings",
            )
        )
    return found or [ok("C compiler", f"{machine.compiler}, with Python.h")]


def user_findings(machine: Machine) -> list[Finding]:
    """Check that the user has a name, without which Megatron cannot be imported."""
    # `machine.user` heeds the variables that give a name.
    if machine.user is not None or "TORCHINDUCTOR_CACHE_DIR" in machine.environment:
        return []
    return [
        problem(
            "user",
            f"number {os.getuid()} has no name here",
            needed="a name, by which torch.compile calls its cache, on the CPU too",
            fix="export USER=NAME",
        )
    ]


def _disk_finding(
    disk: Disk, *, needed_gib: float, fix: str, grade: Callable[..., Finding] = problem
) -> Finding:
    name, needed = disk.name, f"{needed_gib:g} GiB free, and permission to write"
    if disk.problem or disk.free_gib is None:
        return problem(name, f"{disk.path}: {disk.problem}", needed=needed, fix=fix)
    if node.space_problems(name, disk.free_gib, needed_gib):
        found = f"{disk.path}: {disk.free_gib:.2f} GiB free"
        return grade(name, found, needed=needed, fix=fix)
    return ok(name, f"{disk.path}: {disk.free_gib:.1f} GiB free")


def clock_findings(machine: Machine) -> list[Finding]:
    """Check that the clock is right, as far as one machine can tell."""
    here = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(machine.now))
    fix = "start its time service (chronyd, systemd-timesyncd, ntpd) on the machine itself, not in "
    fix += "a container"
    if machine.now < machine.written - SECONDS_OF_A_DAY:
        written = time.strftime("%Y-%m-%d", time.gmtime(machine.written))
        return [
            problem(
                "clock",
                f"{here}, before this project's own files were written ({written})",
                needed="the time: certificates, ages of checkpoints and logs depend on it",
                fix=fix,
            )
        ]
    if machine.is_clock_synchronised:
        return [ok("clock", f"{here}, synchronised")]
    state = "does not say whether it is" if machine.is_clock_synchronised is None else "is not"
    return [
        note(
            "clock",
            f"{here}; the kernel {state} synchronised"
            if machine.is_clock_synchronised is None
            else f"{here}, not synchronised",
            needed="a clock that a time service keeps; preflight compares those of all nodes",
            fix=fix,
        )
    ]


# --- environment ----------------------------------------------------------------------------------


def path_findings(modules: Probe) -> list[Finding]:
    """Check that Python can look for modules at all."""
    if modules.problem is None:
        return []
    return [
        problem(
            "Python's path",
            f"modules could not be looked for: {modules.problem}",
            needed="folders on PYTHONPATH and in the environment that Python can search",
            fix="unset PYTHONPATH, start in another folder, or make the environment anew",
        )
    ]


def environment_findings(machine: Machine, profile: str, *, is_compute: bool) -> list[Finding]:
    """List environment variables that stop a run, slow it down, or make it wait for a network.

    Args:
        machine: with its environment.
        profile: that of the run.
        is_compute: whether this is an image or a job, where there is often no network.
    """
    found = [
        *_interfaces(machine),
        *_harmful(machine),
        *_of_the_profile(machine, profile),
    ]
    return [
        *(found or [ok("environment", "no variable that is known to hurt")]),
        *_offline(machine, is_compute=is_compute),
    ]


def _interfaces(machine: Machine) -> Iterator[Finding]:
    for name in INTERFACES:
        value = machine.environment.get(name, "")
        if not value or _has_interface(value, machine.interfaces):
            continue
        yield problem(
            name,
            f"{value}, and there are {', '.join(machine.interfaces) or 'none'}",
            needed="a network interface of this machine",
            fix=f"name one that all nodes have in slurm/site.env, or unset {name}",
        )


def _has_interface(value: str, interfaces: Sequence[str]) -> bool:
    """Tell whether NCCL finds an interface: prefixes; ``=`` means full names, ``^`` all others."""
    names = [name for name in value.lstrip("^=").split(",") if name]

    def is_named(interface: str) -> bool:
        return interface in names if "=" in value[:2] else interface.startswith(tuple(names))

    return any(is_named(each) != value.startswith("^") for each in interfaces)


def _harmful(machine: Machine) -> Iterator[Finding]:
    for name, why in HURTS.items():
        value = machine.environment.get(name, "")
        if value not in ("", "0"):
            yield note(name, value, needed=f"not set: {why}", fix=f"unset {name}")
    given = [name for name in ATTENTION if name in machine.environment]
    if given:
        yield note(
            "attention",
            ", ".join(f"{name}={machine.environment[name]}" for name in given),
            needed="not set: Megatron sets them by attention-backend, and ends if they differ",
            fix=f"unset {' '.join(given)}",
        )


def _of_the_profile(machine: Machine, profile: str) -> Iterator[Finding]:
    if profile not in GPU_PROFILES:
        return
    for name, values in strange_values(machine.environment).items():
        yield note(
            name,
            machine.environment[name],
            needed=f"{' or '.join(values)}, as the recipe decides",
            fix="tst-megatron check RECIPE --environment FILE writes the variables of a run; the "
            "job scripts set them",
        )


def _offline(machine: Machine, *, is_compute: bool) -> Iterator[Finding]:
    values = {name: machine.environment.get(name) or "not set" for name in OFFLINE}
    shown = ", ".join(f"{name}: {value}" for name, value in values.items())
    if not is_compute or all(machine.environment.get(name) for name in OFFLINE):
        yield ok("offline", shown)
        return
    yield note(
        "offline",
        shown,
        needed="1: without a network libraries wait for a hub, and with one every rank asks it",
        fix=f"export {' '.join(f'{name}=1' for name in OFFLINE)}; the job scripts do",
    )
