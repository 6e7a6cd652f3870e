"""List the settings of every profile, each with its reason and with the needs that it has.

To add a setting, add a row to the profile that should give it. `docs/profiles.md` shows the rows as
tables; ``tools/update_readme.py`` writes them.
"""

from __future__ import annotations

from tst_megatron.recipe.conditions import (
    Need,
    Setting,
    all_of,
    any_of,
    differs,
    equals,
    is_off,
    is_on,
    is_split_by,
    needs,
)

EXPERTS = needs("num-experts")
DENSE = Need("no `num-experts`", is_off("num-experts"))
EXPERT_PARALLEL = Need(
    "`expert-model-parallel-size` above 1",
    all_of(is_on("num-experts"), is_split_by("expert-model-parallel-size")),
)
FLEX = Need("`moe-token-dispatcher-type: flex`", equals("moe-token-dispatcher-type", "flex"))
HYBRID_EP = Need(
    "HybridEP as the dispatcher",
    all_of(
        equals("moe-token-dispatcher-type", "flex"),
        equals("moe-flex-dispatcher-backend", "hybridep"),
    ),
)
ONE_CHUNK = Need(
    "one pipeline stage, or virtual ones",
    any_of(
        equals("pipeline-model-parallel-size", 1),
        is_on("num-virtual-stages-per-pipeline-rank"),
        is_on("num-layers-per-virtual-pipeline-stage"),
        is_on("pipeline-model-parallel-layout"),
    ),
)
NO_SHARED_OVERLAP = Need("no `moe-shared-expert-overlap`", is_off("moe-shared-expert-overlap"))
SHARED_EXPERTS_WITH_APEX = Need(
    "Apex or no shared experts",
    any_of(
        is_on("gradient-accumulation-fusion"),
        is_off("moe-shared-expert-intermediate-size"),
    ),
)
NO_FULL_RECOMPUTE = Need("no full recompute", differs("recompute-granularity", "full"))
GRAPHS = Need(
    "`cuda-graph-impl: transformer_engine`", equals("cuda-graph-impl", "transformer_engine")
)
GRAPHED_ATTENTION = Need(
    "Apex (`gradient-accumulation-fusion`), or no delayed weight gradients beside "
    "`overlap-grad-reduce`",
    any_of(
        is_on("gradient-accumulation-fusion"),
        is_off("delay-wgrad-compute"),
        is_off("overlap-grad-reduce"),
    ),
)
MXFP8 = Need("`fp8-recipe: mxfp8`", equals("fp8-recipe", "mxfp8"))

CPU = (
    Setting(
        key="moe-token-dispatcher-type",
        value="alltoall",
        why="the dispatcher of `bf16`; Megatron's default, allgather, is another code path",
        needs=(EXPERTS,),
    ),
)
"""What the CPU host leaves to the recipe. What it forces is in ``megatron/cpu/arguments.py``."""

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
        why="gradients are summed over ranks while the backward pass runs",
    ),
    Setting(
        key="overlap-param-gather",
        value=True,
        why="parameters are gathered while the forward pass runs",
        needs=(needs("overlap-grad-reduce"), needs("use-distributed-optimizer")),
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
"""The default: no package beside Transformer Engine, and no graphs."""

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
        needs=(needs("cross-entropy-loss-fusion"),),
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
        needs=(needs("overlap-moe-expert-parallel-comm"), SHARED_EXPERTS_WITH_APEX),
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
        why="the complete dense layer",
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
        needs=(needs("manual-gc"),),
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
        needs=(MXFP8, needs("fp8-param-gather")),
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
        "entire tensor, for which recipes keep the first and last layer in BF16. As fast as BF16 "
        "in the one published figure (242.9 against 240.5 TFLOP/s on H100), so measure first",
    ),
)
"""On top of ``tuned``, for Hopper."""
