"""Load a checkpoint of one optimizer into two, and of two into one.

Expert parallelism gives the experts an optimizer of their own: two where there was one. A run that
changes its expert-parallel size meets the other number when it resumes. The tensors of a fully
reshardable checkpoint have the same names under both. What has another shape is the rest: step,
learning rate and the like of each group of parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def of_other_experts(load_state_dict: Callable[..., Any]) -> Callable[..., Any]:
    """Bring loaded state into the shape of as many optimizers as this run has.

    Remove when ``ChainedOptimizer.load_state_dict`` takes the state of one optimizer as that of
    two, and of two as that of one.
    """

    @functools.wraps(load_state_dict)
    def wrapper(self: Any, state_dict: Any) -> None:
        load_state_dict(self, as_optimizers(state_dict, len(self.chained_optimizers)))

    return wrapper


def as_optimizers(state: dict[Any, Any], num_optimizers: int) -> dict[Any, Any]:
    """Return the loaded state of one or two distributed optimizers as that of one or two.

    Args:
        state: one optimizer's has the keys ``optimizer``, ``param_state`` and so on; two have a
            level of numbers above them. After a load both may be there: what was saved has the
            saved number of optimizers, and the tensors that were asked for have this run's.
        num_optimizers: of this run.
    """
    numbered = {key: value for key, value in state.items() if isinstance(key, int)}
    rest = {key: value for key, value in state.items() if key not in numbered}
    if not numbered or not rest or "optimizer" not in {**numbered[0], **rest}:
        # As many as there were, or state of no distributed optimizer, which upstream refuses.
        return state
    if num_optimizers == 1:
        # All groups of parameters of one optimizer are those of the dense one.
        return _with_groups_of_both({**numbered[0], **rest})
    return {number: _with_groups_of_both({**rest, **own}) for number, own in numbered.items()}


def _with_groups_of_both(state: dict[str, Any]) -> dict[str, Any]:
    """Duplicate every parameter group, once as one of experts and once as none.

    ``load_state_dict`` matches groups by that flag, among others.
    """
    groups = [
        {**group, "is_expert_parallel": is_of_experts}
        for group in state["optimizer"]["param_groups"]
        for is_of_experts in (False, True)
    ]
    return {**state, "optimizer": {**state["optimizer"], "param_groups": groups}}
