"""The gap between the final losses of two arms, with its confidence interval.

Where both arms have several seeds, the interval is over seeds: it holds for this held-out text.
With one seed, the difference is taken sequence by sequence, since both runs read the same held-out
positions, and the noise between runs that differ in their seed alone is added. One run cannot show
that noise, so it is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tst_megatron.compare.results import BlockLosses, Interval
from tst_megatron.compare.statistics.blocks import fit_each_other, groups_of, mean_and_variance
from tst_megatron.compare.statistics.student import (
    degrees,
    mean_interval,
    t_interval,
    welch_interval,
)

ASSUMED_NOISE = 0.004
"""Nats: standard deviation over seeds of one run's final loss, where it cannot be measured. In the
TST paper's sweep of baselines at 270M parameters, losses at neighbouring learning rates wiggle by
as much (arXiv 2605.06546, figure 7)."""
ASSUMED_SOURCE = (
    f"assumed {ASSUMED_NOISE} nats, as between single runs of 270M parameters in the TST paper; "
    "smaller models and fewer held-out tokens may be noisier"
)

SCATTER_SOURCE = (
    "taken from the scatter of these runs' own evaluations, since with one seed it cannot be "
    "measured; runs of other seeds may differ by more"
)

Basis = Literal["seeds", "blocks", "noise alone"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalLoss:
    """The last compared evaluation of one run."""

    seed: int | None
    loss: float
    """Nats, as the run has logged it."""
    blocks: BlockLosses | None
    scatter: float = 0.0
    """Nats: how far the run's late evaluations lie from a line through their neighbours
    (``curves.scatter``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """A gap, and what its interval rests on."""

    interval: Interval
    basis: Basis
    noise: float
    """Standard deviation over seeds of one run's final loss, nats."""
    noise_source: str


def find_gap(arm: Sequence[FinalLoss], baseline: Sequence[FinalLoss]) -> Gap:
    """Return the loss of an arm less that of the baseline.

    Args:
        arm: one for each run, at least one.
        baseline: likewise.
    """
    noise, source = run_noise(arm, baseline)
    losses = [[each.loss for each in runs] for runs in (arm, baseline)]
    numbers = [len(runs) for runs in (arm, baseline)]
    if min(numbers) >= 2:
        return Gap(
            interval=_over_seeds(arm, baseline), basis="seeds", noise=noise, noise_source=source
        )
    if max(numbers) >= 2:
        several = max(numbers)
        interval = t_interval(
            float(np.mean(losses[0]) - np.mean(losses[1])),
            noise**2 * (1 / numbers[0] + 1 / numbers[1]),
            several - 1,
            f"t over {several} seeds of one arm; the other's single run is taken to be as noisy",
        )
        return Gap(interval=interval, basis="seeds", noise=noise, noise_source=source)
    interval, basis = _of_single_runs(arm[0], baseline[0], noise)
    return Gap(interval=interval, basis=basis, noise=noise, noise_source=source)


def run_noise(*arms: Sequence[FinalLoss]) -> tuple[float, str]:
    """Return the standard deviation over seeds of one run's final loss, and where it is from."""
    several = [[each.loss for each in runs] for runs in arms if len(runs) >= 2]
    if not several:
        return noise_of_single_runs([each.scatter for runs in arms for each in runs])
    freedom = sum(len(losses) - 1 for losses in several)
    squares = sum(float(np.var(losses, ddof=1)) * (len(losses) - 1) for losses in several)
    runs = sum(map(len, several))
    return math.sqrt(squares / freedom), f"measured over {runs} runs of {len(several)} arms"


def noise_of_single_runs(scatters: Sequence[float]) -> tuple[float, str]:
    """Return the noise that is taken for runs of one seed each, and where it is from.

    Evaluations of one run on the same text scatter because its weights wander. Runs of other seeds
    differ by as much at least, so a scatter above the assumed noise takes its place.
    """
    largest = max(scatters, default=0.0)
    return (largest, SCATTER_SOURCE) if largest > ASSUMED_NOISE else (ASSUMED_NOISE, ASSUMED_SOURCE)


def _over_seeds(arm: Sequence[FinalLoss], baseline: Sequence[FinalLoss]) -> Interval:
    seeds = [{each.seed for each in runs} for runs in (arm, baseline)]
    if seeds[0] == seeds[1] and len(seeds[0]) == len(arm) == len(baseline):
        others = {each.seed: each for each in baseline}
        differences = [each.loss - others[each.seed].loss for each in arm]
        return mean_interval(differences, f"t over {len(arm)} pairs of seeds")
    return welch_interval(
        [each.loss for each in arm],
        [each.loss for each in baseline],
        f"Welch's t over {len(arm)} and {len(baseline)} seeds, not the same in both arms",
    )


def _of_single_runs(arm: FinalLoss, baseline: FinalLoss, noise: float) -> tuple[Interval, Basis]:
    of_noise = 2 * noise**2
    gap = arm.loss - baseline.loss
    if arm.blocks is not None and baseline.blocks is not None:
        if fit_each_other([arm.blocks, baseline.blocks]):
            groups = groups_of([arm.blocks, baseline.blocks])
            if groups is not None:
                difference = groups.loss_sum[0] - groups.loss_sum[1]
                _, variance = mean_and_variance(difference, groups.num_positions)
                freedom = degrees([variance, of_noise], [len(groups.num_positions) - 1, math.inf])
                method = (
                    f"{len(arm.blocks.num_positions):,} held-out blocks, paired, and assumed "
                    "run-to-run noise; one seed"
                )
                return t_interval(gap, variance + of_noise, freedom, method), "blocks"
    method = (
        "assumed run-to-run noise alone; one seed. How much the loss depends on the choice of the "
        "held-out text is not known, since no losses of the same held-out blocks are recorded"
    )
    return t_interval(gap, of_noise, math.inf, method), "noise alone"


def final_interval(runs: Sequence[FinalLoss]) -> Interval:
    """Return the mean final loss of an arm over its seeds.

    Args:
        runs: of the arm, at least one.
    """
    if len(runs) >= 2:
        return mean_interval([each.loss for each in runs], f"t over {len(runs)} seeds")
    only = runs[0]
    groups = None if only.blocks is None else groups_of([only.blocks])
    if groups is None or only.blocks is None:
        return Interval(value=only.loss, low=math.nan, high=math.nan, method="one seed")
    _, variance = mean_and_variance(groups.loss_sum[0], groups.num_positions)
    freedom = degrees([variance, ASSUMED_NOISE**2], [len(groups.num_positions) - 1, math.inf])
    method = f"{len(only.blocks.num_positions):,} held-out blocks and assumed noise; one seed"
    return t_interval(only.loss, variance + ASSUMED_NOISE**2, freedom, method)
