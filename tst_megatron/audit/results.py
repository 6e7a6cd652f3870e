"""Name everything that an audit finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tst_megatron.audit.items import Kind, LeftOut
from tst_megatron.audit.statistics.verdict import Word
from tst_megatron.compare.results import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Audited:
    """A model of the audit."""

    name: str
    folder: Path
    fingerprint: str
    """Checksum of its configuration and weights."""
    loss: float | None
    """Nats per token: as it was given, or on the held-out text."""
    is_loss_measured: bool
    temperature: float
    """At which its own loss on the held-out text is lowest; 1 without text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A model against the baseline on one probe."""

    model: str
    probe: str
    group: str
    aim: str
    kind: Kind
    unit: str
    is_higher_better: bool
    margin: float
    value: float
    baseline_value: float
    difference: Interval
    """Of the model less the baseline."""
    p_value: float
    """Two-sided, of no difference, corrected for all probes of the model (Holm)."""
    run_noise: float
    """Standard deviation of the difference from one training to another: measured or assumed."""
    verdict: Word
    reason: str
    """Why it cannot be told; else empty."""
    clusters: str
    num_clusters: int
    num_tokens: int
    num_to_decide: float | None
    """Clusters that would decide; infinite where no number does; None where it is decided."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairing:
    """What it means for the verdicts how far the losses of two models are apart."""

    model: str
    gap: float | None
    """Loss of the model less that of the baseline, nats."""
    is_equal: bool
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """Everything that was found."""

    baseline: str
    models: Sequence[Audited]
    """The baseline first, then further seeds of it, then those that are compared with it."""
    compared: Sequence[str]
    """Names of the last kind."""
    pairings: Sequence[Pairing]
    answers: Sequence[Answer]
    left_out: Sequence[LeftOut]
    bag_size: int
    bag_size_source: str
    num_positions: int
    text: str | None
    text_sha256: str | None
    """Of the documents that were read."""
    margins: Mapping[str, float]
    """By kind, and by probe where one has its own."""
    seed: int
    items_version: int
    """``probes/catalogue.py``: the same seed and version give the same items."""
    suites: Mapping[str, str]
    """Suite -> checksum of all that was asked."""
    num_baseline_seeds: int
    seconds: float
