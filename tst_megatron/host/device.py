"""The device that a command which runs a model by itself takes."""

from __future__ import annotations

import re

import torch

from tst_megatron.host import cpu


def find(device: str | None) -> str:
    """The device that was asked for, or a GPU if there is one.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``; None leaves the choice to the machine.

    Raises:
        ValueError: another name, or a GPU where torch sees none.
    """
    if device is None:
        return "cpu" if cpu.is_needed() else "cuda"
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise ValueError(f"--device {device} is none of cpu, cuda, cuda:N")
    if device != "cpu" and cpu.is_needed():
        raise ValueError(f"--device {device}: torch sees no GPU here. Use cpu")
    return device


def backend(wanted: str) -> str:
    """The backend of collectives; ``auto`` takes NCCL if this machine has a GPU, else gloo."""
    if wanted == "auto":
        return "gloo" if cpu.is_needed() else "nccl"
    return wanted


def lacks_gpu(local_rank: int) -> str | None:
    """Why a rank has no GPU of its own here; None if it has one."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank < num_gpus:
        return None
    return f"torch sees {num_gpus} GPUs, none for local rank {local_rank}"


def of_rank(backend: str, local_rank: int) -> torch.device:
    """The device on which a rank's collectives are, made the current one."""
    if backend != "nccl":
        return cpu.DEVICE
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def library_versions(backend: str) -> dict[str, str]:
    """Versions of CUDA and NCCL that torch brings, and what carries collectives here."""
    found = {"backend": backend, "cuda": str(torch.version.cuda)}
    if backend == "nccl" and torch.cuda.is_available():
        version = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        found["nccl"] = ".".join(str(part) for part in version)
    return found
