"""One training step of a small model through Megatron's own schedules, without its training loop.

Several steps of one process share its process group; each may have another layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch


def start(recipe: dict[str, Any]) -> Any:
    """Initialise Megatron for a recipe, also where another layout was initialised before."""
    from tst_megatron.megatron.cpu import host

    host.install()
    from megatron.core import parallel_state
    from megatron.core.rerun_state_machine import destroy_rerun_state_machine
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
    from megatron.training import global_vars
    from megatron.training.initialize import initialize_megatron

    from tst_megatron.megatron import arguments
    from tst_megatron.recipe.keys.flags import Flags

    global_vars.unset_global_variables()
    destroy_rerun_state_machine()
    destroy_groups()
    parallel_state.destroy_model_parallel()
    get_cuda_rng_tracker().reset()
    flags, problems = Flags(arguments.argument_parser()).convert({**recipe, **host.ARGUMENTS})
    assert not problems, problems
    args = arguments.parse_arguments(flags)
    initialize_megatron(allow_no_cuda=True)
    args.curr_iteration = 0
    return args


def destroy_groups() -> None:
    """End the process groups of the layout before, which hold sockets and threads."""
    from torch.distributed import distributed_c10d

    whole = torch.distributed.group.WORLD
    for group in list(distributed_c10d._world.pg_map):
        if group is not whole:
            torch.distributed.destroy_process_group(group)


def build(args: Any, *, seed: int = 1) -> list[Any]:
    """Build this rank's model chunks as ``megatron.training`` does, DDP and overlaps included."""
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel.random import (
        get_cuda_rng_tracker,
        model_parallel_cuda_manual_seed,
    )
    from megatron.training.training import get_megatron_ddp_config

    from tst_megatron.megatron import names
    from tst_megatron.megatron.single_step import make_ready_for_steps
    from tst_megatron.model.gpt import TSTGPTModelConfig

    torch.manual_seed(seed)
    get_cuda_rng_tracker().reset()
    model_parallel_cuda_manual_seed(seed)
    config = names.gpt_config_from_args(args, model_config_cls=TSTGPTModelConfig)
    models = config.get_builder_cls()(config).build_distributed_models(
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
        ddp_config=get_megatron_ddp_config(args),
    )
    make_ready_for_steps(args, models)
    return models


def forward_backward(
    args: Any, models: Sequence[Any], schedule: Any, iterators: Sequence[Iterator[Any] | None]
) -> list[dict[str, Any]]:
    """Run the micro-batches of this rank forward and backward, and reduce the gradients.

    Args:
        args: what ``start`` gave.
        models: this rank's chunks.
        schedule: its first step is the one that is run.
        iterators: one for each chunk.

    Returns:
        The reports of the micro-batches; none on a rank without the last pipeline stage.
    """
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from tst_megatron.training.step import make_forward_step

    for model in models:
        model.train()
        model.zero_grad_buffer()
    step = get_forward_backward_func()
    reports = step(
        forward_step_func=make_forward_step(schedule),
        data_iterator=list(iterators) if len(models) > 1 else iterators[0],
        model=list(models),
        num_microbatches=args.global_batch_size // args.data_parallel_size // args.micro_batch_size,
        seq_length=args.seq_length,
        micro_batch_size=args.micro_batch_size,
        forward_only=False,
    )
    return [{name: value.tolist() for name, value in report.items()} for report in reports]
