"""Compute multi-hot cross-entropy in three steps: read the logits, form the loss, write gradients.

Each step exists in torch and as a Triton kernel. The logits z of one latent position may lie in
several parts: its columns on several tensor-parallel ranks, or chunks of the vocabulary that are
computed one after the other. Let w_k be the weights of the slots that count, which sum to 1, and
y_k their targets. The first step reads each part r once and yields four numbers, over the part's
own columns and the targets among them:

    m_r  maximum             max z_i
    d_r  sum of exponentials sum exp(z_i - m_r)
    t_r  target term         sum w_k (z[y_k] - m_r)
    u_r  target weight       sum w_k

The second step joins the parts of a row:

    m = max m_r    d = sum d_r exp(m_r - m)    t = sum t_r + u_r (m_r - m)
    log-sum-exp = m + log d    loss = log d - t

The target weights u_r of a row must total 1. If they do not, a target is outside the vocabulary,
and the loss is NaN. The third step reads each part again. The gradient of column i is the upstream
gradient times

    exp(z_i - log-sum-exp) - w(i)

where w(i) is the sum of the weights of all slots that hold token i. Example: a bag (7, 7, 1) of
equal weights gives w(7) = 2/3 and w(1) = 1/3. Everything is computed in at least fp32 and rounded
once. A processor takes longer for an exponential than for writing one, so the torch code can leave
exp(z_i - m_r) in the memory of the logits, and the third step multiplies it by exp(m_r -
log-sum-exp).

Shapes: N latent positions, P vocabulary columns of a part, K slots per bag, R parts of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tst_megatron.model.bags import IGNORED

BLOCK_LOGITS = 2**20
"""Logits that the torch code works on at a time, so that its copies stay in a processor's cache."""


class Bags(NamedTuple):
    """The targets of N latent positions."""

    targets_NK: Tensor
    """[N, K] int64 token ids of the complete vocabulary, contiguous; -100 marks an ignored slot."""
    slot_weights_K: Tensor | None
    """[K] fp32 weights, at least 0; None weighs all slots alike."""

    def weights_NK(self, dtype: torch.dtype) -> Tensor:
        """Return weights that are 0 in ignored slots and sum to 1 where any slot counts."""
        is_valid = self.targets_NK != IGNORED
        weights = is_valid.to(dtype)
        if self.slot_weights_K is not None:
            weights = weights * self.slot_weights_K.to(weights)
        # Where the sum is 0 every weight is 0, so any divisor leaves them 0.
        total = weights.sum(dim=-1, keepdim=True)
        return weights / total.where(total > 0, 1.0)

    def is_counted_N(self) -> Tensor:
        """Return [N] whether any slot of a position counts."""
        counts = self.targets_NK != IGNORED
        if self.slot_weights_K is not None:
            counts = counts & (self.slot_weights_K > 0)
        return counts.any(dim=-1)


def compute_dtype(logits: Tensor) -> torch.dtype:
    """Return the type that logits are computed in: fp32, or their own if that is wider."""
    return torch.promote_types(logits.dtype, torch.float32)


def statistics(
    logits_NP: Tensor,
    bags: Bags,
    first_column: int,
    *,
    triton: bool,
    leaves_exponentials: bool = False,
) -> Tensor:
    """Read a part of the logits once: the first step.

    Args:
        logits_NP: [N, P]; rows may lie apart, columns are adjacent.
        bags: the targets, as ids of the complete vocabulary.
        first_column: token id of the part's first column.
        triton: compute by the Triton kernel.
        leaves_exponentials: write exp(logit - maximum of the row) over the logits, which are of the
            type that is computed in. In torch alone.

    Returns:
        [R, N, 4] maximum, sum of exponentials, target term and target weight. R is 1 in torch; the
        kernel may read a row in several parts.
    """
    if triton:
        # Here, not at the top: a torch for CPUs alone is installed without Triton.
        from tst_megatron.model.kernels import multi_hot as kernels

        return kernels.statistics(logits_NP, *bags, first_column)
    dtype = compute_dtype(logits_NP)
    local_targets_NK, local_weights_NK = _targets_among(
        logits_NP.shape[1], bags, first_column, dtype
    )
    parts = logits_NP.new_empty((1, logits_NP.shape[0], 4), dtype=dtype)
    for rows in _blocks(logits_NP):
        scores = logits_NP[rows].to(dtype)
        # Finite also where every logit of the part is minus infinity.
        maximum = scores.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(dtype).min)
        weights = local_weights_NK[rows]
        terms = weights * (scores.gather(-1, local_targets_NK[rows]) - maximum)
        parts[0, rows, 0] = maximum.squeeze(-1)
        out = logits_NP[rows] if leaves_exponentials else None
        parts[0, rows, 1] = torch.sub(scores, maximum, out=out).exp_().sum(dim=-1)
        parts[0, rows, 2] = terms.where(weights > 0, 0.0).sum(dim=-1)
        parts[0, rows, 3] = weights.sum(dim=-1)
    return parts


def merge(parts_RN4: Tensor) -> Tensor:
    """Join several parts into one, [1, N, 4], always in the order of the parts."""
    maximum = parts_RN4[..., 0].amax(dim=0)
    shift = parts_RN4[..., 0] - maximum
    total = (parts_RN4[..., 1] * shift.exp()).sum(dim=0)
    weight = parts_RN4[..., 3]
    # A part far below the others has an infinite shift. Without a target it must add 0, not NaN.
    term = (parts_RN4[..., 2] + (weight * shift).where(weight > 0, 0.0)).sum(dim=0)
    return torch.stack([maximum, total, term, weight.sum(dim=0)], dim=-1).unsqueeze(0)


def loss_of(parts_RN4: Tensor, bags: Bags, *, triton: bool) -> tuple[Tensor, Tensor]:
    """Form the loss of complete rows from their parts: the second step.

    Args:
        parts_RN4: [R, N, 4] from ``statistics``, of all columns of the vocabulary.
        bags: as ``statistics`` had them.
        triton: compute by the Triton kernel.

    Returns:
        [N] loss in nats, 0 where every slot is ignored and NaN where a target is neither ignored
        nor a column of any part; [N] log-sum-exp.
    """
    if triton:
        # Here, not at the top: a torch for CPUs alone is installed without Triton.
        from tst_megatron.model.kernels import multi_hot as kernels

        return kernels.loss_of(parts_RN4, *bags)
    maximum, total, term, weight = merge(parts_RN4)[0].unbind(-1)
    log_total = total.log()
    loss = log_total - term
    # A wrong target shows here without another collective, and without waiting for the device.
    loss = loss.where((weight - 1).abs() < 1e-3, torch.nan)
    return loss.where(bags.is_counted_N(), 0.0), maximum + log_total


def write_gradient(
    gradient_NP: Tensor,
    logits_NP: Tensor,
    log_sum_exp_N: Tensor,
    bags: Bags,
    first_column: int,
    upstream_N: Tensor,
    *,
    triton: bool,
    maximum_N: Tensor | None = None,
    has_exponentials: bool = False,
) -> None:
    """Read a part of the logits again and write its gradient: the third step.

    Args:
        gradient_NP: [N, P] receives the gradient; may be the logits themselves.
        logits_NP: [N, P] as ``statistics`` read them, or left them.
        log_sum_exp_N: [N] of complete rows, from ``loss_of``.
        bags: as ``statistics`` had them.
        first_column: as ``statistics`` had it.
        upstream_N: [N] gradient of the loss of each row, in the type of the log-sum-exp.
        triton: compute by the Triton kernel.
        maximum_N: [N] of the part, from ``statistics``, that exponentials are relative to. Without
            it they are relative to the log-sum-exp, which takes one multiplication less for a row.
        has_exponentials: ``statistics`` has left them, and the gradient goes over them.
    """
    if triton:
        # Here, not at the top: a torch for CPUs alone is installed without Triton.
        from tst_megatron.model.kernels import multi_hot as kernels

        kernels.write_gradient(
            gradient_NP, logits_NP, log_sum_exp_N, *bags, upstream_N, first_column
        )
        return
    dtype = log_sum_exp_N.dtype
    # Ignored rows get no gradient, also if a NaN comes from upstream.
    upstream_N1 = upstream_N.where(bags.is_counted_N(), 0.0).unsqueeze(-1)
    local_targets_NK, local_weights_NK = _targets_among(
        logits_NP.shape[1], bags, first_column, dtype
    )
    corrections_NK = -local_weights_NK * upstream_N1
    shift_N1 = (log_sum_exp_N if maximum_N is None else maximum_N).unsqueeze(-1)
    factor_N1 = upstream_N1
    if maximum_N is not None:
        factor_N1 = upstream_N1 * (maximum_N - log_sum_exp_N).exp().unsqueeze(-1)
    for rows in _blocks(logits_NP):
        out = gradient_NP[rows] if gradient_NP.dtype == dtype else None
        if has_exponentials:
            probability = logits_NP[rows]
        else:
            probability = torch.sub(logits_NP[rows], shift_N1[rows], out=out).exp_()
        probability.mul_(factor_N1[rows])
        # scatter_add and not assignment: a token may fill several slots of one bag.
        probability.scatter_add_(-1, local_targets_NK[rows], corrections_NK[rows])
        if out is None:
            gradient_NP[rows] = probability.to(gradient_NP.dtype)


def _targets_among(
    num_columns: int, bags: Bags, first_column: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return each target's column in a part, and its weight; weight 0 where another part has it."""
    local = bags.targets_NK - first_column
    is_here = (local >= 0) & (local < num_columns)
    return local.where(is_here, 0), bags.weights_NK(dtype).where(is_here, 0.0)


def _blocks(logits_NP: Tensor) -> Iterator[slice]:
    """Cut rows into blocks of about ``BLOCK_LOGITS`` logits."""
    num_rows, num_columns = logits_NP.shape
    size = max(1, BLOCK_LOGITS // max(1, num_columns))
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))
