"""Megatron's word embeddings, which also take bags: a mean that is taken before anything moves.

Shapes: B micro-batch, L latent positions, K tokens per bag (paper: s), H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tst_megatron.megatron.names import (
    VocabParallelEmbedding,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from tst_megatron.model.bag_embedding import bag_embedding


class BagEmbedding(VocabParallelEmbedding):
    """Megatron's word embeddings, which also take bags.

    Token ids of two dimensions take Megatron's own path, untouched. Ids [B, L, K] give one vector
    per bag. The mean is taken on each rank before the collective, which therefore carries K times
    fewer elements than K look-ups would.
    """

    @classmethod
    def take_over(cls, embedding: VocabParallelEmbedding) -> None:
        """Let an existing embedding accept bags, in place.

        Only the class changes, so weights, parameter names, checkpoint layout and the draws from
        the random generator are exactly those of the unmodified model.
        """
        embedding.__class__ = cls

    def forward(self, input_: Tensor) -> Tensor:
        """Embed token ids [B, L] or bags [B, L, K].

        Returns:
            [B, L, H], or [L / tp, B, H] when the embedding reduces and scatters for sequence
            parallelism.
        """
        if input_.dim() == 2:
            # Its gradient is an ordinary one. Beside CUDA graphs Megatron never takes this mark
            # back, and after the switch it would pass over the gradient of every step.
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
            # No Apex is needed for it, so not only with gradient-accumulation-fusion.
            accumulate_into_main_grad=True,
        )
        if self.reduce_scatter_embeddings:
            own = reduce_scatter_to_sequence_parallel_region(mean_LBH, group=self.tp_group)
            return own.to(dtype)
        if num_ranks > 1:
            mean_LBH = reduce_from_tensor_model_parallel_region(mean_LBH, group=self.tp_group)
        # A view: Megatron transposes it back, which then costs nothing.
        return mean_LBH.to(dtype).transpose(0, 1)
