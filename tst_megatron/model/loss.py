"""Compute multi-hot cross-entropy, the loss of a bag: by its definition, and vocab-parallel.

Take one latent position with logits z, and its bag of targets y_1..y_K with slot weights w_1..w_K.
Over the slots that are not ignored,

    loss = sum_k w_k * CE(z, y_k) / sum_k w_k = logsumexp(z) - sum_k w_k * z[y_k] / sum_k w_k

so one log-sum-exp serves all K targets. A token that stands twice in a bag counts twice. A position
whose slots are all ignored has loss 0 and no gradient. Before training the loss is near ln(V), not
ln(V)/K: paper section 3.2 drops the constant log K of the KL form.

Shapes: L latent positions, B micro-batch, K slots per bag, V vocabulary, P vocabulary columns on
this rank (V / tp); N = L * B; ``...`` is any leading shape.
"""

from __future__ import annotations

from typing import Any, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from tst_megatron.model.bags import IGNORED
from tst_megatron.model.kernels.choose import Implementation, uses_triton
from tst_megatron.model.loss_steps import (
    Bags,
    compute_dtype,
    loss_of,
    merge,
    statistics,
    write_gradient,
)
from tst_megatron.schedule import SlotWeights


def multi_hot_cross_entropy(
    logits: Tensor, targets: Tensor, *, slot_weights: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy of one prediction against every token of its bag.

    This is the definition, for tests and for reading: one ordinary cross-entropy for each slot, as
    the paper lists it.

    Args:
        logits: [..., V], any float type; computed in at least fp32.
        targets: [..., K] integer token ids; -100 marks a slot that counts for nothing.
        slot_weights: [K] non-negative weights by slot; None weighs all slots alike.

    Returns:
        [...] loss per latent position in nats, at least fp32; 0 where every slot is ignored.

    Source: paper section 3.2 and listing 3.
    """
    logits = logits.to(compute_dtype(logits))
    flat_NV = logits.reshape(-1, logits.shape[-1])
    weights = bags_of(targets, slot_weights).weights_NK(logits.dtype).view(targets.shape)
    loss = torch.zeros(targets.shape[:-1], dtype=logits.dtype, device=logits.device)
    for slot in range(targets.shape[-1]):
        targets_N = targets[..., slot].reshape(-1)
        slot_loss_N = F.cross_entropy(flat_NV, targets_N, reduction="none", ignore_index=IGNORED)
        loss = loss + weights[..., slot] * slot_loss_N.view_as(loss)
    return loss


def vocab_parallel_multi_hot_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    tp_group: ProcessGroup | None = None,
    slot_weights: Tensor | None = None,
    may_overwrite_logits: bool = False,
    implementation: Implementation = "auto",
) -> Tensor:
    """Return ``multi_hot_cross_entropy`` of logits whose columns are split over ranks.

    There is one collective over the tensor-parallel group: four fp32 numbers per latent position,
    whatever K and V are. Every rank then sums what all ranks sent in the same order, so that all
    ranks have the same bits. The backward pass keeps the logits themselves, not a copy, and one
    number per position.

    Args:
        logits: [..., P], columns [rank*P, (rank+1)*P) of the vocabulary; any float type.
        targets: [..., K] integer token ids of the complete vocabulary, the same on every rank; -100
            marks a slot that counts for nothing.
        tp_group: the group that the columns are split over; None for unsplit logits.
        slot_weights: as in ``multi_hot_cross_entropy``.
        may_overwrite_logits: let the backward pass write the gradient over the logits, and on a CPU
            the forward pass of training their exponentials. Anyone who reads the logits afterwards,
            or runs the backward pass twice, then reads those; autograd refuses where it can see
            that. Compiled functions never overwrite.
        implementation: ``auto`` takes the Triton kernels on a GPU, and torch otherwise.

    Returns:
        [...] loss per latent position in nats, at least fp32, the same on every rank; NaN where a
        target is neither ignored nor in the vocabulary.

    Raises:
        ValueError: the shapes do not fit, or the implementation cannot compute this type.
    """
    check_shapes(logits.shape, targets, slot_weights)
    uses_kernels = uses_triton(logits, implementation)
    logits_NP = logits.reshape(-1, logits.shape[-1])
    if logits_NP.stride(-1) != 1:
        logits_NP = logits_NP.contiguous()
    bags = bags_of(targets, slot_weights)
    first_column = 0 if tp_group is None else tp_group.rank() * logits.shape[-1]
    overwrites = may_overwrite_logits and not torch.compiler.is_compiling()
    # Without a backward pass to come, exponentials would be of no use.
    leaves_exponentials = (
        overwrites
        and not uses_kernels
        and torch.is_grad_enabled()
        and logits_NP.requires_grad
        and logits_NP.dtype == compute_dtype(logits_NP)
    )
    loss_N: Tensor = _VocabParallelMultiHotCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits_NP, *bags, first_column, tp_group, overwrites, leaves_exponentials, uses_kernels
    )
    return loss_N.view(targets.shape[:-1])


def bags_of(targets: Tensor, slot_weights: Tensor | None) -> Bags:
    """Bring targets [..., K] and slot weights [K] into the form that the kernels read."""
    if slot_weights is not None:
        wide = torch.promote_types(slot_weights.dtype, torch.float32)
        slot_weights = slot_weights.to(device=targets.device, dtype=wide).contiguous()
    return Bags(targets.reshape(-1, targets.shape[-1]).long().contiguous(), slot_weights)


def gather_statistics(parts_RN4: Tensor, tp_group: ProcessGroup | None) -> Tensor:
    """Gather the statistics of every tensor-parallel rank: [R, N, 4] in the order of the ranks."""
    if tp_group is None or tp_group.size() == 1:
        return parts_RN4
    own = parts_RN4 if parts_RN4.shape[0] == 1 else merge(parts_RN4)
    every = own.new_empty((tp_group.size(), *own.shape[1:]))
    torch.distributed.all_gather_into_tensor(every, own.contiguous(), group=tp_group)
    return every


def slot_weights(
    kind: SlotWeights, num_slots: int, *, device: torch.device | None = None
) -> Tensor | None:
    """Return the weights of the slots of a bag of targets, which sum to 1.

    Example: ``1/i`` with 2 slots gives 2/3 and 1/3.

    Args:
        kind: ``uniform``, or a formula in i, which counts slots from 1.
        num_slots: K.
        device: receives the weights.

    Returns:
        [K] fp32, or None for ``uniform``: all slots weigh alike.

    Source: paper appendix D, without its "first token only", which is ``tst.targets: tokens``.
    """
    if kind == "uniform":
        return None
    slots_K = torch.arange(1, num_slots + 1, dtype=torch.float32, device=device)
    if kind == "1/i":
        weights_K = slots_K.reciprocal()
    elif kind == "exp(-i)":
        weights_K = (-slots_K).exp()
    else:
        assert_never(kind)
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


class _VocabParallelMultiHotCrossEntropy(torch.autograd.Function):
    """The three steps of ``loss_steps`` as one differentiable function."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_NP: Tensor,
        targets_NK: Tensor,
        slot_weights_K: Tensor | None,
        first_column: int,
        tp_group: ProcessGroup | None,
        overwrites: bool,
        leaves_exponentials: bool,
        triton: bool,
    ) -> Tensor:
        bags = Bags(targets_NK, slot_weights_K)
        own = statistics(
            logits_NP, bags, first_column, triton=triton, leaves_exponentials=leaves_exponentials
        )
        loss_N, log_sum_exp_N = loss_of(gather_statistics(own, tp_group), bags, triton=triton)
        # The kernel may read a row in several parts, and recomputes exponentials without them.
        maximum_N = None if triton else own[0, :, 0].clone()
        ctx.save_for_backward(logits_NP, log_sum_exp_N, maximum_N, targets_NK, slot_weights_K)
        ctx.first_column, ctx.triton = first_column, triton
        ctx.overwrites, ctx.leaves_exponentials = overwrites, leaves_exponentials
        return loss_N

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_loss_N: Tensor) -> tuple[Tensor | None, ...]:
        logits_NP, log_sum_exp_N, maximum_N, targets_NK, slot_weights_K = ctx.saved_tensors
        gradient_NP = logits_NP if ctx.overwrites else torch.empty_like(logits_NP)
        write_gradient(
            gradient_NP,
            logits_NP,
            log_sum_exp_N,
            Bags(targets_NK, slot_weights_K),
            ctx.first_column,
            # The gradient of a sum or a mean has stride 0.
            grad_loss_N.to(log_sum_exp_N.dtype).contiguous(),
            triton=ctx.triton,
            maximum_N=maximum_N,
            has_exponentials=ctx.leaves_exponentials,
        )
        return gradient_NP, *[None] * 7
