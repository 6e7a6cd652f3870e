"""Environment variables that belong to a profile, each with its reason; set before a rank starts.

CUDA, NCCL and Transformer Engine read them when they start, so a running rank cannot set them:
whoever starts ranks does (``check --environment``), and ``train`` says which are missing. They are
part of a recipe: a published one ran out of memory without them (Megatron-Bridge#4587).
None of them decides a number of the run. Untested on hardware, as the profiles are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.profiles import (
    GPU_PROFILES,
    GRAPHS,
    HYBRID_EP,
    Need,
    Setting,
    Values,
    is_on,
)


def _is_split(value: Values) -> bool:
    sizes = (value("tensor-model-parallel-size"), value("context-parallel-size"))
    return any(size not in (None, 1) for size in sizes)


EXPERTS_OVERLAP = is_on("overlap-moe-expert-parallel-comm")
SPLIT_WITHOUT_OVERLAP = Need(
    text="tensor or context parallelism without `overlap-moe-expert-parallel-comm`",
    holds=lambda value: _is_split(value) and not value("overlap-moe-expert-parallel-comm"),
)
OVERLAP = Need(
    text="`overlap-grad-reduce` or `overlap-moe-expert-parallel-comm`",
    holds=lambda value: bool(
        value("overlap-grad-reduce") or value("overlap-moe-expert-parallel-comm")
    ),
)

VARIABLES = (
    Setting(
        key="CUDA_DEVICE_MAX_CONNECTIONS",
        value="32",
        why="streams for the exchange between experts beside computation; as NVIDIA's recipe",
        needs=(EXPERTS_OVERLAP,),
    ),
    Setting(
        key="CUDA_DEVICE_MAX_CONNECTIONS",
        value="1",
        why="below Blackwell Megatron wants the order of launches kept, and refuses to start else",
        needs=(SPLIT_WITHOUT_OVERLAP,),
    ),
    Setting(
        key="PYTORCH_CUDA_ALLOC_CONF",
        value="expandable_segments:True",
        why="less fragmented memory, where micro-batches route different numbers of positions",
    ),
    Setting(
        key="NCCL_GRAPH_REGISTER",
        value="0",
        why="NCCL cannot register the expandable segments that a graph uses",
        needs=(GRAPHS,),
    ),
    Setting(
        key="TORCH_NCCL_HIGH_PRIORITY",
        value="1",
        why="collectives are not queued behind kernels that compute; as NVIDIA's recipe",
    ),
    Setting(
        key="NVTE_FWD_LAYERNORM_SM_MARGIN",
        value="20",
        why="leaves multiprocessors to collectives that overlap; as NVIDIA's recipe",
        needs=(OVERLAP,),
    ),
    Setting(
        key="NVTE_BWD_LAYERNORM_SM_MARGIN",
        value="20",
        why="the same in the backward pass",
        needs=(OVERLAP,),
    ),
    Setting(
        key="NVLINK_DOMAIN_SIZE",
        value="8",
        why="GPUs that NVLink joins in a node with 8; GB200 racks have 72",
        needs=(HYBRID_EP,),
    ),
    Setting(
        key="NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN",
        value="8",
        why="the same, in HybridEP's own words",
        needs=(HYBRID_EP,),
    ),
    Setting(
        key="USE_MNNVL",
        value="0",
        why="NVLink ends at the node",
        needs=(HYBRID_EP,),
    ),
)


def environment_of(profile: str | None, values: Mapping[str, Any], flags: Flags) -> dict[str, str]:
    """The variables that ranks of a recipe are to be started with.

    Args:
        profile: those of the GPU profiles have any.
        values: Megatron's keys as the run has them, the profile's among them.
        flags: Megatron's parser, by which two spellings of one flag are known.
    """
    if profile not in GPU_PROFILES:
        return {}
    value = functools.partial(flags.value, values)
    return {variable.key: variable.value for variable in VARIABLES if variable.is_wanted(value)}


def differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """What a rank's own environment lacks, a line each."""
    return [
        f"{name} is {found[name] if name in found else 'not set'} in the environment, and the "
        f"profile wants {value}: no number changes, throughput may"
        for name, value in wanted.items()
        if found.get(name) != value
    ]


def strange_values(found: Mapping[str, str]) -> dict[str, list[str]]:
    """Variables that are set to what no recipe wants, each with the values that recipes want."""
    wanted: dict[str, list[str]] = {}
    for variable in VARIABLES:
        wanted.setdefault(variable.key, []).append(variable.value)
    return {
        name: values
        for name, values in wanted.items()
        if name in found and found[name] not in values
    }
