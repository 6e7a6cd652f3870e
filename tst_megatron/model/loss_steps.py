"""The three steps of multi-hot cross-entropy, in torch and as Triton kernels.

A row of logits z may lie in parts: its columns on several tensor-parallel ranks, or chunks of the
vocabulary computed one after the other. With w_k the weights of the slots that count, which sum to
1, each part r is read once for four numbers,

    m_r = max z_i    d_r = sum exp(z_i - m_r)    t_r = sum w_k (z[y_k] - m_r)    u_r = sum w_k

over its own columns and its own targets; the parts of a row together give

    m = max m_r    d = sum d_r exp(m_r - m)    t = sum t_r + u_r (m_r - m)
    log-sum-exp = m + log d    loss = log d - t + z_loss * log-sum-exp^2

and a second reading gives the gradient (1 + 2 z_loss log-sum-exp) exp(z_i - log-sum-exp) - w(i),
times the upstream gradient, w(i) being the weights of all slots that hold token i. Everything is
computed in at least fp32 and rounded once.

Shapes: N latent positions, P vocabulary columns of a part, K slots per bag, R parts of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Implementation = Literal["auto", "torch", "triton"]

TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

BLOCK_LOGITS = 2**20
"""Logits that the torch twin works on at a time, so that its copies stay in a processor's cache."""


class Bags(NamedTuple):
    """The targets of N latent positions."""

    targets_NK: Tensor
    """[N, K] int64 token ids of the whole vocabulary, contiguous."""
    slot_weights_K: Tensor | None
    """[K] fp32 weights, at least 0; None weighs all slots alike."""
    ignore_index: int
    """The id of a slot that counts for nothing."""

    def weights_NK(self, dtype: torch.dtype) -> Tensor:
        """Weights that are 0 in ignored slots and sum to 1 where any slot counts."""
        is_valid = self.targets_NK != self.ignore_index
        weights = is_valid.to(dtype)
        if self.slot_weights_K is not None:
            weights = weights * self.slot_weights_K.to(weights)
        # Where the sum is 0 every weight is 0, so any divisor leaves them 0.
        total = weights.sum(dim=-1, keepdim=True)
        return weights / total.where(total > 0, 1.0)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of the vocabulary that a part holds."""

    first: int
    """The token id of the first."""
    num_valid: int
    """How many come before padding, which takes no probability."""


def columns_of(first: int, num_columns: int, num_valid_columns: int | None) -> Columns:
    """A part that begins at ``first`` in a vocabulary of which ``num_valid_columns`` are tokens."""
    if num_valid_columns is None:
        return Columns(first, num_columns)
    return Columns(first, min(max(num_valid_columns - first, 0), num_columns))


def uses_triton(logits: Tensor, implementation: Implementation) -> bool:
    """Whether the kernels compute this.

    Args:
        logits: or hidden states, of the type that the logits will have.
        implementation: ``auto`` takes the kernels on a GPU, for the types that they know.

    Raises:
        ValueError: the implementation is none, or cannot take this type.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation: {implementation} is none of auto, torch, triton")
    if implementation == "auto":
        return logits.is_cuda and logits.dtype in TRITON_DTYPES
    if implementation == "triton" and logits.dtype not in TRITON_DTYPES:
        raise ValueError(f"implementation: triton computes in fp32, not {logits.dtype}. Use torch")
    return implementation == "triton"


def compute_dtype(logits: Tensor) -> torch.dtype:
    """The type that logits are computed in: fp32, or their own if that is wider."""
    return torch.promote_types(logits.dtype, torch.float32)


def statistics(logits_NP: Tensor, bags: Bags, columns: Columns, *, triton: bool) -> Tensor:
    """Read a part of the logits once.

    Args:
        logits_NP: [N, P]; rows may lie apart, columns are adjacent.
        bags: the targets of the whole vocabulary.
        columns: what this part holds of it.
        triton: whether the kernel computes it.

    Returns:
        [R, N, 4] maximum, sum of exponentials, target term and weights of the targets, of the parts
        that this part was read in.
    """
    if triton:
        from tst_megatron.model.kernels import multi_hot as kernels

        return kernels.statistics(logits_NP, *bags, columns.first, columns.num_valid)
    dtype = compute_dtype(logits_NP)
    smallest = torch.finfo(dtype).min
    local_targets_NK, local_weights_NK = _targets_of(bags, columns, dtype)
    parts = logits_NP.new_empty((1, logits_NP.shape[0], 4), dtype=dtype)
    if not columns.num_valid:
        return parts.copy_(parts.new_tensor([smallest, 0.0, 0.0, 0.0]))
    for rows in _blocks(logits_NP):
        scores = logits_NP[rows, : columns.num_valid].to(dtype)
        # Finite also for a part that is all minus infinity.
        maximum = scores.amax(dim=-1, keepdim=True).clamp_min(smallest)
        weights = local_weights_NK[rows]
        terms = weights * (scores.gather(-1, local_targets_NK[rows]) - maximum)
        parts[0, rows, 0] = maximum.squeeze(-1)
        parts[0, rows, 1] = (scores - maximum).exp_().sum(dim=-1)
        parts[0, rows, 2] = terms.where(weights > 0, 0.0).sum(dim=-1)
        parts[0, rows, 3] = weights.sum(dim=-1)
    return parts


def merge(parts_RN4: Tensor) -> Tensor:
    """Make one part of several, [1, N, 4]; always in the order of the parts."""
    maximum = parts_RN4[..., 0].amax(dim=0)
    shift = parts_RN4[..., 0] - maximum
    total = (parts_RN4[..., 1] * shift.exp()).sum(dim=0)
    mass = parts_RN4[..., 3]
    # A part far below the others shifts by more than any number if it has no target.
    term = (parts_RN4[..., 2] + (mass * shift).where(mass > 0, 0.0)).sum(dim=0)
    return torch.stack([maximum, total, term, mass.sum(dim=0)], dim=-1).unsqueeze(0)


def loss_of(parts_RN4: Tensor, bags: Bags, *, z_loss: float, triton: bool) -> tuple[Tensor, Tensor]:
    """The loss of whole rows.

    Returns:
        [N] loss in nats, 0 where every slot is ignored and NaN where a target is not ignored and is
        no column of any part; [N] log-sum-exp.
    """
    if triton:
        from tst_megatron.model.kernels import multi_hot as kernels

        return kernels.loss_of(parts_RN4, *bags, z_loss)
    maximum, total, term, mass = merge(parts_RN4)[0].unbind(-1)
    log_total = total.log()
    log_sum_exp = maximum + log_total
    loss = log_total - term
    if z_loss:
        loss = loss + z_loss * log_sum_exp**2
    is_counted = (bags.weights_NK(loss.dtype) > 0).any(dim=-1)
    # No collective is needed to see a wrong target, and no answer of the device is waited for.
    loss = loss.where((mass - 1).abs() < 1e-3, torch.nan)
    return loss.where(is_counted, 0.0), log_sum_exp


def write_gradient(
    gradient_NP: Tensor,
    logits_NP: Tensor,
    log_sum_exp_N: Tensor,
    bags: Bags,
    columns: Columns,
    upstream_N: Tensor,
    *,
    z_loss: float,
    triton: bool,
) -> None:
    """Read a part of the logits again, and write its gradient.

    Args:
        gradient_NP: [N, P] where the gradient goes; may be the logits themselves.
        logits_NP: [N, P] as ``statistics`` read them.
        log_sum_exp_N: of whole rows, from ``loss_of``.
        bags: as before.
        columns: as before.
        upstream_N: [N] the gradient of the loss of each row, in the type that is computed in.
        z_loss: as before.
        triton: whether the kernel computes it.
    """
    if triton:
        from tst_megatron.model.kernels import multi_hot as kernels

        kernels.write_gradient(
            gradient_NP, logits_NP, log_sum_exp_N, *bags[:2], upstream_N, bags.ignore_index,
            columns.first, columns.num_valid, z_loss,
        )  # fmt: skip
        return
    dtype = log_sum_exp_N.dtype
    weights_NK = bags.weights_NK(dtype)
    upstream_N = upstream_N.where((weights_NK > 0).any(dim=-1), 0.0)
    scale_N1 = (upstream_N * (1 + 2 * z_loss * log_sum_exp_N)).unsqueeze(-1)
    local_targets_NK, local_weights_NK = _targets_of(bags, columns, dtype)
    corrections_NK = -local_weights_NK * upstream_N.unsqueeze(-1)
    for rows in _blocks(logits_NP):
        out = gradient_NP[rows] if gradient_NP.dtype == dtype else None
        probability = torch.sub(logits_NP[rows], log_sum_exp_N[rows].unsqueeze(-1), out=out).exp_()
        probability.mul_(scale_N1[rows])
        probability[:, columns.num_valid :] = 0.0
        # scatter_add and not assignment: a token may fill several slots of one bag.
        probability.scatter_add_(-1, local_targets_NK[rows], corrections_NK[rows])
        if out is None:
            gradient_NP[rows] = probability.to(gradient_NP.dtype)


def _targets_of(bags: Bags, columns: Columns, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Column of each target in this part, and its weight; weight 0 where another part has it."""
    local = bags.targets_NK - columns.first
    is_here = (local >= 0) & (local < columns.num_valid)
    return local.where(is_here, 0), bags.weights_NK(dtype).where(is_here, 0.0)


def _blocks(logits_NP: Tensor) -> Iterator[slice]:
    num_rows, num_columns = logits_NP.shape
    size = max(1, BLOCK_LOGITS // max(1, num_columns))
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))
