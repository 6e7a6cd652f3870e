"""Build all that a start builds before its first step, for a job of any size, in one process.

Process groups are torch's fakes, whose collectives do nothing, and tensors are on the meta device
(``host.install_without_values``). So this takes one or two seconds for a job of 64 GPUs, and runs
the code that a start of that job runs.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import resource
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.num_microbatches_calculator import (
    destroy_num_microbatches_calculator,
    init_num_microbatches_calculator,
)
from megatron.core.transformer.transformer_block import get_num_layers_to_build

from tst_megatron.megatron import names
from tst_megatron.megatron.cpu import host
from tst_megatron.megatron.cpu.transformer_engine import transformer_engine_of_the_job
from tst_megatron.megatron.distributed_checkpoint.reading import read_checked

# Megatron's setup loads a checkpoint if its arguments name one. Nothing in it may run.
read_checked()

NOT_ON_META: Mapping[str, Any] = {
    "transformer_impl": "local",
    "no_persist_layer_norm": True,
    "masked_softmax_fusion": False,
    "bias_dropout_fusion": False,
    "bias_swiglu_fusion": False,
    "apply_rope_fusion": False,
    "gradient_accumulation_fusion": False,
    "moe_grouped_gemm": False,
    "moe_permute_fusion": False,
    "moe_router_fusion": False,
    "moe_token_dispatcher_type": "alltoall",
    "moe_enable_deepep": False,
    "moe_shared_expert_overlap": False,
    "overlap_moe_expert_parallel_comm": False,
    "delay_wgrad_compute": False,
    "fp8": None,
    "fp8_param_gather": False,
    "reuse_grad_buf_for_mxfp8_param_ag": False,
    "fp4": None,
    "fp4_param_gather": False,
    "tp_comm_overlap": False,
    "cuda_graph_impl": "none",
    "cuda_graph_modules": [],
    "use_precision_aware_optimizer": False,
    "use_transformer_engine_op_fuser": False,
    "cross_entropy_loss_fusion": False,
    "record_memory_history": False,
}
"""Arguments that need a GPU or Transformer Engine, with the plain way to build the same."""


MOST_MEMORY = 16 * 2**30
"""Bytes of address space beyond what the process has: objects of a model, no values."""


def do_without_values() -> None:
    """Let this forked process build models, and do nothing else until it ends."""
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, used + MOST_MEMORY))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    host.install_without_values()


def set_up(
    args: argparse.Namespace, model_config: Any, *, of: argparse.Namespace, rank: int = 0
) -> tuple[list[Any], Any]:
    """Build model, data parallelism, optimizer and schedule as a rank of a job does.

    The job that this process belonged to is forgotten, so call it in a forked process.

    Args:
        args: ``plain_arguments`` of those of the job.
        model_config: makes the model from them.
        of: the job's own arguments, for its groups of ranks.
        rank: whose share of the model is built.

    Returns:
        (the rank's model chunks, its optimizer).

    Raises:
        Exception: whatever Megatron raises in building them.
    """
    forget_the_job()
    fake_groups(of, rank)
    names.global_vars.set_args(args)
    names.global_vars._set_timers(args)
    init_num_microbatches_calculator(
        0, None, args.global_batch_size, args.micro_batch_size, args.data_parallel_size, False
    )
    with torch.device("meta"), transformer_engine_of_the_job():
        models, optimizer, _ = names.training.setup_model_and_optimizer(
            names.ModelType.encoder_or_decoder,
            cfg_container=names.pretrain_cfg_container_from_args(args, model_config),
            pg_collection=names.ProcessGroupCollection.use_mpu_process_groups(),
        )
    return models, optimizer


def plain_arguments(args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments of the same model, optimizer and schedule without kernels and files."""
    plain = copy.copy(args)
    for name, value in NOT_ON_META.items():
        if getattr(plain, name) != value:
            setattr(plain, name, value)
    plain.rank = plain.local_rank = 0
    # Transformer Engine's norm, which even local layers end in, would be made on the CPU.
    plain.use_cpu_initialization, plain.perform_initialization = not HAVE_TE, False
    plain.load = plain.save = plain.pretrained_checkpoint = None
    # Only Transformer Engine has attention over parts of a sequence.
    plain.context_parallel_size = 1
    if args.use_precision_aware_optimizer:
        types = ("main_grads_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
        for name in types:
            setattr(plain, name, torch.float32)
    return plain


def layers_of_stages(args: argparse.Namespace) -> list[int]:
    """Return the number of layers of each pipeline stage, virtual stages added up.

    Empty if the recipe gives a layout of stages, which validation has checked.
    """
    if args.pipeline_model_parallel_layout:
        return []
    with transformer_engine_of_the_job():
        config = names.gpt_config_from_args(copy.copy(args))
    chunks = args.virtual_pipeline_model_parallel_size
    stages = [None] if chunks is None else list(range(chunks))
    return [
        sum(get_num_layers_to_build(config, vp_stage=stage, pp_rank=rank) for stage in stages)
        for rank in range(args.pipeline_model_parallel_size)
    ]


def forget_the_job() -> None:
    """Let a forked process leave the job that its parent belongs to."""
    # The groups are not destroyed: that would wait for their threads, which a fork lacks.
    torch.distributed.group.WORLD = None
    importlib.reload(names.parallel_state)
    destroy_num_microbatches_calculator()
    names.global_vars.unset_global_variables()


def fake_groups(args: argparse.Namespace, rank: int) -> None:
    """Let this process be a rank of a job whose other ranks do not exist."""
    # torch has no public name for them; its own tests and Megatron's fake-process-group use these.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    new_group = torch.distributed.new_group

    def new_fake_group(*positional: Any, **named: Any) -> Any:
        return new_group(*positional, **{**named, "backend": "fake", "pg_options": None})

    torch.distributed.new_group = new_fake_group
    torch.distributed.init_process_group(
        "fake", store=FakeStore(), rank=rank, world_size=args.world_size
    )
    names.parallel_state.initialize_model_parallel(
        args.tensor_model_parallel_size,
        args.pipeline_model_parallel_size,
        args.virtual_pipeline_model_parallel_size,
        context_parallel_size=args.context_parallel_size,
        expert_model_parallel_size=args.expert_model_parallel_size,
        num_distributed_optimizer_instances=args.num_distributed_optimizer_instances,
        expert_tensor_parallel_size=args.expert_tensor_parallel_size,
        create_gloo_process_groups=True,
    )
