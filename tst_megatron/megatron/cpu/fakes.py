"""The table of what stands in for CUDA on a machine without it.

Each row names the attribute that is replaced, its replacement, who needs it, and what the stand-in
hides from a run on the CPU. ``host.install`` puts them in place. The last stand-in, that of the
checkpoint worker, is in ``host.py``, since it installs the CPU host itself.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tst_megatron.megatron.cpu import gloo
from tst_megatron.system.machine.memory import peak_resident_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Fake:
    """One attribute of torch or Megatron that is replaced."""

    target: str
    """Import path of the attribute, ``module:attribute.path``."""
    replacement: Any
    needed_by: str
    """The code that would fail or go wrong without it."""
    hides: str
    """The behaviour of a GPU that a run with it does not show."""


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


def _peak_memory(*_: Any, **__: Any) -> int:
    return peak_resident_bytes()


def _cuda(
    name: str, replacement: Any, needed_by: str, hides: str = "nothing: there is one device"
) -> Fake:
    return Fake(
        target=f"torch.cuda:{name}", replacement=replacement, needed_by=needed_by, hides=hides
    )


_RNG = "tensor_parallel.random and checkpointing keep CUDA's RNG state"
_ONE_RNG = "CUDA's generator is the CPU's default one, so both states of a checkpoint are the same"
_MEMORY = "training_log and report_memory"
_NO_MEMORY = "memory figures read 0"

STAND_INS: tuple[Fake, ...] = (
    Fake(
        target="torch:compile",
        replacement=_not_compiled,
        needed_by="megatron.core.jit decorates functions at import; compiling C++ takes minutes",
        hides="fused element-wise functions; they run as written",
    ),
    _cuda(
        "current_device", _constant(torch.device("cpu")), "every device=torch.cuda.current_device()"
    ),
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
    _cuda(
        "max_memory_allocated",
        _peak_memory,
        f"{_MEMORY}, and the rows of metrics.jsonl",
        "tensors alone: it is the memory of the whole process",
    ),
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
)
