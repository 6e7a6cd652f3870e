"""The mean of the embeddings of a bag's tokens, in torch and as Triton kernels.

Shapes: B micro-batch, L latent positions, K tokens per bag (paper: s), H hidden, P vocabulary rows
on this rank (V / tp).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tst_megatron.model.loss_steps import Implementation, uses_triton
from tst_megatron.model.main_grad import main_grad_of, note_added


def bag_embedding(
    weight_PH: Tensor,
    tokens_BLK: Tensor,
    *,
    first_row: int = 0,
    is_split: bool = False,
    out_dtype: torch.dtype | None = None,
    accumulate_into_main_grad: bool = False,
    implementation: Implementation = "auto",
) -> Tensor:
    """Mean of the embeddings of each bag's tokens, summed and divided by K in fp32.

    The gradient of a row is summed in fp32 as well, and both are rounded once. The order of sums is
    fixed in both directions, also of a token that stands in many bags.

    Args:
        weight_PH: [P, H] rows [first_row, first_row + P) of the embedding table.
        tokens_BLK: [B, L, K] integer token ids.
        first_row: the token id of this rank's first row.
        is_split: other ranks hold other rows; a token of theirs adds nothing to the result, which
            is this rank's share of the mean.
        out_dtype: of the result; that of the table by default.
        accumulate_into_main_grad: let the Triton kernel add the gradient to Megatron's fp32 buffer,
            where the weight has one, and skip the dense gradient in between.
        implementation: ``auto`` takes the Triton kernels on a GPU, and torch otherwise.

    Returns:
        [L, B, H], as the layers take it.

    Raises:
        ValueError: the implementation is none, or cannot take this type.

    Source: paper section 3.1 and listing 2.
    """
    out_dtype = out_dtype or weight_PH.dtype
    if uses_triton(weight_PH, implementation):
        means: Tensor = _BagEmbedding.apply(  # type: ignore[no-untyped-call]
            weight_PH, tokens_BLK.contiguous(), first_row, out_dtype, accumulate_into_main_grad
        )
        return means
    rows_LBK = tokens_BLK.transpose(0, 1)
    if is_split:
        rows_LBK = rows_LBK - first_row
        is_here_LBK = (rows_LBK >= 0) & (rows_LBK < weight_PH.shape[0])
        rows_LBK = rows_LBK.where(is_here_LBK, 0)
    if weight_PH.dtype in (torch.bfloat16, torch.float16):
        weight_PH, rows_LBK = _used_rows_in_fp32(weight_PH, rows_LBK)
    if is_split:
        vectors_LBKH = F.embedding(rows_LBK, weight_PH)
        vectors_LBKH = vectors_LBKH.masked_fill(~is_here_LBK.unsqueeze(-1), 0.0)
        return vectors_LBKH.mean(dim=2).to(out_dtype)
    # Three to seven times as fast on a processor as looking up and averaging (docs/log.md).
    bags_NK = rows_LBK.reshape(-1, rows_LBK.shape[-1])
    mean_NH = F.embedding_bag(bags_NK, weight_PH, mode="mean")
    return mean_NH.view(*rows_LBK.shape[:2], -1).to(out_dtype)


def _used_rows_in_fp32(weight_PH: Tensor, rows_LBK: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a table that are looked up, in fp32, and where each look-up finds its own.

    torch adds vectors and gradients of bf16 in bf16. Here each row that is used stands once, so its
    gradient is summed in fp32, over all bags, before it is rounded.

    Returns:
        [U, H] fp32, and [L, B, K] indices into it.
    """
    used_U, places_LBK = torch.unique(rows_LBK, return_inverse=True)
    return F.embedding(used_U, weight_PH).float(), places_LBK


class _BagEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight_PH: Tensor,
        tokens_BLK: Tensor,
        first_row: int,
        out_dtype: torch.dtype,
        accumulate_into_main_grad: bool,
    ) -> Tensor:
        from tst_megatron.model.kernels import bag_embedding as kernels

        ctx.save_for_backward(tokens_BLK)
        ctx.first_row, ctx.shape, ctx.dtype = first_row, weight_PH.shape, weight_PH.dtype
        # Autograd may hand back another object for a saved tensor, and the buffer hangs on this.
        ctx.main_grad = main_grad_of(weight_PH) if accumulate_into_main_grad else None
        ctx.weight = weight_PH if ctx.main_grad is not None else None
        return kernels.bag_mean(weight_PH.contiguous(), tokens_BLK, first_row, out_dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_LBH: Tensor) -> tuple[Tensor | None, ...]:
        from tst_megatron.model.kernels import bag_embedding as kernels

        (tokens_BLK,) = ctx.saved_tensors
        grad_LBH = grad_LBH.contiguous()
        if ctx.main_grad is not None:
            kernels.write_gradient(ctx.main_grad, grad_LBH, tokens_BLK, ctx.first_row, True)
            return note_added(ctx.weight), *[None] * 4
        gradient_PH = grad_LBH.new_empty(ctx.shape, dtype=ctx.dtype)
        kernels.write_gradient(gradient_PH, grad_LBH, tokens_BLK, ctx.first_row, False)
        return gradient_PH, *[None] * 4
