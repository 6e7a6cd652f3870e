"""Build model, data parallelism, optimizer and schedule of a job on torch's meta device.

A forked process runs this and ends, so that nothing of it stays in the process that asks.
"""

from __future__ import annotations

import argparse

from tst_megatron.megatron import setup_without_values
from tst_megatron.megatron.cpu.transformer_engine import transformer_engine_of_the_job
from tst_megatron.model.gpt import TSTGPTModelConfig
from tst_megatron.recipe.check.megatron_arguments import reason_of
from tst_megatron.recipe.tst_config import TSTConfig
from tst_megatron.training.check.words import FINE, MISSING, REFUSED


def _stage_problem(layers: list[int], num_layers: int) -> str | None:
    """Return what is wrong with pipeline stages that do not hold all layers together, or None."""
    shares = "+".join(map(str, layers))
    if not layers or (sum(layers) == num_layers and min(layers) >= 0):
        return None
    return (
        f"pipeline-model-parallel-size: the {len(layers)} stages would get {shares} layers, and "
        f"num-layers is {num_layers}. Change the layers of the first or the last stage, or the "
        "layout"
    )


def build(args: argparse.Namespace, tst: TSTConfig) -> str:
    """Build what a start of this job builds, and return one of the words, with the reason.

    Args:
        args: validated for the job.
        tst: the recipe's block.
    """
    setup_without_values.do_without_values()
    plain = setup_without_values.plain_arguments(args)
    with transformer_engine_of_the_job():
        model_config = TSTGPTModelConfig.from_arguments(plain, tst)
    if problem := _stage_problem(setup_without_values.layers_of_stages(args), args.num_layers):
        return f"{REFUSED} {problem}"
    try:
        setup_without_values.set_up(plain, model_config, of=args)
    except ImportError as error:
        # The job's environment may be another; what is missing here is said by rules/packages.py.
        return f"{MISSING} {reason_of(error)}"
    return FINE
