"""List the environment variables that belong to a profile, each with its reason.

CUDA, NCCL and Transformer Engine read them when they start, so a running rank cannot set them.
Whatever starts the ranks must set them: ``check --environment`` prints them, and ``train`` says
which are missing. They are part of a recipe, since a published one ran out of memory without them
(Megatron-Bridge#4587). None of them decides a number of the run. They are untested on hardware, as
the profiles are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from tst_megatron.recipe.conditions import (
    Need,
    Setting,
    all_of,
    any_of,
    is_off,
    is_on,
    is_split_by,
    needs,
)
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.profile_settings import GRAPHS, HYBRID_EP
from tst_megatron.recipe.profiles import GPU_PROFILES

EXPERTS_OVERLAP = needs("overlap-moe-expert-parallel-comm")
SPLIT_WITHOUT_OVERLAP = Need(
    "tensor or context parallelism without `overlap-moe-expert-parallel-comm`",
    all_of(
        any_of(is_split_by("tensor-model-parallel-size"), is_split_by("context-parallel-size")),
        is_off("overlap-moe-expert-parallel-comm"),
    ),
)
OVERLAP = Need(
    "`overlap-grad-reduce` or `overlap-moe-expert-parallel-comm`",
    any_of(is_on("overlap-grad-reduce"), is_on("overlap-moe-expert-parallel-comm")),
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
    """Return the variables with which the ranks of a recipe must be started.

    Args:
        profile: only GPU profiles have variables.
        values: Megatron's keys of the run, those of the profile included.
        flags: Megatron's parser, by which two spellings of one flag are known.
    """
    if profile not in GPU_PROFILES:
        return {}
    value = functools.partial(flags.value, values)
    return {variable.key: variable.value for variable in VARIABLES if variable.is_wanted(value)}


def differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """List what differs in a rank's own environment, a line each."""
    return [
        f"{name} is {found[name] if name in found else 'not set'} in the environment, and the "
        f"profile wants {value}: no number changes, throughput may"
        for name, value in wanted.items()
        if found.get(name) != value
    ]


def strange_values(found: Mapping[str, str]) -> dict[str, list[str]]:
    """Return variables whose value no recipe wants, each with the values that recipes want."""
    wanted: dict[str, list[str]] = {}
    for variable in VARIABLES:
        wanted.setdefault(variable.key, []).append(variable.value)
    return {
        name: values
        for name, values in wanted.items()
        if name in found and found[name] not in values
    }
