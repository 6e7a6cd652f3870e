"""Change model parameters between steps, in every copy that the optimizer keeps.

A parameter of a bf16 model has an fp32 copy and two moments. The distributed optimizer cuts them
into shards over data-parallel ranks. A value that only the model is given is lost at the next step,
which writes the fp32 copy back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tst_megatron.megatron import names


def optimizers_of(optimizer: Any) -> list[Any]:
    """List the optimizers of a chained one that have parameters on this rank."""
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in chained if not getattr(part, "is_stub_optimizer", False)]


@torch.no_grad()
def assign(optimizer: Any, parameter: Parameter, value: Tensor) -> None:
    """Give a parameter a value in every copy of it, and zero moments.

    ``Optimizer.reload_model_params`` would do this for all parameters at once, and round the fp32
    copies of those that are not to change.

    Args:
        optimizer: of the run.
        parameter: of the model, as this rank holds it.
        value: fp32, of the parameter's shape; the same on every data-parallel rank.
    """
    parameter.copy_(value)
    for part in optimizers_of(optimizer):
        if isinstance(part, names.distrib_optimizer.DistributedOptimizer):
            if parameter in part.model_param_group_index_map:
                own = part._get_model_param_range_map(parameter)["param"]
                _set_shard(part, parameter, value.view(-1)[own.start : own.end])
        else:
            main = getattr(parameter, "main_param", parameter)
            if any(main is each for group in part.param_groups for each in group["params"]):
                main.copy_(value)
                _zero_moments(part.optimizer.state.get(main, {}))


@torch.no_grad()
def start_anew(optimizer: Any) -> None:
    """Zero the moments and the count of steps of every optimizer, as if it had not stepped."""
    for part in optimizers_of(optimizer):
        if isinstance(part, names.distrib_optimizer.DistributedOptimizer):
            for parameter in part.model_param_group_index_map:
                _set_shard(part, parameter, None)
        else:
            for state in part.optimizer.state.values():
                _zero_moments(state)
        # Adam of torch counts by parameter; those of Apex and Transformer Engine by group.
        for counted in (*part.optimizer.state.values(), *part.optimizer.param_groups):
            if "step" in counted:
                counted["step"] = counted["step"] * 0


def _set_shard(part: Any, parameter: Parameter, value: Tensor | None) -> None:
    """Zero this rank's moments of a parameter; give its fp32 shard a value, or leave it."""
    tensors = part._get_main_param_and_optimizer_states(parameter)
    moments = {key: torch.zeros_like(tensors[key]) for key in _moments(tensors)}
    main = tensors["param"] if value is None else value
    # The step is not set here: it is the same for all parameters.
    part._set_main_param_and_optimizer_states(
        parameter, {"step": tensors.get("step"), **moments, "param": main}
    )


def _zero_moments(state: Mapping[str, Any]) -> None:
    for key in _moments(state):
        state[key].zero_()


def _moments(state: Mapping[str, Any]) -> list[str]:
    return [key for key in state if key not in ("step", "param", "master_param")]


def gather_parameters(model_chunks: Sequence[Any], optimizer: Any) -> None:
    """Give every data-parallel rank the current parameters, if Megatron gathers them later.

    With ``overlap-param-gather`` a rank has the parameters of the step before until its next
    forward pass.
    """
    if names.training.should_disable_forward_pre_hook(names.get_args()):
        names.training.force_param_sync(model_chunks, optimizer=optimizer)
