"""Build any rank of a job of any size without values, and count the bytes that it would hold.

The rank is built as a start builds it (``megatron/setup_without_values.py``), in a forked process,
in two or three seconds for a job of 512 GPUs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tst_megatron.megatron import setup_without_values
from tst_megatron.megatron.cpu.transformer_engine import transformer_engine_of_the_job
from tst_megatron.model.gpt import TSTGPTModelConfig
from tst_megatron.plan.memory.forks import built
from tst_megatron.plan.memory.states import States, count_states, moments_of_first_step, of_the_job
from tst_megatron.recipe.tst_config import TSTConfig

SECONDS = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A part of the model that a rank runs at once: a pipeline stage, or a virtual one."""

    layers: tuple[str, ...]
    """Their kinds, ``dense`` or ``moe``."""
    has_embedding: bool
    has_loss: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRank:
    """What a rank of a job is made of."""

    rank: int
    states: States
    chunks: tuple[Chunk, ...]


def dry_rank(args: argparse.Namespace, tst: TSTConfig, rank: int) -> DryRank:
    """Build a rank of a job without values, and tell what it holds between steps.

    Args:
        args: validated for the job (``recipe/check/megatron_arguments.py``).
        tst: the recipe's block.
        rank: of the ``args.world_size`` ranks.

    Raises:
        RecipeError: the job cannot be built, or not here.
    """
    said = built(
        lambda: _count(args, tst, rank),
        failed=f"rank {rank} could not be built",
        doing="building it",
        seconds=SECONDS,
    )
    found = json.loads(said)
    chunks = (Chunk(**{**each, "layers": tuple(each["layers"])}) for each in found["chunks"])
    return DryRank(rank=rank, states=States(**found["states"]), chunks=tuple(chunks))


def rank_of_stage(args: argparse.Namespace, stage: int) -> int:
    """Return the first rank of a pipeline stage: Megatron numbers the stages last.

    All ranks of a stage hold the same, but for the gaps that align weights in their buffers, some
    of which fall into one rank's shard and some into another's.
    """
    return int(stage * (args.world_size // args.pipeline_model_parallel_size))


def _count(args: argparse.Namespace, tst: TSTConfig, rank: int) -> str:
    setup_without_values.do_without_values()
    plain = setup_without_values.plain_arguments(args)
    # What is computed twice is built once, and some of it has no plain form.
    plain.recompute_granularity = plain.recompute_modules = None
    plain.recompute_method = plain.recompute_num_layers = None
    with transformer_engine_of_the_job():
        model_config = TSTGPTModelConfig.from_arguments(plain, tst)
    models, optimizer = setup_without_values.set_up(plain, model_config, of=args, rank=rank)
    moments_of_first_step(optimizer)
    states = of_the_job(count_states(models, optimizer), args, models)
    return json.dumps({"states": dataclasses.asdict(states), "chunks": _chunks(models)})


def _chunks(models: Sequence[Any]) -> list[dict[str, Any]]:
    chunks = []
    for model in models:
        while hasattr(model, "module"):
            model = model.module
        chunks.append(
            {
                "layers": [
                    "moe" if each.is_moe_layer else "dense" for each in model.decoder.layers
                ],
                "has_embedding": bool(model.pre_process),
                "has_loss": bool(model.post_process),
            }
        )
    return chunks
