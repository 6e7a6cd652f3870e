"""Draw the held-out text of two single runs anew, for intervals of crossings and of ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tst_megatron.compare.pairs.ends import blocks_at
from tst_megatron.compare.results import BlockLosses, Floats, RecordedRun
from tst_megatron.compare.statistics.blocks import fit_each_other, groups_of, resampled_curves
from tst_megatron.compare.statistics.curves import scatter
from tst_megatron.compare.statistics.gap import noise_of_single_runs

NUM_DRAWINGS = 1000
MOST_EVALUATIONS = 60
"""Of a run that are drawn: the nearest to where curves meet, and others at even distances."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """One run's losses on many drawings of the held-out text."""

    steps: Floats
    """[E]."""
    losses: Floats
    """[R, E] nats; each drawing also has its share of run-to-run noise, the same at all steps."""


def draw(
    wanted: Sequence[tuple[RecordedRun, Sequence[int]]], *, seed: int, notes: list[str]
) -> list[Drawn] | None:
    """Return the losses of runs on drawings that they share; None where too little is kept.

    Args:
        wanted: runs, each with the steps of evaluations.
        seed: of the drawings.
        notes: is told in a sentence of files that cannot be used.
    """
    kept: list[tuple[list[int], list[BlockLosses]]] = []
    for run, steps in wanted:
        pairs = [(step, blocks_at(run, step, notes)) for step in steps]
        usable = [(step, blocks) for step, blocks in pairs if blocks is not None]
        if len(usable) < min(2, len(steps)) or (usable and usable[-1][0] != steps[-1]):
            return None
        kept.append(([step for step, _ in usable], [blocks for _, blocks in usable]))
    if not fit_each_other([blocks for _, each in kept for blocks in each]):
        return None
    groups = [groups_of(each) for _, each in kept]
    if any(each is None for each in groups):
        return None
    curves = resampled_curves(
        [each for each in groups if each is not None], num_resamples=NUM_DRAWINGS, seed=seed
    )
    noise, _ = noise_of_single_runs(
        [scatter(run.validation.steps, run.validation.values) for run, _ in wanted]
    )
    random = np.random.default_rng([seed, 1])
    return [
        Drawn(
            steps=np.array(steps, np.float64),
            losses=curve + random.normal(0, noise, (NUM_DRAWINGS, 1)),
        )
        for (steps, _), curve in zip(kept, curves, strict=True)
    ]


def evaluations_near(
    steps: Sequence[int], places: Sequence[float], kept: Mapping[int, object]
) -> list[int]:
    """Choose evaluations: the last, those nearest to some steps, and others at even distances.

    Args:
        steps: of all evaluations, rising.
        places: steps where curves meet; infinite ones are passed over.
        kept: the evaluations that can be read.
    """
    there = [step for step in steps if step in kept]
    if len(there) <= MOST_EVALUATIONS:
        return there
    chosen = {there[-1], *there[:: -(-len(there) // (MOST_EVALUATIONS // 2))]}
    near = MOST_EVALUATIONS // 2 // max(1, len(places))
    for place in places:
        if np.isfinite(place):
            chosen |= set(sorted(there, key=lambda step: abs(step - place))[:near])
    return sorted(chosen)
