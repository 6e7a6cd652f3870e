"""Uncertainty of a mean over held-out sequences that are read in a fixed order.

Neighbouring sequences may be of one document, and then their losses are alike. A variance that took
them for independent would be too small. So neighbours are put together in groups of about the
square root of their number (batch means), and groups are taken for independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tst_megatron.compare.results import BlockLosses, Floats
from tst_megatron.compare.statistics.student import CONFIDENCE, t_quantile

FEWEST_GROUPS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """Evaluations of one run, their sequences put together in G groups of neighbours."""

    loss_sum: Floats
    """[E, G] nats, of E evaluations."""
    num_positions: Floats
    """[G], the same in every evaluation."""


def fit_each_other(all_blocks: Sequence[BlockLosses]) -> bool:
    """Tell whether evaluations are of the same sequences, as far as their counts tell it."""
    first = all_blocks[0].num_positions
    return all(np.array_equal(each.num_positions, first) for each in all_blocks)


def groups_of(all_blocks: Sequence[BlockLosses]) -> Groups | None:
    """Put neighbouring sequences together; None if they are too few for a variance.

    Args:
        all_blocks: evaluations of the same n sequences.
    """
    num_sequences = len(all_blocks[0].num_positions)
    num_groups = math.isqrt(num_sequences)
    if num_groups < FEWEST_GROUPS:
        return None
    starts = np.arange(num_groups) * num_sequences // num_groups
    loss_sum = np.array([np.add.reduceat(each.loss_sum, starts) for each in all_blocks])
    counts = np.add.reduceat(all_blocks[0].num_positions, starts).astype(np.float64)
    return Groups(loss_sum=loss_sum, num_positions=counts)


def mean_and_variance(loss_sum: Floats, num_positions: Floats) -> tuple[float, float]:
    """Return the mean loss of a position, and the variance of that mean.

    Args:
        loss_sum: [G] of groups, or differences between two runs.
        num_positions: [G].
    """
    num_groups = len(num_positions)
    mean = float(loss_sum.sum() / num_positions.sum())
    # Of a ratio of two sums, as its first-order expansion has it.
    residuals = (loss_sum - mean * num_positions) / num_positions.mean()
    return mean, float((residuals**2).sum()) / (num_groups * (num_groups - 1))


def resampled_curves(runs: Sequence[Groups], *, num_resamples: int, seed: int) -> list[Floats]:
    """Draw held-out text anew, many times, and return the losses of all runs on each drawing.

    All runs and evaluations are of the same groups in each drawing, so what is common to them
    cancels. With few groups, drawings vary less than the mean does; their distances from the mean
    are stretched by as much as Student's t is wider than the normal distribution.

    Args:
        runs: with the same groups each.
        num_resamples: drawings.
        seed: of the drawings.

    Returns:
        For each run [num_resamples, E] mean losses.
    """
    counts = runs[0].num_positions
    num_groups = len(counts)
    stretch = t_quantile(0.5 + CONFIDENCE / 2, num_groups - 1) / t_quantile(
        0.5 + CONFIDENCE / 2, math.inf
    )
    stretch *= math.sqrt(num_groups / (num_groups - 1))
    drawn = np.random.default_rng(seed).multinomial(
        num_groups, np.full(num_groups, 1 / num_groups), size=num_resamples
    )
    positions = drawn @ counts
    curves = []
    for run in runs:
        mean = run.loss_sum.sum(axis=1) / counts.sum()
        drawings = (drawn @ run.loss_sum.T) / positions[:, None]
        curves.append(mean + stretch * (drawings - mean))
    return curves
