"""Build any rank of a job of any size without values, and count the bytes that it would hold.

The rank is built as a start builds it (``megatron/setup_without_values.py``), in a forked process,
in two or three seconds for a job of 512 GPUs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

from tst_megatron.megatron import setup_without_values
from tst_megatron.megatron.cpu.transformer_engine import transformer_engine_of_the_job
from tst_megatron.model.gpt import TSTGPTModelConfig
from tst_megatron.plan.memory.states import States, count_states, moments_of_first_step, of_the_job
from tst_megatron.recipe.check.megatron_arguments import reason_of
from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.recipe.tst_config import TSTConfig
from tst_megatron.system.processes.forked import answer_of_fork

SECONDS = 120.0


def states_of_rank(args: argparse.Namespace, tst: TSTConfig, rank: int) -> States:
    """Return the bytes that a rank of a job would hold between steps.

    Args:
        args: validated for the job (``recipe/check/megatron_arguments.py``).
        tst: the recipe's block.
        rank: of the ``args.world_size`` ranks.

    Raises:
        RecipeError: the job cannot be built, or not here.
    """
    said = answer_of_fork(
        lambda: _count(args, tst, rank),
        of_error=lambda error: json.dumps({"error": reason_of(error)}),
        seconds=SECONDS,
    )
    if not said:
        how = f"took longer than {SECONDS:.0f} s" if said is None else "was killed"
        raise RecipeError([f"memory: rank {rank} could not be built here: building it {how}"])
    found = json.loads(said)
    if "error" in found:
        raise RecipeError([f"memory: rank {rank} could not be built: {found['error']}"])
    return States(**found)


def rank_of_stage(args: argparse.Namespace, stage: int) -> int:
    """Return the first rank of a pipeline stage: Megatron numbers the stages last.

    All ranks of a stage hold the same, but for the gaps that align weights in their buffers, some
    of which fall into one rank's shard and some into another's.
    """
    return int(stage * (args.world_size // args.pipeline_model_parallel_size))


def _count(args: argparse.Namespace, tst: TSTConfig, rank: int) -> str:
    setup_without_values.do_without_values()
    plain = setup_without_values.plain_arguments(args)
    with transformer_engine_of_the_job():
        model_config = TSTGPTModelConfig.from_arguments(plain, tst)
    models, optimizer = setup_without_values.set_up(plain, model_config, of=args, rank=rank)
    moments_of_first_step(optimizer)
    states = of_the_job(count_states(models, optimizer), args, models)
    return json.dumps(dataclasses.asdict(states))
