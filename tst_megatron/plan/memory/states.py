"""Count the bytes that a rank holds between steps: parameters, gradients, optimizer state, buffers.

Storages are counted and not tensors, since Megatron lays parameters and gradients into large
buffers, whose padding takes memory too.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tst_megatron.megatron.optimizer import optimizers_of


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """Bytes that a rank holds between steps, by part."""

    parameters: int
    """The model's weights, with the padding of their buffer."""
    gradients: int
    """The buffer that gradients are added up in, with its padding."""
    main_parameters: int
    """The optimizer's own copies of this rank's shard of the weights."""
    moments: int
    """All else that the optimizer keeps of each weight; its counts of steps are in host memory."""
    buffers: int
    """Tensors of the model that are not trained."""

    @property
    def optimizer(self) -> int:
        """Return the bytes of the optimizer."""
        return self.main_parameters + self.moments

    @property
    def total(self) -> int:
        """Return the bytes of all parts."""
        return sum(dataclasses.astuple(self))


def count_states(models: Sequence[Any], optimizer: Any) -> States:
    """Count the bytes of a rank's model chunks and of its optimizer after the first step.

    Args:
        models: the chunks, in Megatron's data parallelism.
        optimizer: Megatron's, which has taken a step or been given ``moments_of_first_step``.
    """
    parameters = [each for model in models for each in model.parameters()]
    weights = _storages(parameters)
    gradients = _storages(getattr(each, "main_grad", each.grad) for each in parameters)
    inner = [part.optimizer for part in optimizers_of(optimizer)]
    copies = _storages(
        each for part in inner for group in part.param_groups for each in group["params"]
    )
    moments = _storages(
        value
        for part in inner
        for state in part.state.values()
        for name, value in state.items()
        if name != "step"
    )
    # Data parallelism has a list of that name.
    buffers = _storages(each for model in models for each in model.module.buffers())
    return States(
        parameters=sum(weights.values()),
        gradients=sum(gradients.values()),
        # An fp32 weight is its own main copy: the optimizer has a view of it.
        main_parameters=sum(size for key, size in copies.items() if key not in weights),
        moments=sum(moments.values()),
        buffers=sum(size for key, size in buffers.items() if key not in weights),
    )


@torch.no_grad()
def moments_of_first_step(optimizer: Any) -> None:
    """Let an optimizer without values make its moments as its first step would."""
    for part in optimizers_of(optimizer):
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        part.optimizer.step()
        part.optimizer.zero_grad(set_to_none=True)


def of_the_job(plain: States, args: argparse.Namespace) -> States:
    """Return the states in the types that a job asks for, of which the plain form has fp32.

    Args:
        plain: of the form that ``setup_without_values.plain_arguments`` describes.
        args: of the job.
    """
    if not args.use_precision_aware_optimizer:
        return plain
    num_moments = plain.moments // 8
    # TE FusedAdam keeps those 16 bits of an fp32 copy that its bf16 weight lacks
    # (optimizer_config.py: store_param_remainders, and distrib_optimizer.py, which never lets it
    # hold copies beside FP8 weights).
    copies = args.main_params_dtype.itemsize
    has_copies_in_adam = copies < 4 or not args.fp8 or args.fp8_recipe == "delayed"
    if args.bf16 and copies == 4 and has_copies_in_adam:
        copies = 2
    return dataclasses.replace(
        plain,
        main_parameters=plain.main_parameters // 4 * copies,
        moments=num_moments * (args.exp_avg_dtype.itemsize + args.exp_avg_sq_dtype.itemsize),
    )


def _storages(tensors: Iterable[Tensor | None]) -> dict[int, int]:
    """Return bytes by storage; on the meta device storages have no address, but an identity."""
    storages = (each.untyped_storage() for each in tensors if isinstance(each, Tensor))
    return {storage._cdata: storage.nbytes() for storage in storages}
