"""Find the temperature at which a model's own loss is lowest.

A model whose probabilities are all too sharp, or too flat, loses a little on every token. That is a
matter of calibration, and has probes of its own. Every other loss is read at the model's best
temperature, so that calibration does not look like a loss of memory or of order.

Shapes: N scored tokens, V vocabulary, G temperatures that are tried.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tst_megatron.audit.items import Floats

NUM_TRIED = 13
WIDEST = 2.5
"""The factor, up and down, by which the first temperatures go."""


def tried(centre: float, widest: float) -> Floats:
    """Return [G] inverse temperatures around one, evenly in their logarithm."""
    return centre * np.exp(np.linspace(-np.log(widest), np.log(widest), NUM_TRIED))


def losses_at(logits_NV: Tensor, targets_N: Tensor, inverses: Floats) -> Floats:
    """Return [G] losses, summed over tokens, at inverse temperatures."""
    right = logits_NV.gather(1, targets_N[:, None])[:, 0]
    found = [
        float((torch.logsumexp(logits_NV * inverse, dim=1) - right * inverse).double().sum())
        for inverse in inverses.tolist()
    ]
    return np.array(found)


def lowest(inverses: Floats, losses: Floats) -> float:
    """Return where a parabola through the three lowest losses has its lowest point.

    Args:
        inverses: [G] rising.
        losses: [G]; the loss is convex in the inverse temperature.
    """
    at = int(np.argmin(losses))
    if at in (0, len(losses) - 1):
        return float(inverses[at])
    a, b, c = np.log(inverses[at - 1 : at + 2])
    left, middle, right = losses[at - 1 : at + 2]
    above = (b - a) ** 2 * (middle - right) - (b - c) ** 2 * (middle - left)
    below = (b - a) * (middle - right) - (b - c) * (middle - left)
    return float(np.exp(b - above / below / 2)) if below else float(inverses[at])
