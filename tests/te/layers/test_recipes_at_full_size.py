"""Every shipped recipe with every GPU profile, built of Transformer Engine's own layers."""

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys

import pytest
import recipes
import te_host

te_host.skip_without_transformer_engine()

from tst_megatron.megatron import names, setup_without_values
from tst_megatron.megatron.cpu import host
from tst_megatron.model.embedding import BagEmbedding
from tst_megatron.model.gpt import TSTGPTModel, TSTGPTModelConfig
from tst_megatron.recipe.profiles import GPU_PROFILES
from tst_megatron.recipe.tst_config import TSTConfig
from tst_megatron.training.check.rehearse import rehearse_start

NOT_HERE = {
    "gradient_accumulation_fusion": "Apex's extension",
    "moe_token_dispatcher_type": "DeepEP",
    "moe_enable_deepep": "DeepEP",
    "fp8_param_gather": "parameters in FP8 are quantised by a kernel when they are built",
    "reuse_grad_buf_for_mxfp8_param_ag": "the same",
}
"""Arguments that even building needs a GPU for -> why. All others are the job's."""


@pytest.fixture(scope="module")
def without() -> dict:
    """What ``recipes.py`` prints: the same recipes where Transformer Engine is hidden."""
    words = [sys.executable, recipes.__file__]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def in_a_fork(build) -> dict:
    """What a function returns, which leaves the job of its process and all that it built behind."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        said = {"error": "ended without a word"}
        try:
            host.install_without_values()
            with contextlib.redirect_stdout(None):
                said = build()
        except BaseException as error:
            said = {"error": f"{type(error).__name__}: {error}"}
        finally:
            os.write(writing, json.dumps(said).encode())
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        said = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert "error" not in said, said["error"]
    return said


def built(args: argparse.Namespace, of: argparse.Namespace, tst: TSTConfig) -> dict:
    """Build model, data parallelism and optimizer of the first rank, and describe them."""
    models = []
    setup = names.training.setup_model_and_optimizer

    def keep(*positional, **named):
        made = setup(*positional, **named)
        models.extend(made[0])
        return made

    names.training.setup_model_and_optimizer = keep
    setup_without_values.set_up(args, TSTGPTModelConfig.from_arguments(args, tst), of=of)
    modules = [module for model in models for module in model.modules()]
    kinds = {type(module).__module__ for module in modules}
    return {
        "parameters": sum(value.numel() for model in models for value in model.parameters()),
        "is_tst": any(isinstance(module, TSTGPTModel) for module in modules),
        "has_bags": any(isinstance(module, BagEmbedding) for module in modules),
        "is_te": any(kind.startswith("transformer_engine.") for kind in kinds)
        or any(kind == "megatron.core.extensions.transformer_engine" for kind in kinds),
        "classes": sorted({type(module).__name__ for module in modules}),
        "is_meta": all(value.is_meta for model in models for value in model.parameters()),
    }


def of_transformer_engine(args: argparse.Namespace, tst: TSTConfig) -> dict:
    ours = setup_without_values.plain_arguments(args)
    for name in setup_without_values.NOT_ON_META:
        if name not in NOT_HERE:
            setattr(ours, name, getattr(args, name))
    ours.context_parallel_size = args.context_parallel_size
    return built(ours, args, tst)


@pytest.mark.parametrize("profile", GPU_PROFILES)
@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_a_recipe_is_built_of_transformer_engines_layers(recipe, profile, without, outside_a_job):
    args, tst = recipes.for_the_job(recipe, profile)
    assert args.transformer_impl == "transformer_engine"
    found = in_a_fork(functools.partial(of_transformer_engine, args, tst))
    assert found["is_te"] and found["is_tst"] and found["has_bags"] and found["is_meta"]
    assert args.tensor_model_parallel_size == args.pipeline_model_parallel_size == 1
    parts = dict(without[recipe]["parts"])
    experts = parts.pop("experts", 0)
    assert found["parameters"] == sum(parts.values()) + experts // args.expert_model_parallel_size
    grouped = "TEColumnParallelGroupedLinear" in found["classes"]
    assert grouped == bool(args.num_experts)


@pytest.mark.parametrize("profile", GPU_PROFILES)
@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_stand_ins_answer_validation_as_transformer_engine_does(
    recipe, profile, without, outside_a_job
):
    args, _ = recipes.for_the_job(recipe, profile)
    assert recipes.spelled(args) == without[recipe][profile]


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_a_start_is_rehearsed_beside_transformer_engine(recipe, outside_a_job):
    """As on a machine with a GPU, where it is not hidden."""
    args, tst = recipes.for_the_job(recipe, "bf16")
    assert rehearse_start(args, tst, is_exact=False) == ([], [])
