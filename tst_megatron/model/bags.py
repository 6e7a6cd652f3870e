"""Cut raw tokens into bags, and cut the targets of each bag from the tokens that follow it.

``fold`` cuts both, ``ignore_after`` marks targets that do not count. ``training/step.py`` calls
them once per micro-batch, in ``make_batch``.

Shapes: B micro-batch, T raw tokens per sequence, L latent positions, K tokens per bag (paper: s).
"""

from __future__ import annotations

from torch import Tensor

IGNORED = -100
"""The target id of a slot that counts for nothing, as in ``torch.nn.functional.cross_entropy``."""


def fold(tokens_BT: Tensor, *, num_inputs: int, num_targets: int) -> tuple[Tensor, Tensor]:
    """Cut raw tokens into bags, and cut the targets of each latent position.

    Latent position j reads the I raw tokens [j*I, (j+1)*I) and predicts the J tokens after them.
    Token superposition has I = J = K, ordinary training I = J = 1. The paper's ablations have a bag
    on one side only: I = K, J = 1 and I = 1, J = K.

    Example: tokens 0..5 with I = J = 2 give the bags (0, 1), (2, 3) with targets (2, 3), (4, 5).

    Args:
        tokens_BT: [B, T] integer raw tokens, T = L*I + J: the last J are targets only.
        num_inputs: I, raw tokens read per latent position.
        num_targets: J, raw tokens predicted per latent position.

    Returns:
        inputs_BLK [B, L, I] and targets_BLK [B, L, J].

    Raises:
        ValueError: T has another form, or leaves no latent position.

    Source: paper sections 3.1, 3.2 and 5.2.
    """
    num_raw_tokens = tokens_BT.shape[1]
    if (num_raw_tokens - num_targets) % num_inputs or num_raw_tokens < num_inputs + num_targets:
        raise ValueError(
            f"{num_raw_tokens} raw tokens do not make bags of {num_inputs} with {num_targets} of "
            f"look-ahead: the length must be a multiple of {num_inputs}, not 0, and {num_targets}"
        )
    inputs_BLK = tokens_BT[:, :-num_targets].reshape(len(tokens_BT), -1, num_inputs)
    targets_BLK = tokens_BT[:, num_inputs:].unfold(1, num_targets, num_inputs)
    return inputs_BLK, targets_BLK


def ignore_after(tokens_BT: Tensor, targets_BLK: Tensor, token: int) -> Tensor:
    """Ignore each target whose preceding raw token is ``token`` (Megatron's ``--eod-mask-loss``).

    Megatron masks the positions that read the end-of-document token, because the next token starts
    another document and cannot be predicted. The same raw tokens are ignored at every bag size.

    Args:
        tokens_BT: [B, T] the raw tokens that ``fold`` was given.
        targets_BLK: [B, L, J] the targets that it returned.
        token: usually the end-of-document id.

    Returns:
        [B, L, J] targets with ``IGNORED`` where the token before is ``token``.
    """
    _, num_positions, num_targets = targets_BLK.shape
    num_inputs = (tokens_BT.shape[1] - num_targets) // num_positions
    before_BLK = tokens_BT[:, num_inputs - 1 : -1].unfold(1, num_targets, num_inputs)
    return targets_BLK.masked_fill(before_BLK == token, IGNORED)
