"""Run Megatron without CUDA: for trying, testing and exporting on any machine.

Megatron-Core assumes CUDA in many small places although its maths does not need it. ``FAKES`` is
the complete list of stand-ins, each with the reason it exists and what it hides, and
``hidden.HIDDEN`` that of packages for GPUs, which Megatron must not find. ``install`` puts them in
place. Beside it only what answers Megatron's validation asks whether there is a GPU. Every artifact
of a run under this host says ``device: cpu``.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tst_megatron.megatron.cpu.arguments import ARGUMENTS as ARGUMENTS
from tst_megatron.megatron.cpu.fakes import STAND_INS, Fake
from tst_megatron.megatron.cpu.hidden import hide_packages

DEVICE = torch.device("cpu")
"""The device that every request for CUDA is answered with."""


class _CUDAOnCPU(TorchFunctionMode):
    """Every request for a CUDA device is answered by the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # clip_grads asserts on this very name.
            return func(*args).replace("meta.", "").replace("torch.", "torch.cuda.", 1)
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        if func is torch.Tensor.to:
            args = (args[0], *(_on_cpu(value) for value in args[1:]))
        return func(*args, **kwargs)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return DEVICE
    is_cuda_name = isinstance(value, str) and value.startswith("cuda")
    is_cuda_device = isinstance(value, torch.device) and value.type == "cuda"
    return DEVICE if is_cuda_name or is_cuda_device else value


def _checkpoint_worker(*args: Any) -> None:
    # A fresh process, which belongs to a rank that runs under this host already.
    install(even_with_gpu=True)
    # Importing Megatron needs the fakes of torch, which are in place from here on.
    from tst_megatron.megatron.repairs.checkpoint_processes import checkpoint_worker

    checkpoint_worker(*args)


FAKES: tuple[Fake, ...] = (
    *STAND_INS,
    Fake(
        target="megatron.core.dist_checkpointing.strategies.async_utils:"
        "PersistentAsyncCaller.async_loop",
        replacement=_checkpoint_worker,
        needed_by="asynchronous saves: their worker asks for its device before anything else",
        hides="nothing: the worker runs under this host too",
    ),
)
"""All stand-ins, in the order in which they are put in place."""

_installed = threading.local()


def is_needed() -> bool:
    """Tell whether this machine has no GPU that torch can use."""
    return not torch.cuda.is_available()


def has_no_gpu() -> bool:
    """Tell whether this process cannot ask a GPU: there is none, or the host stands in for it."""
    return is_installed() or is_needed()


def is_in_use_elsewhere() -> bool:
    """Tell whether this process already works on a GPU: the host can no longer be installed."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def is_installed() -> bool:
    """Tell whether this process runs under the CPU host."""
    return getattr(_installed, "mode", None) is not None


def install(*, even_with_gpu: bool = False) -> None:
    """Put every fake in place, once, for the rest of this process.

    Args:
        even_with_gpu: run on the CPU although this machine has a GPU.

    Raises:
        RuntimeError: a GPU is present and ``even_with_gpu`` is not set: training on the CPU beside
            an idle GPU is a mistake unless it is said to be wanted. Or Megatron was imported
            before.
    """
    if is_installed():
        return
    if torch.cuda.is_available() and not even_with_gpu:
        raise RuntimeError(
            "The CPU host was asked for, but this machine has a GPU. Use a GPU profile, or hide "
            "the GPU with CUDA_VISIBLE_DEVICES= if the run is meant for the CPU."
        )
    if "megatron.core" in sys.modules:
        raise RuntimeError(
            "The CPU host must be installed before Megatron is imported: what Megatron took from "
            "torch by then would stay real."
        )
    hide_packages()
    for fake in FAKES:
        if fake.target.startswith("torch"):
            _replace(fake.target, fake.replacement)
    # Importing Megatron needs the fakes of torch, which are in place from here on.
    from tst_megatron.megatron import initial_weights

    # Imports Megatron too. It takes Megatron's own worker of saves before that is replaced.
    from tst_megatron.megatron.repairs import apply, no_cuda

    for fake in FAKES:
        if fake.target.startswith("megatron"):
            _replace(fake.target, fake.replacement)
    no_cuda.allow_no_cuda()
    apply.repair_wheel()
    initial_weights.draw_by_place()
    # Validation demands it of every GPU before Blackwell when tensor parallelism is on.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    mode = _CUDAOnCPU()
    mode.__enter__()  # type: ignore[no-untyped-call]
    _installed.mode = mode


def install_without_values() -> None:
    """Let this process build models, and nothing else: every tensor is on torch's meta device.

    What Megatron took from torch before stays real, which does not matter for building. For a
    process that ends when the model is built (``setup_without_values.py``).
    """
    global DEVICE
    DEVICE = torch.device("meta")
    for fake in FAKES:
        _replace(fake.target, fake.replacement)
    torch.cuda.current_device = lambda: DEVICE  # type: ignore[assignment,return-value]
    # Importing Megatron needs the fakes of torch, which are in place from here on.
    from tst_megatron.megatron.repairs import apply, no_cuda

    no_cuda.allow_no_cuda()
    apply.repair_wheel()
    if not is_installed():
        _CUDAOnCPU().__enter__()  # type: ignore[no-untyped-call]


def _replace(target: str, replacement: Any) -> None:
    module_name, _, path = target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    if not hasattr(owner, name):
        raise RuntimeError(f"{target} does not exist in this version of its package")
    setattr(owner, name, replacement)
