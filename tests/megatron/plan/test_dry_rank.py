"""A rank that is built without values holds what the same rank of a real job holds, to the byte."""

import pytest
from layouts import (
    EP2,
    OVERLAPS,
    PP2,
    TP2,
    VPP2,
    Layout,
)
from processes import run_ranks
from real_states import real_states, recipe

from tst_megatron.megatron.cpu.arguments import ARGUMENTS
from tst_megatron.plan.memory.dry_rank import states_of_rank
from tst_megatron.recipe.check.megatron_arguments import ask_megatron
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.recipe.tst_config import TSTConfig

PLAIN = {"use-distributed-optimizer": False}
TIED = {"untie-embeddings-and-output-weights": False}
BF16 = {"bf16": True}
LAYOUTS = (
    Layout("DP2", 2, {}),
    Layout("DP2, each rank with the whole optimizer", 2, PLAIN),
    Layout("DP2, bf16", 2, BF16),
    Layout("DP2, bf16, each rank with the whole optimizer", 2, {**BF16, **PLAIN}),
    Layout("DP2, bf16, gradients too", 2, {**BF16, "grad-reduce-in-bf16": True}),
    Layout("DP2, both overlaps", 2, OVERLAPS),
    Layout("TP2", 2, TP2),
    Layout("PP2", 2, PP2),
    Layout("PP2, tied", 2, {**PP2, **TIED}),
    Layout("VPP2", 2, VPP2),
    Layout("EP2", 2, EP2),
    Layout("EP2, dense too", 2, {**EP2, "moe-layer-freq": "[0,1,0,1]"}),
    Layout("EP2, both overlaps", 2, {**EP2, **OVERLAPS, **BF16}),
    Layout("TP2 x PP2", 4, {**TP2, **PP2, **BF16}),
    Layout("TP2 x EP2", 4, {**TP2, **EP2}),
    Layout("VPP2 x EP2, both overlaps", 4, {**VPP2, **EP2, **OVERLAPS}),
    Layout("PP2 x DP2", 4, {**PP2, **BF16}),
)


@pytest.fixture(scope="module")
def real():
    """What every rank of every layout holds, by the layout's name."""
    found = {}
    for num_ranks in (2, 4):
        layouts = [each for each in LAYOUTS if each.num_ranks == num_ranks]
        by_rank = run_ranks(real_states, num_ranks, layouts, preload="preloaded")
        for layout, states in zip(layouts, zip(*by_rank, strict=True), strict=True):
            found[layout.name] = states
    return found


def arguments(layout):
    flags, problems = Flags(argument_parser()).convert({**recipe(layout), **ARGUMENTS})
    assert not problems
    return ask_megatron(flags, layout.num_ranks)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_dry_rank_holds_what_the_rank_of_a_real_job_holds(real, layout):
    args = arguments(layout)
    for rank, expected in enumerate(real[layout.name]):
        states = states_of_rank(args, TSTConfig(), rank)
        parts = ("parameters", "gradients", "main_parameters", "moments")
        assert {part: getattr(states, part) for part in parts} == {
            part: expected[part] for part in parts
        }
        print(layout.name, rank, states, expected)
