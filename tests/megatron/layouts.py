"""The parallel layouts in which one model must have one gradient, and what is computed in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tiny import TINY

LENGTH, SEQUENCES, MICRO_BATCH, END = 8, 8, 2, 2
TOLERANCE = 1e-5
"""Largest |g - g_ref| / |g_ref| of any parameter, Euclidean norms, in fp32."""

RECIPE = {
    **TINY,
    # Two chunks on each of two pipeline stages.
    "num-layers": 4,
    "hidden-size": 32,
    "kv-channels": 8,
    "ffn-hidden-size": 64,
    "moe-ffn-hidden-size": 32,
    # Larger than in training, so that every part of the model matters to the gradient.
    "init-method-std": 0.1,
    "moe-aux-loss-coeff": 0.1,
    "moe-z-loss-coeff": 0.01,
    "seq-length": LENGTH,
    "max-position-embeddings": LENGTH,
    "micro-batch-size": MICRO_BATCH,
    "global-batch-size": SEQUENCES,
    "use-distributed-optimizer": False,
    "tokenizer-type": "SentencePieceTokenizer",
    "rerun-mode": "disabled",  # it wants the training loop around each step
    "dataloader-type": "single",
}

TP2 = {"tensor-model-parallel-size": 2, "sequence-parallel": True}
PP2 = {"pipeline-model-parallel-size": 2}
VPP2 = {**PP2, "num-layers-per-virtual-pipeline-stage": 1}
EP2 = {"expert-model-parallel-size": 2}
ETP1 = {"expert-tensor-parallel-size": 1}
ETP2 = {"expert-tensor-parallel-size": 2}
DISTRIBUTED_OPTIMIZER = {"use-distributed-optimizer": True}
OVERLAPS = {
    **DISTRIBUTED_OPTIMIZER,
    "overlap-grad-reduce": True,
    "overlap-param-gather": True,
    "ddp-bucket-size": 20_000,  # several buckets, or nothing overlaps
}


@dataclass(frozen=True)
class Layout:
    """A way to spread the model and the batch over ranks."""

    name: str
    num_ranks: int
    flags: Mapping[str, Any] = field(hash=False)


ALONE = Layout("one process", 1, {})
LAYOUTS = (
    Layout("DP2", 2, {}),
    Layout("DP2, distributed optimizer", 2, DISTRIBUTED_OPTIMIZER),
    Layout("DP2, distributed optimizer, both overlaps", 2, OVERLAPS),
    Layout("TP2+SP", 2, TP2),
    Layout("TP2+SP, ETP1", 2, {**TP2, **ETP1}),
    Layout("TP2+SP, ETP1, EP2", 2, {**TP2, **ETP1, **EP2}),
    Layout("PP2", 2, PP2),
    Layout("VPP2 on PP2", 2, VPP2),
    Layout("EP2", 2, EP2),
    Layout("EP2, both overlaps", 2, {**EP2, **OVERLAPS}),
    Layout("ETP2 on TP1", 2, ETP2),
    Layout("TP2+SP x PP2", 4, {**TP2, **PP2}),
    Layout("TP2+SP x DP2, both overlaps", 4, {**TP2, **OVERLAPS}),
    Layout("TP2+SP x EP2", 4, {**TP2, **EP2}),
    Layout("EP2 x PP2", 4, {**EP2, **PP2}),
    Layout("ETP2 x EP2 on TP1", 4, {**ETP2, **EP2}),
    Layout("PP2 x DP2, distributed optimizer", 4, {**PP2, **DISTRIBUTED_OPTIMIZER}),
    Layout("VPP2 on PP2 x DP2, both overlaps", 4, {**VPP2, **OVERLAPS}),
    Layout("VPP2 on PP2 x TP2+SP", 4, {**VPP2, **TP2}),
    Layout("VPP2 on PP2 x EP2, both overlaps", 4, {**VPP2, **EP2, **OVERLAPS}),
)

PHASES: dict[str, dict[str, Any]] = {
    "K=4": {"bag_size": 4},
    "K=1": {"bag_size": 1},
}
SWITCHES: dict[str, dict[str, Any]] = {
    "K=4, one token in": {"bag_size": 4, "inputs": "tokens"},
    "K=4, one token out": {"bag_size": 4, "targets": "tokens"},
    "K=4, slot weights 1/i": {"bag_size": 4, "slot_weights": "1/i"},
}
LINEAR: dict[str, dict[str, Any]] = {
    # Another way to the gradient of K=4.
    "K=4, linear loss": {"bag_size": 4, "linear_cross_entropy": True},
}
OF_MODEL = {"slot_weights": "uniform", "linear_cross_entropy": False}
"""What of these the model has, and its default; the rest are fields of a `Phase`."""

LOSSES: dict[str, dict[str, Any]] = {
    "mean": {},
    "per token": {"calculate_per_token_loss": True},
    "mean, masked": {"eod_mask_loss": True},
    "per token, masked": {"calculate_per_token_loss": True, "eod_mask_loss": True},
}


@dataclass(frozen=True)
class Case:
    """What is computed in a layout."""

    phase: str
    is_tied: bool = False
    loss: str = "mean"

    def __str__(self) -> str:
        return f"{self.phase}, {'tied' if self.is_tied else 'untied'}, {self.loss}"


CASES = tuple(Case(phase, is_tied) for is_tied in (False, True) for phase in PHASES)

_LINEAR = tuple(Case(phase, is_tied) for is_tied in (False, True) for phase in LINEAR)
_MASKED = tuple(Case(phase, loss="per token, masked") for phase in PHASES)
_MORE = {
    "DP2, distributed optimizer, both overlaps": _MASKED,
    "TP2+SP": (*(Case(phase) for phase in SWITCHES), *_LINEAR),
    "PP2": (*(Case(phase) for phase in SWITCHES), *_LINEAR),
    "EP2": tuple(Case(phase) for phase in SWITCHES),
    "ETP2 on TP1": _MASKED,
    "TP2+SP x PP2": _MASKED,
    "TP2+SP x EP2": _MASKED,
    "EP2 x PP2": _MASKED,
    "VPP2 on PP2 x DP2, both overlaps": _MASKED,
}
TESTED = {layout: CASES + _MORE.get(layout.name, ()) for layout in LAYOUTS}
"""What the tests compute in each layout."""

MEASURED = tuple(
    Case(phase, is_tied, loss)
    for is_tied in (False, True)
    for loss in LOSSES
    for phase in ((*PHASES, *SWITCHES) if loss == "mean" else PHASES)
)
"""What ``tools/measure_layouts.py`` computes in every layout."""
