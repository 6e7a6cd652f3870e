"""Embed bags: the mean of the embeddings of a bag's tokens, alone and inside Megatron's embedding.

``bag_embedding`` is the tensor function, in torch and as Triton kernels. ``BagEmbedding`` is
Megatron's module of word embeddings that calls it for bags, and does the collective.

Shapes: B micro-batch, L latent positions, K tokens per bag (paper: s), H hidden, P vocabulary rows
on this rank (V / tp).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tst_megatron.megatron.names import (
    VocabParallelEmbedding,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from tst_megatron.model.kernels.choose import Implementation, uses_triton
from tst_megatron.model.main_grad import main_grad_of, note_added


class BagEmbedding(VocabParallelEmbedding):
    """Megatron's word embeddings, which also take bags.

    Token ids of two dimensions take Megatron's own path, unchanged. Ids [B, L, K] give one vector
    per bag. Each rank takes the mean before the collective, which therefore carries K times fewer
    elements than K look-ups would.
    """

    @classmethod
    def take_over(cls, embedding: VocabParallelEmbedding) -> None:
        """Let an existing embedding accept bags, in place.

        Only the class changes. Weights, parameter names, checkpoint layout and the draws from the
        random generator are exactly those of the unmodified model.
        """
        embedding.__class__ = cls

    def forward(self, input_: Tensor) -> Tensor:
        """Embed token ids [B, L] or bags [B, L, K].

        Returns:
            [B, L, H], or [L / tp, B, H] when the embedding reduces and scatters for sequence
            parallelism.
        """
        if input_.dim() == 2:
            # The mark that bags set (model/main_grad.py) must go: with CUDA graphs Megatron never
            # clears it, and data parallelism would skip this weight's gradient after the switch.
            if hasattr(self.weight, "grad_added_to_main_grad"):
                self.weight.grad_added_to_main_grad = False
            return super().forward(input_)
        num_ranks, dtype = self.tp_group.size(), self.weight.dtype
        mean_LBH = bag_embedding(
            self.weight,
            input_,
            first_row=self.vocab_start_index,
            is_split=num_ranks > 1,
            # Shares that are rounded before they are summed double the error over 8 ranks.
            out_dtype=torch.float32 if num_ranks > 2 else dtype,
            # Always, not only with gradient-accumulation-fusion: this way needs no Apex.
            accumulate_into_main_grad=True,
        )
        if self.reduce_scatter_embeddings:
            own = reduce_scatter_to_sequence_parallel_region(mean_LBH, group=self.tp_group)
            return own.to(dtype)
        if num_ranks > 1:
            mean_LBH = reduce_from_tensor_model_parallel_region(mean_LBH, group=self.tp_group)
        # A view, so it costs nothing that Megatron transposes it back.
        return mean_LBH.to(dtype).transpose(0, 1)


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
    """Return the mean of the embeddings of each bag's tokens.

    Means are summed and divided by K in fp32 and rounded once; so are the gradients of rows. Sums
    have a fixed order in both directions, also for a token that stands in many bags.

    Args:
        weight_PH: [P, H] rows [first_row, first_row + P) of the embedding table.
        tokens_BLK: [B, L, K] integer token ids.
        first_row: token id of this rank's first row.
        is_split: other ranks hold other rows. Their tokens add 0 here, and the result is this
            rank's share of the mean.
        out_dtype: type of the result; by default that of the table.
        accumulate_into_main_grad: let the Triton kernel add the gradient to Megatron's fp32 buffer,
            where the weight has one, without a dense gradient in between.
        implementation: ``auto`` takes the Triton kernels on a GPU, and torch otherwise.

    Returns:
        [L, B, H], as the layers take it.

    Raises:
        ValueError: there is no such implementation, or it cannot take this type.

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
    """Copy the rows of a table that are looked up, in fp32, and renumber the look-ups.

    torch sums bf16 vectors and gradients in bf16. Each row that is used stands once in this copy,
    so its gradient is summed over all bags in fp32 before it is rounded.

    Returns:
        [U, H] fp32 copy of the U rows in use, and [L, B, K] indices into it.
    """
    used_U, places_LBK = torch.unique(rows_LBK, return_inverse=True)
    return F.embedding(used_U, weight_PH).float(), places_LBK


class _BagEmbedding(torch.autograd.Function):
    """The kernels of the bag embedding as one differentiable function."""

    @staticmethod
    def forward(
        ctx: Any,
        weight_PH: Tensor,
        tokens_BLK: Tensor,
        first_row: int,
        out_dtype: torch.dtype,
        accumulate_into_main_grad: bool,
    ) -> Tensor:
        # Here, not at the top: a torch for CPUs alone is installed without Triton.
        from tst_megatron.model.kernels import bag_embedding as kernels

        ctx.save_for_backward(tokens_BLK)
        ctx.first_row, ctx.shape, ctx.dtype = first_row, weight_PH.shape, weight_PH.dtype
        # Saved tensors may come back as other objects, but the buffer is an attribute of this one.
        ctx.main_grad = main_grad_of(weight_PH) if accumulate_into_main_grad else None
        ctx.weight = weight_PH if ctx.main_grad is not None else None
        return kernels.bag_mean(weight_PH.contiguous(), tokens_BLK, first_row, out_dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_LBH: Tensor) -> tuple[Tensor | None, ...]:
        # Here, not at the top: a torch for CPUs alone is installed without Triton.
        from tst_megatron.model.kernels import bag_embedding as kernels

        (tokens_BLK,) = ctx.saved_tensors
        grad_LBH = grad_LBH.contiguous()
        if ctx.main_grad is not None:
            kernels.write_gradient(ctx.main_grad, grad_LBH, tokens_BLK, ctx.first_row, True)
            return note_added(ctx.weight), *[None] * 4
        gradient_PH = grad_LBH.new_empty(ctx.shape, dtype=ctx.dtype)
        kernels.write_gradient(gradient_PH, grad_LBH, tokens_BLK, ctx.first_row, False)
        return gradient_PH, *[None] * 4
