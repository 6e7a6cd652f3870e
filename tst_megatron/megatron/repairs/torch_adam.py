"""Load the state of torch's Adam into the distributed optimizer, which is written for others.

Without Apex and Transformer Engine the optimizer is torch's. It keeps one ``step`` tensor per
parameter, where theirs keep one count per group.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch


def from_empty_state(sharded_state_dict: Callable[..., Any]) -> Callable[..., Any]:
    """Give Adam a state of zeros before a load, as the place that is loaded into.

    A fresh process has no Adam state when it loads, and the optimizer asserts on its step. Remove
    when ``DistributedOptimizer.state_dict`` accepts empty state without Apex and TE.
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


def with_a_step_of_its_own(load_state_dict: Callable[..., Any]) -> Callable[..., Any]:
    """Give every parameter its own step tensor after a load.

    Loading gives all parameters the same tensor. Adam would then count each optimizer step once
    per parameter. Remove when ``DistributedOptimizer.load_state_dict`` clones it.
    """

    @functools.wraps(load_state_dict)
    def wrapper(self: Any, state_dict: Any) -> None:
        load_state_dict(self, state_dict)
        for state in self.optimizer.state.values():
            state["step"] = state["step"].clone()

    return wrapper


def without_step(set_states: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the step that was loaded with the parameter groups.

    This function would set it back to that of the empty state. Remove when its loop skips the key
    ``step``, as the loop of the function that saves does.
    """

    @functools.wraps(set_states)
    def wrapper(self: Any, model_param: Any, tensors: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            return set_states(self, model_param, {**tensors, "step": None})

    return wrapper
