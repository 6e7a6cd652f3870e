"""Choose the device that a command runs a model on, and say what this machine has."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tst_megatron.megatron.cpu import host


def find(device: str | None) -> str:
    """Return the device that was asked for, or else a GPU if this machine has one.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``; None leaves the choice to the machine.

    Raises:
        ValueError: another name, or a GPU where torch sees none.
    """
    if device is None:
        return "cpu" if host.is_needed() else "cuda"
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise ValueError(f"--device {device} is none of cpu, cuda, cuda:N")
    if device != "cpu" and host.is_needed():
        raise ValueError(f"--device {device}: torch sees no GPU here. Use cpu")
    return device


def backend(wanted: str) -> str:
    """Return the backend of collectives; ``auto`` is NCCL on a machine with a GPU, else gloo."""
    if wanted == "auto":
        return "gloo" if host.is_needed() else "nccl"
    return wanted


def lacks_gpu(local_rank: int) -> str | None:
    """Say why a rank has no GPU of its own here; None if it has one."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank < num_gpus:
        return None
    return f"torch sees {num_gpus} GPUs, none for local rank {local_rank}"


def why_not_here(profile: str | None, *, num_ranks: int = 1) -> str | None:
    """Say why a recipe cannot be trained on this machine, and what to do; None if it can.

    Args:
        profile: of the recipe, or None. Every one but ``cpu`` trains on GPUs, and so does None.
        num_ranks: that are to run on this machine, each with a GPU of its own.
    """
    if profile == "cpu":
        return None
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus >= num_ranks:
        return None
    given = "the recipe names no profile" if profile is None else f"the recipe says {profile}"
    if num_gpus:
        return (
            f"profile: {given}, so that each of the {num_ranks} ranks needs a GPU of its own, and "
            f"torch can use {num_gpus} on this machine. Start as many ranks as GPUs, or use "
            "another machine"
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    why = f" (CUDA_VISIBLE_DEVICES is {hidden!r})" if hidden is not None else ""
    return (
        f"profile: {given}, so it trains on a GPU, and torch can use none on this machine{why}. To "
        "train on the CPU, write `profile: cpu` into the recipe, or add profile=cpu to this "
        "command; else start on a machine with a GPU. `tst-megatron doctor` says what is missing"
    )


def of_rank(backend: str, local_rank: int) -> torch.device:
    """Return the device of a rank's collectives, and make it the current one."""
    if backend != "nccl":
        return host.DEVICE
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def library_versions(backend: str) -> dict[str, str]:
    """List the versions of CUDA and NCCL that torch brings, and the backend of collectives here."""
    found = {"backend": backend, "cuda": str(torch.version.cuda)}
    if backend == "nccl" and torch.cuda.is_available():
        found["nccl"] = _nccl_version()
    return found


def seen_by_torch() -> dict[str, Any]:
    """Ask torch about itself, about the GPUs that it can use, and about backends of collectives.

    Returns:
        ``version``, ``cuda`` (None where torch was built without), ``gpus`` (name and compute
        capability of each that computes), ``warnings`` (why CUDA does not start), ``sum_problems``
        (of each GPU, why it does not compute, or None), ``carriers``, ``nccl``, ``gloo_problem``
        (why gloo does not start).
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        problems = [_problem_of(partial(_sum, index)) for index in range(num_gpus)]
    gpus = [_gpu(index) for index, problem in enumerate(problems) if problem is None]
    is_built = torch.distributed.is_available()
    available = {"gloo": is_built and torch.distributed.is_gloo_available()}
    available["nccl"] = is_built and torch.distributed.is_nccl_available()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "num_gpus": num_gpus,
        "gpus": gpus,
        "warnings": [" ".join(str(each.message).split()) for each in caught],
        "sum_problems": problems,
        "carriers": [name for name, is_there in available.items() if is_there],
        "nccl": _nccl_version() if available["nccl"] else None,
        "gloo_problem": _problem_of(_start_gloo) if available["gloo"] else None,
    }


def _sum(index: int) -> float:
    return torch.ones(2, device=f"cuda:{index}").sum().item()


def _gpu(index: int) -> dict[str, Any]:
    seen = torch.cuda.get_device_properties(index)
    return {"name": seen.name, "capability": [seen.major, seen.minor]}


def _nccl_version() -> str:
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def _start_gloo() -> None:
    # Fails if the name of this host leads nowhere.
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    torch.distributed.destroy_process_group()


def _problem_of(action: Callable[[], object]) -> str | None:
    try:
        action()
    except RuntimeError as error:
        return str(error).strip().partition("\n")[0]
    return None
