"""The bag embedding: the mean of a bag's word embeddings, taken before anything crosses ranks.

Shapes: B micro-batch, L latent positions, K tokens per bag (paper: s), H hidden, P vocabulary rows
on this rank (V / tp).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tst_megatron.upstream import (
    VocabParallelEmbedding,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)


def bag_mean(
    weight_PH: Tensor, tokens_BLK: Tensor, *, first_row: int = 0, is_split: bool = False
) -> Tensor:
    """Mean of the embeddings of each bag's tokens, summed and divided by K in fp32.

    Args:
        weight_PH: [P, H] rows [first_row, first_row + P) of the embedding table.
        tokens_BLK: [B, L, K] integer token ids.
        first_row: the token id of this rank's first row.
        is_split: other ranks hold other rows; a token of theirs adds nothing to the result, which
            is this rank's share of the mean.

    Returns:
        [B, L, H] in the type of the table (fp32 inside).

    Source: paper section 3.1 and listing 2.
    """
    if not is_split:
        vectors_BLKH = F.embedding(tokens_BLK, weight_PH).float()
    else:
        rows_BLK = tokens_BLK - first_row
        is_here_BLK = (rows_BLK >= 0) & (rows_BLK < weight_PH.shape[0])
        vectors_BLKH = F.embedding(rows_BLK.where(is_here_BLK, 0), weight_PH).float()
        vectors_BLKH = vectors_BLKH.masked_fill(~is_here_BLK.unsqueeze(-1), 0.0)
    return vectors_BLKH.mean(dim=2).to(weight_PH.dtype)


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
            return super().forward(input_)
        is_split = self.tp_group.size() > 1
        mean_BLH = bag_mean(
            self.weight, input_, first_row=self.vocab_start_index, is_split=is_split
        )
        if self.reduce_scatter_embeddings:
            mean_LBH = mean_BLH.transpose(0, 1).contiguous()
            return reduce_scatter_to_sequence_parallel_region(mean_LBH, group=self.tp_group)
        if is_split:
            return reduce_from_tensor_model_parallel_region(mean_BLH, group=self.tp_group)
        return mean_BLH
