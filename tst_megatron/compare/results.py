"""Name everything that a comparison finds: recorded runs, arms, differences, gaps and verdicts.

A *run* is one training. An *arm* is all runs that differ in nothing but their seed. One arm is the
baseline, and every other arm is compared with it. Losses are in nats per token, and only next-token
losses are compared: a bag loss is another quantity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A number over optimizer steps."""

    steps: Ints
    """[n], rising; steps completed."""
    values: Floats
    """[n]; only finite numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockLosses:
    """The losses of one evaluation, one entry for each held-out sequence, in a fixed order."""

    loss_sum: Floats
    """[n] nats, summed over the sequence's positions that count."""
    num_positions: Ints
    """[n]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedRun:
    """One training as its records tell of it."""

    name: str
    """Unique in the comparison: the folder's name, with as much of its path as that needs."""
    path: Path
    kind: Literal["run folder", "TensorBoard", "CSV"]
    arm: str
    """Name of its arm, the same for runs that differ in their seed alone."""
    seed: int | None
    num_steps: int
    """Of the complete run; the last recorded step where nothing says more."""
    last_step: int
    """Recorded."""
    phases: tuple[tuple[int, int], ...]
    """(bag size, steps) of each; ((1, n),) for ordinary training and where nothing says more."""
    trunk: tuple[str, int] | None
    """(name of the trunk, step) for a branch: what came before cost this run nothing."""
    training: Mapping[str, Curve]
    """``bag loss`` and ``lm loss``, thinned to some thousand points each."""
    validation: Curve
    """Next-token loss on held-out text."""
    block_files: Mapping[int, Path]
    """Step -> the file of that evaluation's ``BlockLosses``."""
    raw_tokens: Floats | None
    """[len(validation.steps)] read until each evaluation; None where nothing says it."""
    flops: Floats | None
    """Likewise floating-point operations."""
    hours: Floats | None
    """Likewise hours of step time; of a branch, its trunk's included."""
    numbers: Mapping[str, float]
    """Of the run: ``raw tokens per second``, ``TFLOP/s per device``, ``MFU`` (0-1, where the
    device's peak is known), ``peak memory bytes``, ``load balancing loss``, ``parameters``,
    ``active parameters``, ``own hours`` (without the trunk's), as far as they are known."""
    device: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the run was made with, as far as it is recorded: see ``comparability.py``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimate with its confidence interval; ``low`` and ``high`` are NaN where none is known.

    ``high`` may be infinite: then the data exclude only what is below ``low``.
    """

    value: float
    low: float
    high: float
    method: str
    """In words, such as ``t over 3 pairs of seeds`` or ``256 held-out blocks, one seed``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Something in which arms differ, or that cannot be shown to be the same."""

    what: str
    """Such as ``tokenizer`` or ``learning rate``."""
    values: Mapping[str, str]
    """Arm -> its value, for people."""
    meaning: str
    """What that means for the comparison, in a sentence."""
    gravity: Literal["expected", "matters", "forbids"]
    """Expected: it is what is compared. Matters: conclusions are weaker. Forbids: losses cannot be
    compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spike:
    """The rise of the next-token loss at the switch, of one run."""

    switch_step: int
    height: float
    """Nats: loss of the first recovery step above the level it settles at."""
    length: int | None
    """Steps until nine tenths of that are gone; None if the run ends before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmSummary:
    """One arm in numbers."""

    name: str
    runs: Sequence[RecordedRun]
    final_step: int
    final_loss: Interval
    """Validation loss at the last common evaluation of its runs: mean over seeds."""
    spike: Spike | None
    numbers: Mapping[str, float]
    """As ``RecordedRun.numbers``, means over its runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """An arm against the baseline."""

    arm: str
    baseline: str
    compared_at: tuple[int, int]
    """(step of the arm, step of the baseline) whose losses are compared."""
    gap: Interval | None
    """Loss of the arm less that of the baseline, nats: below 0, the arm is better. None where they
    cannot be compared."""
    run_noise: float
    """Standard deviation over seeds of one run's final loss, nats; measured or assumed."""
    run_noise_source: str
    crossing_step: Interval | None
    """Step after which the arm stays below the baseline; None if it does not cross."""
    equal_loss: Mapping[str, Interval]
    """``steps``, ``raw tokens``, ``FLOPs``, ``hours``: what the baseline needs, divided by what the
    arm needs, to the same loss; above 1, the arm is cheaper. Empty if the losses never meet."""
    equal_loss_said: str
    """In a sentence, which losses were matched and how, or why none were."""
    verdict: Literal["better", "worse", "no difference found", "says nothing"]
    sentence: str
    """The verdict in one sentence with its uncertainty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Downstream:
    """A task of ``tst-megatron evaluate`` that two arms have answered."""

    task: str
    metric: str
    arm: str
    baseline: str
    arm_score: float
    """Fraction, 0-1."""
    baseline_score: float
    difference: Interval
    num_questions: int
    only_arm_right: int
    only_baseline_right: int
    p_value: float
    """McNemar's exact test, two-sided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Everything that was found."""

    baseline: str
    """Name of an arm."""
    arms: Sequence[ArmSummary]
    """The baseline first."""
    differences: Sequence[Difference]
    pairs: Sequence[Pair]
    """One for each arm but the baseline, in their order."""
    downstream: Sequence[Downstream]
    notes: Sequence[str]
    """Sentences: runs without overlap, records of an earlier version, damaged lines."""
    same: Mapping[str, str] = field(default_factory=dict)
    """What all runs are shown to share, such as ``tokenizer`` -> how that is known, such as ``by
    the stream``."""
