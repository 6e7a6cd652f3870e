"""The CPU host: Megatron without CUDA, for trying, testing and exporting on any machine.

Megatron-Core assumes CUDA in many small places although its maths does not need it. ``FAKES`` below
is the whole list of stand-ins, each with the reason it exists and what it hides; ``install`` puts
them in place, and nothing else in this project asks which host it runs on. Every artifact of a run
under this host says ``device: cpu``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tst_megatron.megatron.cpu import gloo
from tst_megatron.megatron.cpu.arguments import ARGUMENTS as ARGUMENTS

DEVICE = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fake:
    """One replaced attribute."""

    target: str
    """Import path of the attribute, ``module:attribute.path``."""
    replacement: Any
    needed_by: str
    hides: str


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


class _Stream:
    """A CUDA stream on a machine that runs everything in order."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return (0, 0)

    def wait_stream(self, _: Any) -> None:
        pass

    def wait_event(self, _: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        return event or _Event()

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class _Event:
    """A CUDA event that has always happened."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def wait(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Any) -> float:
        return 0.0


@contextlib.contextmanager
def _on_stream(_: Any) -> Iterator[None]:
    yield


def _constant(value: Any) -> Callable[..., Any]:
    # A new function each time: torch._dynamo refuses one object under two names.
    def answer(*_: Any, **__: Any) -> Any:
        return value

    return answer


def _not_compiled(function: Any = None, **_: Any) -> Any:
    return (lambda inner: inner) if function is None else function


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(int(seed))


def _get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(state)


def _cuda(
    name: str, replacement: Any, needed_by: str, hides: str = "nothing: there is one device"
) -> Fake:
    return Fake(
        target=f"torch.cuda:{name}", replacement=replacement, needed_by=needed_by, hides=hides
    )


def _checkpoint_worker(*args: Any) -> None:
    # A fresh process, which belongs to a rank that runs under this host already.
    install(even_with_gpu=True)
    from tst_megatron.megatron.repairs import repairs

    repairs.checkpoint_worker(*args)


_RNG = "tensor_parallel.random and checkpointing keep CUDA's RNG state"
_ONE_RNG = "CUDA's generator is the CPU's default one, so both states of a checkpoint are the same"
_MEMORY = "training_log and report_memory"
_NO_MEMORY = "memory figures read 0"

FAKES: tuple[Fake, ...] = (
    Fake(
        target="torch:compile",
        replacement=_not_compiled,
        needed_by="megatron.core.jit decorates functions at import; compiling C++ takes minutes",
        hides="fused element-wise functions; they run as written",
    ),
    _cuda("current_device", _constant(DEVICE), "every device=torch.cuda.current_device()"),
    _cuda("device_count", _constant(1), "initialize: with 0 it builds no process groups"),
    _cuda("set_device", _constant(None), "initialize"),
    _cuda("synchronize", _constant(None), "timers, checkpoint strategies"),
    _cuda("empty_cache", _constant(None), "checkpoint loading"),
    _cuda("ipc_collect", _constant(None), "checkpoint workers"),
    _cuda("Stream", _Stream, "overlap helpers of schedules and DDP", "that nothing overlaps"),
    _cuda("Event", _Event, "overlap helpers", "that nothing overlaps"),
    _cuda("stream", _on_stream, "overlap helpers", "that nothing overlaps"),
    _cuda("current_stream", _constant(_Stream()), "overlap helpers", "that nothing overlaps"),
    _cuda("default_stream", _constant(_Stream()), "overlap helpers", "that nothing overlaps"),
    _cuda("set_stream", _constant(None), "overlap helpers", "that nothing overlaps"),
    _cuda("is_current_stream_capturing", _constant(False), "MoE token dispatcher"),
    _cuda("nvtx.range_push", _constant(None), "profiling ranges", "profiling ranges"),
    _cuda("nvtx.range_pop", _constant(None), "profiling ranges", "profiling ranges"),
    _cuda("memory_stats", _constant({}), _MEMORY, _NO_MEMORY),
    _cuda("memory_allocated", _constant(0), _MEMORY, _NO_MEMORY),
    _cuda("max_memory_allocated", _constant(0), _MEMORY, _NO_MEMORY),
    _cuda("memory_reserved", _constant(0), _MEMORY, _NO_MEMORY),
    _cuda("max_memory_reserved", _constant(0), _MEMORY, _NO_MEMORY),
    _cuda("device_memory_used", _constant(0), _MEMORY, _NO_MEMORY),
    _cuda(
        "get_device_properties",
        _constant(types.SimpleNamespace(name="cpu", major=0, minor=0, total_memory=0)),
        "argument validation asks for the architecture",
        "every CUDA feature",
    ),
    _cuda("get_device_capability", _constant((0, 0)), "feature probes", "every CUDA feature"),
    _cuda("manual_seed", _seed, _RNG, _ONE_RNG),
    _cuda("get_rng_state", _get_rng_state, _RNG, _ONE_RNG),
    _cuda("set_rng_state", _set_rng_state, _RNG, _ONE_RNG),
    _cuda("random.get_rng_state", _get_rng_state, _RNG, _ONE_RNG),
    _cuda("random.set_rng_state", _set_rng_state, _RNG, _ONE_RNG),
    Fake(
        target="megatron.core.tensor_parallel.random:_get_cuda_rng_state",
        replacement=_get_rng_state,
        needed_by=_RNG,
        hides=_ONE_RNG,
    ),
    Fake(
        target="megatron.core.tensor_parallel.random:_set_cuda_rng_state",
        replacement=_set_rng_state,
        needed_by=_RNG,
        hides=_ONE_RNG,
    ),
    Fake(
        target="torch.nn:Module.cuda",
        replacement=lambda module, device=None: module,
        needed_by="model construction moves each module to its device",
        hides="nothing: the module is where it belongs",
    ),
    Fake(
        target="torch.distributed:all_to_all_single",
        replacement=gloo.all_to_all_with_list_splits,
        needed_by="the MoE token dispatcher passes its split sizes as tensors",
        hides="gloo's refusal of them",
    ),
    Fake(
        target="torch.distributed:all_gather",
        replacement=gloo.all_gather_of_any_sizes,
        needed_by="the MoE token dispatcher gathers over expert-tensor-parallel ranks, of which "
        "each has tokens of its own number",
        hides="gloo's refusal of different sizes",
    ),
    Fake(
        target="torch.distributed:reduce_scatter",
        replacement=gloo.reduce_scatter_of_any_sizes,
        needed_by="the MoE token dispatcher, on the way back",
        hides="gloo's refusal of different sizes",
    ),
    Fake(
        target="megatron.training.initialize:_warmup_jit_function",
        replacement=_constant(None),
        needed_by="set_jit_fusion_options runs functions that would be compiled, on random tensors "
        "as large as a micro-batch, from CUDA's generator, which here is the one of the weights",
        hides="nothing: nothing is compiled",
    ),
    Fake(
        target="megatron.core.dist_checkpointing.strategies.async_utils:"
        "PersistentAsyncCaller.async_loop",
        replacement=_checkpoint_worker,
        needed_by="asynchronous saves: their worker asks for its device before anything else",
        hides="nothing: the worker runs under this host too",
    ),
)

_installed = threading.local()


def is_needed() -> bool:
    """Whether this machine has no GPU that torch can use."""
    return not torch.cuda.is_available()


def is_in_use_elsewhere() -> bool:
    """Whether this process already works on a GPU, so that the host can no longer be installed."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def is_installed() -> bool:
    """Whether this process runs under the CPU host."""
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
    for fake in FAKES:
        if fake.target.startswith("torch"):
            _replace(fake.target, fake.replacement)
    # Imported now and not above: importing Megatron already needs those of torch.
    from tst_megatron.megatron import initial_weights
    from tst_megatron.megatron.repairs import repairs

    for fake in FAKES:
        if fake.target.startswith("megatron"):
            _replace(fake.target, fake.replacement)
    repairs.allow_no_cuda()
    repairs.repair_wheel()
    initial_weights.draw_by_place()
    # Validation demands it of every GPU before Blackwell when tensor parallelism is on.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    mode = _CUDAOnCPU()
    mode.__enter__()  # type: ignore[no-untyped-call]
    _installed.mode = mode


def install_without_values() -> None:
    """Let this process build models, and nothing else: every tensor is on torch's meta device.

    What Megatron took from torch before stays real, which building does not feel. For a process
    that ends when the model is built (``rehearsal.py``).
    """
    global DEVICE
    DEVICE = torch.device("meta")
    for fake in FAKES:
        _replace(fake.target, fake.replacement)
    torch.cuda.current_device = lambda: DEVICE  # type: ignore[assignment,return-value]
    from tst_megatron.megatron.repairs import repairs

    repairs.allow_no_cuda()
    repairs.repair_wheel()
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
