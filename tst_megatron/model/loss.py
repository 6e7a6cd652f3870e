"""Multi-hot cross-entropy: the obvious one on full logits, and the vocab-parallel one.

For one latent position with logits z and a bag of targets y_1..y_K of weights w_1..w_K, over the
slots that are not ignored:

    loss = sum_k w_k * CE(z, y_k) / sum_k w_k = logsumexp(z) - sum_k w_k * z[y_k] / sum_k w_k

so the log-sum-exp is computed once for all K targets. A token that stands twice in a bag counts
twice. A position whose slots are all ignored has loss 0 and no gradient. With untrained weights the
loss is near ln(V), not ln(V)/K (paper section 3.2; the constant log K of the KL form is dropped
there).

Shapes: L latent positions, B micro-batch, K slots per bag, V vocabulary, P vocabulary columns on
this rank (V / tp); ``...`` is any leading shape.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from tst_megatron.model.bags import IGNORED
from tst_megatron.model.loss_steps import (
    Bags,
    Columns,
    Implementation,
    columns_of,
    compute_dtype,
    loss_of,
    merge,
    statistics,
    uses_triton,
    write_gradient,
)
from tst_megatron.schedule import SlotWeights


def multi_hot_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    slot_weights: Tensor | None = None,
    num_valid_columns: int | None = None,
    ignore_index: int = IGNORED,
    z_loss: float = 0.0,
) -> Tensor:
    """Mean cross-entropy of one prediction against every token of its bag, slot by slot.

    The reference: one ordinary cross-entropy for each slot, as the paper lists it.

    Args:
        logits: [..., V], any float type; computed in at least fp32.
        targets: [..., K] integer token ids; ``ignore_index`` marks a slot that counts for nothing.
        slot_weights: [K] non-negative weights by slot; None weighs all slots alike.
        num_valid_columns: columns from here on are padding and take no probability; None counts all
            columns, as Megatron does.
        ignore_index: the id of an ignored slot.
        z_loss: weight of the squared log-sum-exp that is added at every position that counts
            (arXiv 2204.02311, section 5).

    Returns:
        [...] loss per latent position in nats, at least fp32; 0 where every slot is ignored.

    Source: paper section 3.2 and listing 3.
    """
    logits = logits.to(compute_dtype(logits))[..., :num_valid_columns]
    flat_NV = logits.reshape(-1, logits.shape[-1])
    bags = bags_of(targets, slot_weights, ignore_index)
    weights = bags.weights_NK(logits.dtype).view(targets.shape)
    loss = torch.zeros(targets.shape[:-1], dtype=logits.dtype, device=logits.device)
    for slot in range(targets.shape[-1]):
        targets_N = targets[..., slot].reshape(-1)
        slot_loss_N = F.cross_entropy(
            flat_NV, targets_N, reduction="none", ignore_index=ignore_index
        )
        loss = loss + weights[..., slot] * slot_loss_N.view_as(loss)
    if z_loss:
        is_counted = (weights > 0).any(dim=-1)
        loss = loss + z_loss * (logits.logsumexp(-1) ** 2).where(is_counted, 0.0)
    return loss


@overload
def vocab_parallel_multi_hot_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    tp_group: ProcessGroup | None = ...,
    slot_weights: Tensor | None = ...,
    num_valid_columns: int | None = ...,
    ignore_index: int = ...,
    z_loss: float = ...,
    may_overwrite_logits: bool = ...,
    implementation: Implementation = ...,
    return_slot_losses: Literal[False] = ...,
) -> Tensor: ...


@overload
def vocab_parallel_multi_hot_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    tp_group: ProcessGroup | None = ...,
    slot_weights: Tensor | None = ...,
    num_valid_columns: int | None = ...,
    ignore_index: int = ...,
    z_loss: float = ...,
    may_overwrite_logits: bool = ...,
    implementation: Implementation = ...,
    return_slot_losses: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def vocab_parallel_multi_hot_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    tp_group: ProcessGroup | None = None,
    slot_weights: Tensor | None = None,
    num_valid_columns: int | None = None,
    ignore_index: int = IGNORED,
    z_loss: float = 0.0,
    may_overwrite_logits: bool = False,
    implementation: Implementation = "auto",
    return_slot_losses: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``multi_hot_cross_entropy`` of logits whose columns are split over tensor-parallel ranks.

    One collective over the tensor-parallel group, of four fp32 numbers per latent position and
    independent of K and V; every rank then sums what all ranks sent in the same order, so that all
    have the same bits. What is kept for the backward pass is the logits themselves, not a copy, and
    one number per position.

    Args:
        logits: [..., P], columns [rank*P, (rank+1)*P) of the vocabulary; any float type.
        targets: [..., K] integer token ids of the whole vocabulary, the same on every rank.
        tp_group: the group that the columns are split over; None for whole logits.
        slot_weights: as in ``multi_hot_cross_entropy``.
        num_valid_columns: as in ``multi_hot_cross_entropy``, of the whole vocabulary.
        ignore_index: the id of an ignored slot.
        z_loss: as in ``multi_hot_cross_entropy``.
        may_overwrite_logits: let the backward pass write the gradient over the logits. Whoever
            reads them after it, or runs it twice, then reads the gradient: autograd refuses where
            it can see that. Compiled functions keep the logits all the same.
        implementation: ``auto`` takes the Triton kernels on a GPU, and torch otherwise.
        return_slot_losses: also return the losses slot by slot, for logging; costs a second
            collective of K numbers per position.

    Returns:
        [...] loss per latent position in nats, at least fp32, the same on every rank; NaN where a
        target is neither ignored nor in the vocabulary. With ``return_slot_losses`` also [..., K]
        cross-entropy of each slot, without gradient, 0 where it is ignored.

    Raises:
        ValueError: the shapes do not fit, or the implementation cannot compute this type.
    """
    check_shapes(logits.shape, targets, slot_weights)
    uses_kernels = uses_triton(logits, implementation)
    logits_NP = logits.reshape(-1, logits.shape[-1])
    if logits_NP.stride(-1) != 1:
        logits_NP = logits_NP.contiguous()
    bags = bags_of(targets, slot_weights, ignore_index)
    rank = 0 if tp_group is None else tp_group.rank()
    num_columns = logits.shape[-1]
    columns = columns_of(rank * num_columns, num_columns, num_valid_columns)
    loss_N, log_sum_exp_N = _VocabParallelMultiHotCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits_NP, *bags, columns, tp_group, z_loss, may_overwrite_logits, uses_kernels
    )
    loss: Tensor = loss_N.view(targets.shape[:-1])
    if not return_slot_losses:
        return loss
    losses_NK = _slot_losses(logits_NP.detach(), log_sum_exp_N, bags, columns, tp_group)
    return loss, losses_NK.view(targets.shape)


def bags_of(targets: Tensor, slot_weights: Tensor | None, ignore_index: int) -> Bags:
    """Targets of any leading shape as the kernels take them."""
    if slot_weights is not None:
        wide = torch.promote_types(slot_weights.dtype, torch.float32)
        slot_weights = slot_weights.to(device=targets.device, dtype=wide).contiguous()
    return Bags(
        targets.reshape(-1, targets.shape[-1]).long().contiguous(), slot_weights, ignore_index
    )


def gather_statistics(parts_RN4: Tensor, tp_group: ProcessGroup | None) -> Tensor:
    """The statistics of every tensor-parallel rank, [R, N, 4] in the order of the ranks."""
    if tp_group is None or tp_group.size() == 1:
        return parts_RN4
    own = parts_RN4 if parts_RN4.shape[0] == 1 else merge(parts_RN4)
    every = own.new_empty((tp_group.size(), *own.shape[1:]))
    torch.distributed.all_gather_into_tensor(every, own.contiguous(), group=tp_group)
    return every


def slot_weights(
    kind: SlotWeights, num_slots: int, *, device: torch.device | None = None
) -> Tensor | None:
    """Weights of the slots of a bag of targets, which sum to 1; None weighs all alike.

    Args:
        kind: ``uniform``, ``1/i`` or ``exp(-i)``, i counting slots from 1.
        num_slots: K.
        device: where the weights go.

    Returns:
        [K] fp32, or None.

    Source: paper appendix D, without its "first token only", which is ``tst.targets: tokens``.
    """
    if kind == "uniform":
        return None
    slots_K = torch.arange(1, num_slots + 1, dtype=torch.float32, device=device)
    weights_K = slots_K.reciprocal() if kind == "1/i" else (-slots_K).exp()
    return weights_K / weights_K.sum()


def check_shapes(logits: tuple[int, ...], targets: Tensor, slot_weights: Tensor | None) -> None:
    """Refuse targets or weights that do not belong to logits, or hidden states, of this shape.

    Raises:
        ValueError: with both shapes.
    """
    if tuple(logits[:-1]) != tuple(targets.shape[:-1]):
        raise ValueError(
            f"logits or hidden states {list(logits)} and targets {list(targets.shape)} differ "
            "before their last dimensions"
        )
    if slot_weights is not None and slot_weights.shape != targets.shape[-1:]:
        raise ValueError(
            f"slot weights {list(slot_weights.shape)} are not one for each of the "
            f"{targets.shape[-1]} slots"
        )


def _slot_losses(
    logits_NP: Tensor,
    log_sum_exp_N: Tensor,
    bags: Bags,
    columns: Columns,
    tp_group: ProcessGroup | None,
) -> Tensor:
    """[N, K] log-sum-exp less the logit of each target, whichever rank has it."""
    local = bags.targets_NK - columns.first
    is_here = (local >= 0) & (local < columns.num_valid)
    target_logits = logits_NP.gather(-1, local.where(is_here, 0)).to(log_sum_exp_N.dtype)
    target_logits = target_logits.where(is_here, 0.0)
    if tp_group is not None and tp_group.size() > 1:
        # One rank has a number and the others 0, so the order of the sum does not matter.
        torch.distributed.all_reduce(target_logits, group=tp_group)
    losses = log_sum_exp_N.unsqueeze(-1) - target_logits
    return losses.where(bags.targets_NK != bags.ignore_index, 0.0)


class _VocabParallelMultiHotCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_NP: Tensor,
        targets_NK: Tensor,
        slot_weights_K: Tensor | None,
        ignore_index: int,
        columns: Columns,
        tp_group: ProcessGroup | None,
        z_loss: float,
        may_overwrite_logits: bool,
        triton: bool,
    ) -> tuple[Tensor, Tensor]:
        bags = Bags(targets_NK, slot_weights_K, ignore_index)
        parts = statistics(logits_NP, bags, columns, triton=triton)
        parts = gather_statistics(parts, tp_group)
        loss_N, log_sum_exp_N = loss_of(parts, bags, z_loss=z_loss, triton=triton)
        ctx.save_for_backward(logits_NP, log_sum_exp_N, targets_NK, slot_weights_K)
        ctx.ignore_index, ctx.columns, ctx.z_loss = ignore_index, columns, z_loss
        ctx.may_overwrite_logits, ctx.triton = may_overwrite_logits, triton
        ctx.mark_non_differentiable(log_sum_exp_N)
        return loss_N, log_sum_exp_N

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_loss_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        logits_NP, log_sum_exp_N, targets_NK, slot_weights_K = ctx.saved_tensors
        overwrites = ctx.may_overwrite_logits and not torch.compiler.is_compiling()
        gradient_NP = logits_NP if overwrites else torch.empty_like(logits_NP)
        write_gradient(
            gradient_NP,
            logits_NP,
            log_sum_exp_N,
            Bags(targets_NK, slot_weights_K, ctx.ignore_index),
            ctx.columns,
            # The gradient of a sum or a mean has stride 0.
            grad_loss_N.to(log_sum_exp_N.dtype).contiguous(),
            z_loss=ctx.z_loss,
            triton=ctx.triton,
        )
        return gradient_NP, *[None] * 8
