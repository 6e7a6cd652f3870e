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

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from tst_megatron.model.bags import IGNORED
from tst_megatron.schedule import SlotWeights


def multi_hot_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    slot_weights: Tensor | None = None,
    num_valid_columns: int | None = None,
    ignore_index: int = IGNORED,
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

    Returns:
        [...] loss per latent position in nats, at least fp32; 0 where every slot is ignored.

    Source: paper section 3.2 and listing 3.
    """
    logits = logits.to(_compute_dtype(logits))[..., :num_valid_columns]
    flat_NV = logits.reshape(-1, logits.shape[-1])
    weights = _normalised_weights(targets, slot_weights, ignore_index, logits.dtype)
    loss = torch.zeros(targets.shape[:-1], dtype=logits.dtype, device=logits.device)
    for slot in range(targets.shape[-1]):
        targets_N = targets[..., slot].reshape(-1)
        slot_loss_N = F.cross_entropy(
            flat_NV, targets_N, reduction="none", ignore_index=ignore_index
        )
        loss = loss + weights[..., slot] * slot_loss_N.view_as(loss)
    return loss


def vocab_parallel_multi_hot_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    tp_group: ProcessGroup | None = None,
    slot_weights: Tensor | None = None,
    num_valid_columns: int | None = None,
    ignore_index: int = IGNORED,
) -> Tensor:
    """``multi_hot_cross_entropy`` of logits whose columns are split over tensor-parallel ranks.

    Two collectives over the tensor-parallel group, each of one or two fp32 numbers per latent
    position and independent of K and V: the maximum, then the sum of exponentials together with the
    weighted target logits. What is kept for the backward pass is the logits and one number per
    position.

    Args:
        logits: [..., P], columns [rank*P, (rank+1)*P) of the vocabulary; any float type.
        targets: [..., K] integer token ids of the whole vocabulary, the same on every rank.
        tp_group: the group that the columns are split over; None for whole logits.
        slot_weights: as in ``multi_hot_cross_entropy``.
        num_valid_columns: as in ``multi_hot_cross_entropy``, of the whole vocabulary.
        ignore_index: the id of an ignored slot.

    Returns:
        [...] loss per latent position in nats, at least fp32, the same on every rank.
    """
    weights = _normalised_weights(targets, slot_weights, ignore_index, _compute_dtype(logits))
    loss: Tensor = _VocabParallelMultiHotCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits, targets, weights, tp_group, num_valid_columns
    )
    return loss


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


def _compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _normalised_weights(
    targets: Tensor, slot_weights: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> Tensor:
    """[..., K] weights that are 0 in ignored slots and sum to 1 where any slot counts."""
    is_valid = targets != ignore_index
    weights = is_valid.to(dtype)
    if slot_weights is not None:
        weights = weights * slot_weights.to(weights)
    # Where the sum is 0 every weight is 0, so any divisor leaves them 0.
    total = weights.sum(dim=-1, keepdim=True)
    return weights / total.where(total > 0, 1.0)


class _VocabParallelMultiHotCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        weights: Tensor,
        tp_group: ProcessGroup | None,
        num_valid_columns: int | None,
    ) -> Tensor:
        num_columns = logits.shape[-1]
        rank, is_parallel = (
            (0, False) if tp_group is None else (tp_group.rank(), tp_group.size() > 1)
        )
        first_column = rank * num_columns
        num_padding = 0
        if num_valid_columns is not None:
            num_padding = min(max(first_column + num_columns - num_valid_columns, 0), num_columns)

        scores = logits.to(_compute_dtype(logits))
        if num_padding:
            scores = scores.clone() if scores is logits else scores
            scores[..., num_columns - num_padding :] = -torch.inf

        max_logit = scores.amax(dim=-1)
        if is_parallel:
            torch.distributed.all_reduce(
                max_logit, op=torch.distributed.ReduceOp.MAX, group=tp_group
            )
        local_targets, local_weights = _targets_on_this_rank(
            targets, weights, first_column, num_columns
        )
        # Relative to the maximum, so that the weighted target logits keep their precision.
        target_logits = scores.gather(-1, local_targets) - max_logit.unsqueeze(-1)
        target_logits = target_logits.where(local_weights > 0, 0.0)
        sums = torch.stack(
            [
                (scores - max_logit.unsqueeze(-1)).exp().sum(dim=-1),
                (local_weights * target_logits).sum(dim=-1),
            ]
        )
        if is_parallel:
            torch.distributed.all_reduce(sums, group=tp_group)
        log_sum_exp = sums[0].log()
        mass = (weights.sum(dim=-1) > 0).to(scores.dtype)

        ctx.save_for_backward(logits, log_sum_exp + max_logit, mass, local_targets, local_weights)
        ctx.num_padding = num_padding
        return mass * log_sum_exp - sums[1]

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, log_sum_exp, mass, local_targets, local_weights = ctx.saved_tensors
        grad_loss = grad_loss.to(log_sum_exp.dtype)
        probability = (logits.to(log_sum_exp.dtype) - log_sum_exp.unsqueeze(-1)).exp_()
        grad = probability.mul_((mass * grad_loss).unsqueeze(-1))
        if ctx.num_padding:
            grad[..., logits.shape[-1] - ctx.num_padding :] = 0.0
        # scatter_add and not assignment: a token may fill several slots of one bag.
        grad.scatter_add_(-1, local_targets, -local_weights * grad_loss.unsqueeze(-1))
        return grad.to(logits.dtype), None, None, None, None


def _targets_on_this_rank(
    targets: Tensor, weights: Tensor, first_column: int, num_columns: int
) -> tuple[Tensor, Tensor]:
    """Column of each target on this rank, and its weight; weight 0 where another rank has it."""
    columns = targets.long() - first_column
    is_here = (columns >= 0) & (columns < num_columns)
    return columns.where(is_here, 0), weights.where(is_here, 0.0)
