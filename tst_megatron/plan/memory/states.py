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
    weights_in_8_bits: int = 0
    """Copies that FP8 needs, by a rule (``of_the_job``): only a GPU builds them."""

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


def of_the_job(plain: States, args: argparse.Namespace, models: Sequence[Any]) -> States:
    """Return the states in the types that a job asks for, which a plain form has wider.

    Args:
        plain: of the form that ``setup_without_values.plain_arguments`` describes.
        args: of the job.
        models: the chunks of the plain form.
    """
    if args.use_precision_aware_optimizer:
        moments = args.exp_avg_dtype.itemsize + args.exp_avg_sq_dtype.itemsize
        plain = dataclasses.replace(
            plain,
            main_parameters=plain.main_parameters // 4 * _bytes_of_copies(args),
            moments=plain.moments // 8 * moments,
        )
    if not args.fp8:
        return plain
    names = ("linear_qkv.weight", "linear_proj.weight", "linear_fc1.weight", "linear_fc2.weight")
    quantised = sum(
        parameter.numel()
        for model in models
        for name, parameter in model.module.named_parameters()
        if name.endswith(names)
    )
    # A matrix product reads its weight along rows in one pass and along columns in the other, and
    # TE keeps both forms; MXFP8 has a scale of a byte for 32 numbers of each
    # (transformer_engine/pytorch/tensor/mxfp8_tensor.py, and get_weight_workspace in
    # module/base.py where the weight itself stays bf16).
    forms = 2 * (quantised + (quantised // 32 if args.fp8_recipe == "mxfp8" else 0))
    # With fp8-param-gather no bf16 form of these weights is kept.
    without = 2 * quantised if args.fp8_param_gather else 0
    return dataclasses.replace(
        plain, parameters=plain.parameters - without, weights_in_8_bits=forms
    )


def _bytes_of_copies(args: argparse.Namespace) -> int:
    """Return the bytes of a main copy in the precision-aware optimizer."""
    size = int(args.main_params_dtype.itemsize)
    # TE FusedAdam keeps of an fp32 copy those 16 bits that its bf16 weight lacks (Megatron's
    # optimizer_config.py: store_param_remainders). It never has copies of FP8 weights; Megatron
    # then keeps them itself (use_precision_aware_optimizer_no_fp8_or_ds_fp8).
    is_in_adam = size < 4 or not args.fp8 or args.fp8_recipe == "delayed"
    return 2 if args.bf16 and size == 4 and is_in_adam else size


def _storages(tensors: Iterable[Tensor | None]) -> dict[int, int]:
    """Return bytes by storage; on the meta device storages have no address, but an identity."""
    storages = (each.untyped_storage() for each in tensors if isinstance(each, Tensor))
    return {storage._cdata: storage.nbytes() for storage in storages}
