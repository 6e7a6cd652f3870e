"""Change model parameters between steps, in every copy that the optimizer keeps.

A parameter of a bf16 model has an fp32 copy and two moments. The distributed optimizer cuts them
into shards over data-parallel ranks. A value that only the model is given is lost at the next step,
which writes the fp32 copy back.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
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


# --- loading the state of a run that had another schedule -----------------------------------------

_RATES = ("max_lr", "min_lr")
"""What a parameter group has of the schedule. Megatron finds a group's saved state by these too."""
_OTHER_NAMES_OF_A_GROUP = (
    "start_wd",
    "end_wd",
    "wd_mult",
    "lr_mult",
    "is_decoupled_lr",
    "optimizer",
)


@contextlib.contextmanager
def schedule_of_the_arguments(optimizer: Any, scheduler: Any) -> Iterator[None]:
    """Let a load take learning rate and weight decay from this start's arguments.

    Megatron asserts that the saved schedule is that of the arguments, and its switch for taking
    another, ``override-opt_param-scheduler``, is not enough: parameter groups bring their largest
    and smallest rate along, which the scheduler then uses. Remove when that switch holds for
    parameter groups too.

    Args:
        optimizer: of this start, before its load.
        scheduler: likewise.
    """
    load = optimizer.load_state_dict

    @functools.wraps(load)
    def with_own_rates(state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        for group in _saved_groups(state_dict):
            group.update(_rates_of_group(group, optimizer.param_groups))
        return load(state_dict, *args, **kwargs)

    optimizer.load_state_dict = with_own_rates
    scheduler.override_opt_param_scheduler = True
    try:
        yield
    finally:
        del optimizer.load_state_dict
        scheduler.override_opt_param_scheduler = False


def _saved_groups(state: Any) -> Iterator[dict[str, Any]]:
    """Find the parameter groups in the loaded state of one optimizer or of several."""
    if not isinstance(state, dict):
        return
    for key, value in state.items():
        if key == "param_groups":
            yield from value
        else:
            yield from _saved_groups(value)


def _rates_of_group(
    saved: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the rates of this start's groups that are otherwise like a saved one.

    Nothing is returned if they have several: then only the saved rates tell them apart.
    """
    alike = [
        {name: group.get(name) for name in _RATES}
        for group in groups
        if all(group.get(name) == saved.get(name) for name in _OTHER_NAMES_OF_A_GROUP)
    ]
    return alike[0] if alike and all(rates == alike[0] for rates in alike) else {}
