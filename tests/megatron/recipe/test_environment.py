"""The variables of a profile follow the flags they serve, as Megatron's own parser has them."""

import os
import subprocess
import sys

import pytest

from tst_megatron.megatron import arguments
from tst_megatron.recipe.environment import VARIABLES, differences, environment_of
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.profiles import GPU_PROFILES, given_by

EXPERTS = {"num-experts": 8, "expert-model-parallel-size": 8}


@pytest.fixture(scope="module")
def flags():
    return Flags(arguments.argument_parser())


def variables(flags, profile, **recipe):
    recipe = {name.replace("_", "-"): value for name, value in recipe.items()}
    return environment_of(profile, {**given_by(profile, recipe, flags), **recipe}, flags)


def test_tuned_experts_have_what_their_overlap_and_their_dispatcher_need(flags):
    found = variables(flags, "tuned", **EXPERTS)
    assert found["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"
    assert found["NVLINK_DOMAIN_SIZE"] == found["NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN"] == "8"
    assert found["USE_MNNVL"] == "0"
    assert found["NCCL_GRAPH_REGISTER"] == "0"
    assert found["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"


def test_what_is_switched_off_takes_its_variables_along(flags):
    off = {"moe-token-dispatcher-type": "alltoall", "overlap-moe-expert-parallel-comm": False}
    found = variables(flags, "tuned", **EXPERTS, **off)
    assert not {"CUDA_DEVICE_MAX_CONNECTIONS", "NVLINK_DOMAIN_SIZE", "USE_MNNVL"} & set(found)
    assert "NCCL_GRAPH_REGISTER" not in variables(flags, "bf16", **EXPERTS)


def test_tensor_parallel_launches_keep_their_order(flags):
    assert (
        variables(flags, "bf16", tensor_model_parallel_size=2)["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    )
    assert variables(flags, "bf16", context_parallel_size=2)["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"


def test_cpu_and_no_profile_have_none(flags):
    assert variables(flags, "cpu", **EXPERTS) == variables(flags, None, **EXPERTS) == {}


def test_every_variable_is_of_some_profile(flags):
    both = ({}, EXPERTS, {"tensor-model-parallel-size": 2})
    found = {name for p in GPU_PROFILES for r in both for name in variables(flags, p, **r)}
    assert found == {variable.key for variable in VARIABLES}


def test_differences_say_what_is_and_what_should_be():
    wanted = {"A": "1", "B": "2", "C": "3"}
    first, second = differences(wanted, {"A": "1", "B": "5"})
    assert "B is 5" in first and "wants 2" in first
    assert "C is not set" in second


def test_check_shows_and_writes_them(short_recipe, tmp_path):
    path = tmp_path / "environment"
    arguments = ["check", str(short_recipe("environment")), "--environment", str(path)]
    subprocess.run(
        [sys.executable, "-m", "tst_megatron", *arguments],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert path.read_text() == "", "the CPU needs none"
