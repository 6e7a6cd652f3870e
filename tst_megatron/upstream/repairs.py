"""Every workaround for Megatron's wheel, each with the condition for its removal."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tst_megatron.upstream import names


def allow_no_cuda() -> None:
    """Let ``pretrain`` start without CUDA: it does not pass ``allow_no_cuda`` on.

    Remove when it does.
    """

    def permissive(initialize_megatron: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(initialize_megatron, allow_no_cuda=True)

    wrap(names.training, "initialize_megatron", permissive)


def repair_wheel() -> None:
    """Mend what the wheel gets wrong without Transformer Engine or Apex, on any device."""
    wrap(names.dataset_utils, "compile_helpers", _unless_compiled)
    wrap(names.torch_norm.WrappedTorchNorm, "__new__", _with_sequence_parallel)
    if not names.distrib_optimizer.HAVE_APEX_OR_TE:
        optimizer = names.distrib_optimizer.DistributedOptimizer
        wrap(optimizer, "sharded_state_dict", _from_empty_state)
        wrap(optimizer, "load_state_dict", _with_a_step_of_its_own)
        wrap(optimizer, "_set_main_param_and_optimizer_states", _without_step)


def _unless_compiled(compile_helpers: Callable[[], None]) -> Callable[[], None]:
    """The wheel has the compiled helpers but no Makefile, and ``make`` failing ends the process.

    Remove when the wheel skips the build by itself.
    """

    def compile_if_missing() -> None:
        try:
            importlib.import_module("megatron.core.datasets.helpers_cpp")
        except ImportError:
            compile_helpers()

    return compile_if_missing


def _with_sequence_parallel(new: Callable[..., Any]) -> Callable[..., Any]:
    """``WrappedTorchNorm`` asserts against sequence parallelism, which only marks its parameters.

    Remove when it accepts ``sequence_parallel``.
    """

    def build(cls: Any, config: Any, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> Any:
        if not config.sequence_parallel:
            return new(cls, config, hidden_size, eps, **kwargs)
        if config.normalization != "RMSNorm":
            raise ValueError(
                f"normalization {config.normalization}: with sequence parallelism and without "
                "Transformer Engine only RMSNorm is available"
            )
        norm = torch.nn.RMSNorm(hidden_size, eps=eps)
        norm.weight.sequence_parallel = True  # type: ignore[attr-defined]
        return norm

    return build


def _from_empty_state(sharded_state_dict: Callable[..., Any]) -> Callable[..., Any]:
    """A fresh process has no Adam state when it loads, and the optimizer asserts on its step.

    Remove when ``DistributedOptimizer.state_dict`` accepts empty state without Apex and TE.
    """
    signature = inspect.signature(sharded_state_dict)

    @functools.wraps(sharded_state_dict)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_loading = signature.bind(self, *args, **kwargs).arguments.get("is_loading", False)
        if is_loading and not self.optimizer.state:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
        return sharded_state_dict(self, *args, **kwargs)

    return wrapper


def _with_a_step_of_its_own(load_state_dict: Callable[..., Any]) -> Callable[..., Any]:
    """Loading gives all parameters one step tensor, so Adam counts each step once per parameter.

    Remove when ``DistributedOptimizer.load_state_dict`` clones it.
    """

    @functools.wraps(load_state_dict)
    def wrapper(self: Any, state_dict: Any) -> None:
        load_state_dict(self, state_dict)
        for state in self.optimizer.state.values():
            state["step"] = state["step"].clone()

    return wrapper


def _without_step(set_states: Callable[..., Any]) -> Callable[..., Any]:
    """The step is loaded with the parameter groups; here it would be set back to the empty state's.

    Remove when the loop skips the key ``step``, as the one that saves does.
    """

    @functools.wraps(set_states)
    def wrapper(self: Any, model_param: Any, tensors: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            return set_states(self, model_param, {**tensors, "step": None})

    return wrapper


def wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace an upstream attribute by a wrapper of it, once; the original stays reachable."""
    original = getattr(owner, name)
    if getattr(original, "tst_megatron_original", None) is not None:
        return
    replacement = make(original)
    replacement.tst_megatron_original = original
    setattr(owner, name, replacement)
