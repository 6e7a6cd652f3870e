"""Profiles: what a recipe leaves to the machine, as Megatron's flags with a reason beside each.

A profile's values lie under the recipe's own keys and overrides, so that ``profile=tuned
moe-token-dispatcher-type=alltoall`` switches one step off; what that step alone needs goes with it.
Nothing here asks what is installed: ``gradient-accumulation-fusion: false`` says that there is no
Apex. No profile was run on a GPU yet. `docs/profiles.md` has the table.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tst_megatron.recipe.keys.flags import Flags

GPU_PROFILES = ("bf16", "tuned", "mxfp8", "fp8")
PROFILES = (*GPU_PROFILES, "cpu")

Values = Callable[[str], Any]
"""What a key comes to, at the point where it is asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """When a setting is given."""

    text: str
    """In words, for the table."""
    holds: Callable[[Values], bool]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One flag of a profile, or one environment variable that goes with it."""

    key: str
    value: Any
    why: str
    needs: tuple[Need, ...] = ()
    """All of them, or it is left out."""

    def is_wanted(self, value: Values) -> bool:
        """Whether a run, of which ``value`` tells what a key comes to, needs it."""
        return all(need.holds(value) for need in self.needs)


def is_on(key: str) -> Need:
    """That a flag is on."""
    return Need(text=f"`{key}`", holds=lambda value: bool(value(key)))


EXPERTS = Need(text="`num-experts`", holds=lambda value: bool(value("num-experts")))
DENSE = Need(text="no `num-experts`", holds=lambda value: not value("num-experts"))
EXPERT_PARALLEL = Need(
    text="`expert-model-parallel-size` above 1",
    holds=lambda value: (
        bool(value("num-experts")) and value("expert-model-parallel-size") not in (None, 1)
    ),
)
HYBRID_EP = Need(
    text="HybridEP as the dispatcher",
    holds=lambda value: (
        value("moe-token-dispatcher-type") == "flex"
        and value("moe-flex-dispatcher-backend") == "hybridep"
    ),
)
FLEX = Need(
    text="`moe-token-dispatcher-type: flex`",
    holds=lambda value: value("moe-token-dispatcher-type") == "flex",
)
ONE_CHUNK = Need(
    text="one pipeline stage, or virtual ones",
    holds=lambda value: (
        value("pipeline-model-parallel-size") == 1
        or bool(value("num-virtual-stages-per-pipeline-rank"))
        or bool(value("num-layers-per-virtual-pipeline-stage"))
        or bool(value("pipeline-model-parallel-layout"))
    ),
)
NO_SHARED_OVERLAP = Need(
    text="no `moe-shared-expert-overlap`",
    holds=lambda value: not value("moe-shared-expert-overlap"),
)
SHARED_EXPERTS_WITH_APEX = Need(
    text="Apex or no shared experts",
    holds=lambda value: (
        bool(value("gradient-accumulation-fusion"))
        or not value("moe-shared-expert-intermediate-size")
    ),
)
NO_FULL_RECOMPUTE = Need(
    text="no full recompute",
    holds=lambda value: value("recompute-granularity") != "full",
)
GRAPHS = Need(
    text="`cuda-graph-impl: transformer_engine`",
    holds=lambda value: value("cuda-graph-impl") == "transformer_engine",
)
GRAPHED_ATTENTION = Need(
    text="Apex (`gradient-accumulation-fusion`), or no delayed weight gradients beside "
    "`overlap-grad-reduce`",
    holds=lambda value: (
        bool(value("gradient-accumulation-fusion"))
        or not (value("delay-wgrad-compute") and value("overlap-grad-reduce"))
    ),
)
MXFP8 = Need(text="`fp8-recipe: mxfp8`", holds=lambda value: value("fp8-recipe") == "mxfp8")

CPU = (
    Setting(
        key="moe-token-dispatcher-type",
        value="alltoall",
        why="the dispatcher of `bf16`; Megatron's default, allgather, is another code path",
        needs=(EXPERTS,),
    ),
)
"""What the CPU host leaves to the recipe; what it forces is ``ARGUMENTS`` of ``cpu/host.py``."""

BF16 = (
    Setting(
        key="bf16", value=True, why="weights and gradients of layers; the optimizer keeps fp32"
    ),
    Setting(
        key="transformer-impl",
        value="transformer_engine",
        why="its layers have the fused attention; Megatron's own default, said here to be seen",
    ),
    Setting(
        key="use-distributed-optimizer",
        value=True,
        why="optimizer state is cut into shards over data-parallel ranks; the overlaps need it",
    ),
    Setting(
        key="overlap-grad-reduce",
        value=True,
        why="gradients are summed over ranks while the backward pass goes on",
    ),
    Setting(
        key="overlap-param-gather",
        value=True,
        why="parameters are gathered while the forward pass goes on",
        needs=(is_on("overlap-grad-reduce"), is_on("use-distributed-optimizer")),
    ),
    Setting(
        key="gradient-accumulation-fusion",
        value=False,
        why="on by default in Megatron, and the output layer then needs Apex's CUDA extension",
    ),
    Setting(
        key="moe-token-dispatcher-type",
        value="alltoall",
        why="needs no package beside NCCL; Megatron's default, allgather, sends every position to "
        "every rank",
        needs=(EXPERTS,),
    ),
    Setting(
        key="moe-grouped-gemm",
        value=True,
        why="one kernel for all experts of a rank instead of one after the other",
        needs=(EXPERTS,),
    ),
)
"""The default: nothing beside Transformer Engine, no graphs."""

TUNED = (
    Setting(
        key="gradient-accumulation-fusion",
        value=True,
        why="weight gradients are added up inside the matrix product. Needs Apex; `false` says "
        "that there is none, and what needs it is left out",
    ),
    Setting(
        key="cross-entropy-loss-fusion",
        value=True,
        why="fewer passes over the logits of recovery and of evaluations; bags have a loss of ours",
    ),
    Setting(
        key="cross-entropy-fusion-impl",
        value="native",
        why="Megatron 0.19.2 refuses `te` for being unstable",
        needs=(is_on("cross-entropy-loss-fusion"),),
    ),
    Setting(
        key="moe-token-dispatcher-type",
        value="flex",
        why="the dispatcher is a package that sends and permutes in one kernel",
        needs=(EXPERT_PARALLEL,),
    ),
    Setting(
        key="moe-flex-dispatcher-backend",
        value="hybridep",
        why="the fastest of the three in NVIDIA's recipes; needs DeepEP's branch hybrid-ep",
        needs=(FLEX,),
    ),
    Setting(
        key="moe-flex-dispatcher-num-sms",
        value=32,
        why="as NVIDIA's BF16 recipe for Qwen3-30B-A3B on B200; the rest of the GPU computes",
        needs=(HYBRID_EP,),
    ),
    Setting(
        key="moe-hybridep-num-sms-preprocessing",
        value=32,
        why="as the same recipe; Megatron's default is 108",
        needs=(HYBRID_EP,),
    ),
    Setting(
        key="moe-permute-fusion",
        value=True,
        why="positions are brought into the order of experts by one kernel",
        needs=(EXPERTS,),
    ),
    Setting(
        key="moe-router-fusion",
        value=True,
        why="top-k and auxiliary loss in one kernel",
        needs=(EXPERTS,),
    ),
    Setting(
        key="overlap-moe-expert-parallel-comm",
        value=True,
        why="one micro-batch's exchange between experts runs beside the next one's computation: "
        "244 to 287 TFLOP/s on H100 as published for Qwen3-30B-A3B",
        needs=(EXPERT_PARALLEL, ONE_CHUNK, NO_FULL_RECOMPUTE, NO_SHARED_OVERLAP),
    ),
    Setting(
        key="delay-wgrad-compute",
        value=True,
        why="weight gradients fill the gaps of that exchange; those of shared experts are graphed",
        needs=(is_on("overlap-moe-expert-parallel-comm"), SHARED_EXPERTS_WITH_APEX),
    ),
    Setting(
        key="cuda-graph-impl",
        value="transformer_engine",
        why="the launches of parts of each layer are recorded once; both phases have one shape. "
        "full_iteration would need the checks for NaN off",
        needs=(NO_FULL_RECOMPUTE,),
    ),
    Setting(
        key="cuda-graph-modules",
        value=["attn", "mlp"],
        why="the whole dense layer",
        needs=(GRAPHS, DENSE),
    ),
    Setting(
        key="cuda-graph-modules",
        value=["moe_router", "moe_preprocess"],
        why="without Apex delayed weight gradients have no fixed address, which graphs of "
        "attention need; what comes after routing has no fixed shape",
        needs=(GRAPHS, EXPERTS),
    ),
    Setting(
        key="cuda-graph-modules",
        value=["attn", "moe_router", "moe_preprocess"],
        why="as NVIDIA's recipe",
        needs=(GRAPHS, EXPERTS, GRAPHED_ATTENTION),
    ),
    Setting(
        key="te-rng-tracker",
        value=True,
        why="graphs need random numbers that they can replay",
        needs=(GRAPHS,),
    ),
    Setting(
        key="manual-gc",
        value=True,
        why="Python collects garbage on all ranks in the same step, so that none waits for another",
    ),
    Setting(
        key="manual-gc-interval",
        value=100,
        why="as NVIDIA's recipe",
        needs=(is_on("manual-gc"),),
    ),
)
"""On top of ``bf16``."""

MXFP8_SETTINGS = (
    Setting(
        key="fp8-format",
        value="e4m3",
        why="`hybrid` takes E5M2 for gradients, with which MXFP8 diverges (Megatron-Bridge#638)",
    ),
    Setting(key="fp8-recipe", value="mxfp8", why="one scale for 32 numbers, in hardware on B200"),
    Setting(
        key="fp8-param-gather",
        value=True,
        why="parameters are gathered in 8 bits; without it MXFP8 keeps two copies",
        needs=(MXFP8,),
    ),
    Setting(
        key="reuse-grad-buf-for-mxfp8-param-ag",
        value=True,
        why="the buffer of gradients holds the gathered parameters",
        needs=(MXFP8, is_on("fp8-param-gather")),
    ),
    Setting(
        key="moe-flex-dispatcher-num-sms",
        value=64,
        why="NVIDIA's optimum for MXFP8 on B200",
        needs=(HYBRID_EP,),
    ),
)
"""On top of ``tuned``, for B200."""

FP8_SETTINGS = (
    Setting(
        key="fp8-format",
        value="e4m3",
        why="with a scale for each block gradients fit E4M3, which is finer by a bit than E5M2",
    ),
    Setting(
        key="fp8-recipe",
        value="blockwise",
        why="one outlier costs its block of 128 alone, and with current scaling (`tensorwise`) its "
        "whole tensor, for which recipes keep the first and last layer in BF16. As fast as BF16 "
        "in the one published figure (242.9 against 240.5 TFLOP/s on H100), so measure first",
    ),
)
"""On top of ``tuned``, for Hopper."""

CHAINS: Mapping[str, tuple[tuple[Setting, ...], ...]] = {
    "bf16": (BF16,),
    "tuned": (BF16, TUNED),
    "mxfp8": (BF16, TUNED, MXFP8_SETTINGS),
    "fp8": (BF16, TUNED, FP8_SETTINGS),
    "cpu": (CPU,),
}
"""The settings of a profile, later ones over earlier ones."""


def given_by(profile: str | None, recipe: Mapping[str, Any], flags: Flags) -> dict[str, Any]:
    """What a profile adds to a recipe: its settings that the recipe does not decide itself.

    Args:
        profile: None adds nothing.
        recipe: the recipe's own keys and overrides.
        flags: Megatron's parser, by which two spellings of one flag are known.
    """
    if profile is None:
        return {}
    decided = {flags.destination(key) for key, value in recipe.items() if value is not None}
    given: dict[str, Any] = {}
    for setting in itertools.chain(*CHAINS[profile]):
        value = functools.partial(flags.value, {**given, **recipe})
        if setting.is_wanted(value) and flags.destination(setting.key) not in decided:
            given[setting.key] = setting.value
    return given


def keys() -> frozenset[str]:
    """Every key that a profile may give."""
    return frozenset(s.key for chain in CHAINS.values() for s in itertools.chain(*chain))
