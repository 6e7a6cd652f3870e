"""Cut a stream of raw tokens into bags, and each bag's targets from the bag that follows.

Shapes: B micro-batch, T raw tokens per sequence, L latent positions, K tokens per bag (paper: s).
"""

from __future__ import annotations

from torch import Tensor

IGNORED = -100
"""A target slot that counts for nothing; the field's usual ignore index."""


def fold(tokens_BT: Tensor, bag_size: int) -> tuple[Tensor, Tensor]:
    """Cut raw tokens into bags and give each latent position the bag that follows it.

    Latent position j reads raw tokens [j*K, (j+1)*K) and predicts the K tokens after them.

    Args:
        tokens_BT: [B, T] integer raw tokens, T = L*K + K: the last bag is a target only.
        bag_size: K, raw tokens per bag; 1 gives ordinary next-token pairs.

    Returns:
        inputs_BLK and targets_BLK, both [B, L, K].

    Raises:
        ValueError: T is not a whole number of bags, or there are fewer than two.

    Source: paper sections 3.1 and 3.2.
    """
    batch, num_raw_tokens = tokens_BT.shape
    if num_raw_tokens % bag_size or num_raw_tokens < 2 * bag_size:
        raise ValueError(
            f"{num_raw_tokens} raw tokens do not make bags of {bag_size}: the length must be a "
            f"multiple of {bag_size} and hold two bags or more"
        )
    inputs_BLK = tokens_BT[:, :-bag_size].reshape(batch, -1, bag_size)
    targets_BLK = tokens_BT[:, bag_size:].reshape(batch, -1, bag_size)
    return inputs_BLK, targets_BLK


def ignore_after(tokens_BT: Tensor, targets_BLK: Tensor, token: int) -> Tensor:
    """Ignore each target whose preceding raw token is ``token`` (Megatron's ``--eod-mask-loss``).

    Megatron masks the positions that read the end-of-document token: what follows it starts another
    document and cannot be predicted. The same raw tokens are ignored here at every bag size.

    Args:
        tokens_BT: [B, T] the raw tokens that ``fold`` was given.
        targets_BLK: [B, L, K] the targets that it returned.
        token: usually the end-of-document id.

    Returns:
        [B, L, K] targets with ``IGNORED`` where the token before is ``token``.
    """
    bag_size = targets_BLK.shape[-1]
    before_BLK = tokens_BT[:, bag_size - 1 : -1].reshape(targets_BLK.shape)
    return targets_BLK.masked_fill(before_BLK == token, IGNORED)
