"""What a step needs is foretold from layers measured alone, on shapes that none was measured on."""

import functools

import pytest
from processes import run_ranks
from real_activations import RECIPE, peaks

from tst_megatron.megatron.cpu.arguments import ARGUMENTS
from tst_megatron.plan.memory.activations import activations_of
from tst_megatron.plan.memory.dry_rank import dry_rank
from tst_megatron.plan.memory.job import measured_layers
from tst_megatron.recipe.check.megatron_arguments import ask_megatron
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.recipe.tst_config import TSTConfig

pytestmark = pytest.mark.usefixtures("outside_a_job")

DENSE = {key: value for key, value in RECIPE.items() if "moe" not in key and key != "num-experts"}
MODELS = {
    "dense": DENSE,
    "dense and MoE": {**RECIPE, "moe-layer-freq": "[0,1,1]"},
    "MoE, bf16": {**RECIPE, "bf16": True},
}
RECOMPUTE = {
    "nothing twice": {},
    "attention twice": {"recompute-granularity": "selective"},
    "all twice": {
        "recompute-granularity": "full",
        "recompute-method": "uniform",
        "recompute-num-layers": 1,
    },
}
SHAPES = (
    {"num-layers": 3, "seq-length": 96, "micro-batch-size": 3},
    {"num-layers": 3, "seq-length": 224, "micro-batch-size": 1},
)
CASES = [
    (name, recompute, number, bag_size)
    for name in MODELS
    for recompute in RECOMPUTE
    for number in range(len(SHAPES))
    for bag_size in (1, 8)
]


def recipe(name, recompute, number):
    shape = SHAPES[number]
    return {
        **MODELS[name],
        **RECOMPUTE[recompute],
        **shape,
        "max-position-embeddings": shape["seq-length"],
        "global-batch-size": 2 * shape["micro-batch-size"],
    }


@pytest.fixture(scope="module")
def real():
    """The most that a step of each case allocates."""
    wanted = [(recipe(*case[:3]), case[3]) for case in CASES]
    (found,) = run_ranks(peaks, 1, wanted, preload="preloaded")
    return dict(zip(CASES, found, strict=True))


def arguments(keys):
    flags, problems = Flags(argument_parser()).convert({**keys, **ARGUMENTS})
    assert not problems
    return ask_megatron(flags, 1)


@functools.cache
def measured(name, recompute, number):
    return measured_layers(arguments(recipe(name, recompute, number)), TSTConfig(), [1, 8])


@functools.cache
def chunks(name):
    return dry_rank(arguments(recipe(name, "nothing twice", 0)), TSTConfig(), 0).chunks


@pytest.mark.parametrize("case", CASES, ids=lambda case: ", ".join(map(str, case)))
def test_peak_of_a_step_is_foretold_within_a_tenth(real, case):
    *of_recipe, bag_size = case
    foretold = activations_of(
        arguments(recipe(*of_recipe)),
        chunks(of_recipe[0]),
        measured(*of_recipe),
        stage=0,
        bag_size=bag_size,
        imbalance=1.25,
    )
    assert foretold.total == pytest.approx(real[case], rel=0.1)
