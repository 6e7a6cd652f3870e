"""Turn scores into numbers: sums over clusters, and what is made of their totals.

Shapes: N scored tokens of a suite, C clusters, F sums, R drawings of clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tst_megatron.audit.items import Flags, Floats, Ints, Reduce, Scores, Statistic

NUM_BINS = 15
"""Of confidence, for the calibration error."""

Value = Callable[[Scores], Floats]
"""Scores -> [N] a number for each scored token."""


def summed(clusters: Ints, columns: Sequence[Floats]) -> Floats:
    """Return [C, F] sums over clusters.

    Args:
        clusters: [N] from 0 to C - 1, and -1 for what does not count.
        columns: F of [N].
    """
    counted = clusters >= 0
    number = int(clusters.max()) + 1
    return np.stack(
        [np.bincount(clusters[counted], each[counted], minlength=number) for each in columns],
        axis=1,
    )


def ratio(totals: Floats) -> Floats:
    """Return the first of two sums divided by the second."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(totals[:, 0] / totals[:, 1])


def contrast(totals: Floats) -> Floats:
    """Return the mean of one part less the mean of another, from two sums and two counts."""
    return ratio(totals[:, :2]) - ratio(totals[:, 2:])


def mean_over(clusters: Ints, value: Value, among: Flags | None = None) -> tuple[Reduce, Statistic]:
    """Return the mean of a value over scored tokens.

    Args:
        clusters: [N].
        value: of each token.
        among: [N] those that count; all without it.
    """
    weight = np.ones(len(clusters)) if among is None else among.astype(np.float64)

    def reduce(scores: Scores) -> Floats:
        # What does not count may be NaN.
        return summed(clusters, (np.where(weight > 0, value(scores), 0.0), weight))

    return reduce, ratio


def contrast_of(clusters: Ints, value: Value, one: Flags, other: Flags) -> tuple[Reduce, Statistic]:
    """Return the mean of a value over some tokens less that over others.

    Args:
        clusters: [N].
        value: of each token.
        one: [N] the tokens that it is about.
        other: [N] those that it is held against.
    """

    def reduce(scores: Scores) -> Floats:
        each = value(scores)
        columns = []
        for part in (one, other):
            columns += [np.where(part, each, 0.0), part.astype(np.float64)]
        return summed(clusters, columns)

    return reduce, contrast


def matched_loss(scores: Scores) -> Floats:
    """Return the loss of each token at the model's best temperature."""
    return scores.matched_loss


def plain_loss(scores: Scores) -> Floats:
    """Return the loss of each token as the model has it."""
    return scores.loss


def is_right(scores: Scores) -> Floats:
    """Return 1 where the token is likelier than its foil, 0 where less, a half where equal."""
    return np.asarray(np.sign(scores.foil_loss - scores.loss) / 2 + 0.5)


def brier(scores: Scores) -> Floats:
    """Return the squared distance of all probabilities from what is there: 0 best, 2 worst."""
    return np.asarray(scores.square - 2 * np.exp(-scores.loss) + 1)


def calibration_error(clusters: Ints) -> tuple[Reduce, Statistic]:
    """Return the expected calibration error of the likeliest token, in equal bins of confidence.

    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, equation 3.
    """

    def reduce(scores: Scores) -> Floats:
        bins = np.minimum((scores.top * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        excess = scores.top - scores.is_top
        columns = [np.where(bins == each, excess, 0.0) for each in range(NUM_BINS)]
        return summed(clusters, [*columns, np.ones(len(clusters))])

    def statistic(totals: Floats) -> Floats:
        return np.asarray(np.abs(totals[:, :-1]).sum(axis=1) / totals[:, -1])

    return reduce, statistic


def entropy_gap(clusters: Ints) -> tuple[Reduce, Statistic]:
    """Return how far the mean loss is from the mean entropy, which a calibrated model has equal."""

    def reduce(scores: Scores) -> Floats:
        return summed(clusters, (scores.loss - scores.entropy, np.ones(len(clusters))))

    def statistic(totals: Floats) -> Floats:
        return np.abs(ratio(totals))

    return reduce, statistic
