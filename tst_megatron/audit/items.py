"""Name what is asked of a model: passages, suites of them, and probes on their scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NO_FOIL = -1

Kind = Literal["loss", "slice", "gain", "accuracy", "calibration", "probability", "entropy"]
"""What a probe's number is, which decides its margin:

loss: nats per token of all text. slice: nats per token of some tokens, less those of all others.
gain: nats that a context saves. accuracy: share of right choices, 0-1. calibration: ECE or Brier
score. probability: of the likeliest token, or by how much it leads. entropy: nats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """Tokens that are read at once, and those among them that are scored."""

    ids: Ints
    """[T] token ids."""
    positions: Ints
    """[S] places of the scored tokens, rising, each at least 1."""
    foils: Ints
    """[S] ids that are wrong at these places, of which the probability is asked too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """Passages that are scored together. N is the number of all their scored tokens."""

    name: str
    passages: Sequence[Passage]
    seed: int

    @property
    def num_scored(self) -> int:
        """N."""
        return sum(len(passage.positions) for passage in self.passages)

    def fingerprint(self) -> str:
        """Return a checksum of everything that is asked."""
        digest = hashlib.sha256(self.name.encode())
        for passage in self.passages:
            for part in (passage.ids, passage.positions, passage.foils):
                digest.update(np.int64(len(part)).tobytes())
                digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What a model says of every scored token of a suite, in the order of its passages."""

    loss: Floats
    """[N] nats: minus the log-probability of the token that stands there."""
    matched_loss: Floats
    """[N] the same at the model's own best temperature (``models/temperature.py``)."""
    foil_loss: Floats
    """[N] of the foil, at temperature 1; NaN without a foil."""
    entropy: Floats
    """[N] nats."""
    square: Floats
    """[N] sum of the squared probabilities of all tokens."""
    top: Floats
    """[N] probability of the likeliest token."""
    lead: Floats
    """[N] the same less the probability of the second."""
    is_top: Flags
    """[N] whether the likeliest token is the one that stands there."""


Reduce = Callable[[Scores], Floats]
"""Scores of a suite -> [C, F]: F sums over each of C clusters, which are drawn as a whole."""
Statistic = Callable[[Floats], Floats]
"""[R, F] sums over R drawings of clusters -> [R] numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One number of a model."""

    name: str
    """Such as ``numbers``; unique in an audit."""
    suite: str
    group: str
    """Heads a table, such as ``Natural text``."""
    aim: str
    """What it is for, in a sentence."""
    kind: Kind
    is_higher_better: bool
    clusters: str
    """What is drawn as a whole: ``documents``, ``passages`` or ``items``."""
    num_clusters: int
    num_tokens: int
    """Scored tokens that count in it."""
    reduce: Reduce = field(repr=False)
    statistic: Statistic = field(repr=False)
    floor: float | None = None
    """The number of a model that cannot do the task at all, such as 0.5 of two choices."""
    rests_on: Sequence[str] = ()
    """Probes with a floor: where no model is above it in any, this one says nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A probe that could not be asked."""

    name: str
    reason: str


@dataclass(slots=True)
class Catalogue:
    """All suites and probes of an audit."""

    suites: list[Suite] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def add(self, other: Catalogue) -> None:
        """Take over the suites and probes of another."""
        self.suites += other.suites
        self.probes += other.probes
        self.left_out += other.left_out
