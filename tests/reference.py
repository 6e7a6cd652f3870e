"""The loss of the paper's definition, as loops over Python numbers in double precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def multi_hot_loss_and_grad(
    logits_NV: Tensor,
    targets_NK: Tensor,
    *,
    upstream_grad_N: Tensor,
    slot_weights: list[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss of each position and the gradient of their weighted sum, slot by slot (paper 3.2)."""
    num_positions, num_columns = logits_NV.shape
    losses = torch.zeros(num_positions, dtype=torch.float64)
    grads = torch.zeros(num_positions, num_columns, dtype=torch.float64)
    for n in range(num_positions):
        scores = [float(score) for score in logits_NV[n]]
        largest = max(scores)
        total = sum(math.exp(score - largest) for score in scores)
        probabilities = [math.exp(score - largest) / total for score in scores]
        slots = [
            (int(target), 1.0 if slot_weights is None else slot_weights[slot])
            for slot, target in enumerate(targets_NK[n])
            if int(target) != -100
        ]
        weight_sum = sum(weight for _, weight in slots)
        for target, weight in slots:
            share = weight / weight_sum
            losses[n] += share * -math.log(probabilities[target])
            for column in range(num_columns):
                hit = 1.0 if column == target else 0.0
                grads[n, column] += (
                    float(upstream_grad_N[n]) * share * (probabilities[column] - hit)
                )
    return losses, grads
