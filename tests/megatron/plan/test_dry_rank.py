"""A rank that is built without values holds what the same rank of a real job holds, to the byte."""

import resource
import time
from pathlib import Path

import pytest
from layouts import EP2, OVERLAPS, PP2, TP2, VPP2, Layout
from processes import run_ranks
from real_states import real_states, recipe

from tst_megatron.megatron import setup_without_values
from tst_megatron.megatron.cpu.arguments import ARGUMENTS
from tst_megatron.plan.memory.dry_rank import dry_rank, rank_of_stage
from tst_megatron.recipe.check.megatron_arguments import ask_megatron, fixed_flags
from tst_megatron.recipe.check.plain import check_plainly
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.recipe.tst_config import TSTConfig

PLAIN = {"use-distributed-optimizer": False}
TIED = {"untie-embeddings-and-output-weights": False}
BF16 = {"bf16": True}
pytestmark = pytest.mark.usefixtures("outside_a_job")
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
    Layout("VPP2 x EP2, both overlaps", 4, {**VPP2, **EP2, **OVERLAPS}),
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


PARTS = ("parameters", "gradients", "main_parameters", "moments")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_dry_rank_holds_what_the_rank_of_a_real_job_holds(real, layout):
    args = arguments(layout)
    for rank, expected in enumerate(real[layout.name]):
        states = dry_rank(args, TSTConfig(), rank).states
        assert {part: getattr(states, part) for part in PARTS} == {
            part: expected[part] for part in PARTS
        }
        # What lives beside them are a few numbers per position that Megatron does not let go of.
        rest = expected["all"] - expected["steps"] - states.total
        assert 0 <= rest < 0.04 * states.total


REPOSITORY = Path(__file__).resolve().parents[3]


def shipped(*overrides, world_size):
    recipe = load_recipe(REPOSITORY / "examples/qwen3-10b-a1b/tst.yaml", list(overrides))
    plain = check_plainly(recipe, world_size=world_size, has_text=False)
    return ask_megatron([*plain.flags, *fixed_flags(plain.values, None)], world_size), recipe.tst


def test_states_of_10b_a1b_on_64_gpus_take_14_gigabytes():
    states = dry_rank(*shipped(world_size=64), 0).states
    # 0.825B parameters x (6 + 12/64) and 1.208B of experts x (6 + 12/8).
    assert states.total / 1e9 == pytest.approx(14.2, abs=0.05)


def test_ranks_of_512_take_less_than_a_minute_and_4_gigabytes():
    args, tst = shipped(
        "pipeline-model-parallel-size=8",
        "tensor-model-parallel-size=2",
        "sequence-parallel=true",
        world_size=512,
    )
    before = time.monotonic()
    stages = [dry_rank(args, tst, rank_of_stage(args, stage)).states for stage in range(8)]
    seconds = time.monotonic() - before
    assert seconds < 60
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20  # KiB
    table = 151936 // 2 * 1536
    in_the_middle = {stage.parameters for stage in stages[1:-1]}
    assert len(in_the_middle) == 1
    for end in (stages[0], stages[-1]):
        assert end.parameters == pytest.approx(in_the_middle.pop() + 2 * table, rel=1e-3)
        in_the_middle = {stages[1].parameters}


def test_ranks_of_a_stage_differ_by_the_gaps_in_their_shards_alone():
    args, tst = shipped("pipeline-model-parallel-size=2", world_size=64)
    first = dry_rank(args, tst, rank_of_stage(args, 1)).states
    for rank in (33, 47, 63):
        other = dry_rank(args, tst, rank).states
        assert (other.parameters, other.gradients) == (first.parameters, first.gradients)
        assert other.optimizer == pytest.approx(first.optimizer, rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "copy", "moments"),
    [
        ((), 2, 8),
        (("exp-avg-dtype=bf16", "exp-avg-sq-dtype=bf16"), 2, 4),
        (("main-params-dtype=fp16", "exp-avg-dtype=fp8", "exp-avg-sq-dtype=fp8"), 2, 2),
        (("profile=mxfp8", "gradient-accumulation-fusion=false"), 4, 8),
    ],
    ids=str,
)
def test_moments_and_copies_are_of_the_types_that_the_recipe_asks_for(overrides, copy, moments):
    plain = dry_rank(*shipped(world_size=64), 0).states
    precise = ("use-precision-aware-optimizer=true", *overrides)
    states = dry_rank(*shipped(*precise, world_size=64), 0).states
    assert states.main_parameters == plain.main_parameters // 4 * copy
    assert states.moments == plain.moments // 8 * moments
    assert states.gradients == plain.gradients


def test_weights_in_8_bits_are_beside_those_in_16_or_take_their_place():
    plain = dry_rank(*shipped(world_size=64), 0).states
    beside = dry_rank(*shipped("profile=fp8", world_size=64), 0).states
    assert beside.parameters == plain.parameters
    tables, routers = 2 * 151936 * 1536, 32 * 128 * 1536
    in_8_bits = plain.parameters // 2 - tables - routers
    assert beside.weights_in_8_bits == pytest.approx(2 * in_8_bits, rel=1e-3)
    instead = dry_rank(*shipped("profile=mxfp8", world_size=64), 0).states
    assert instead.weights_in_8_bits == pytest.approx(2 * in_8_bits * 33 / 32, rel=1e-3)
    assert instead.parameters == pytest.approx(2 * (tables + routers), rel=2e-3)


def test_rank_that_cannot_be_built_is_one_clear_error(monkeypatch):
    def fails(*_, **__):
        raise ValueError("no such layer")

    monkeypatch.setattr(setup_without_values, "set_up", fails)
    with pytest.raises(RecipeError) as caught:
        dry_rank(*shipped(world_size=64), 3)
    assert caught.value.problems == ("memory: rank 3 could not be built: no such layer",)
