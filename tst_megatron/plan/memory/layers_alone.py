"""Build the layers of a model on the CPU, to measure what one of each kind keeps for backward.

The layers have the recipe's widths and tensor-parallel size. Their weights have no values: memory
that nothing is written to takes none. The other ranks of the tensor-parallel group are torch's fake
process group, whose collectives give tensors of the right size and of no meaning. What Transformer
Engine computes in one kernel is a stand-in here, which keeps what the kernel keeps.
"""

from __future__ import annotations

import argparse
import copy
import functools
from typing import Any

import torch
from torch import Tensor

from tst_megatron.megatron import names, setup_without_values
from tst_megatron.megatron.cpu.transformer_engine import transformer_engine_of_the_job


def arguments_of_layers(args: argparse.Namespace, *, is_fused: bool) -> argparse.Namespace:
    """Return the arguments of one layer of each kind that a job has, on its tensor-parallel ranks.

    All experts are on each rank, so that the positions of a rank stay there.

    Args:
        args: validated for the job.
        is_fused: build what a GPU computes in one kernel as that, where Python can.
    """
    alone = setup_without_values.plain_arguments(args) if is_fused else copy.copy(args)
    if is_fused:
        alone.bias_swiglu_fusion = args.bias_swiglu_fusion
        alone.cross_entropy_loss_fusion = args.cross_entropy_loss_fusion
    # Layers are measured without recompute of a whole layer, which follows from it by a rule, and
    # that of the activation of experts needs a kernel.
    modules = [each for each in recomputed_modules(args) if each != "moe_act"]
    alone.recompute_granularity = "selective" if modules else None
    alone.recompute_modules = modules or None
    alone.recompute_method = alone.recompute_num_layers = None
    alone.distribute_saved_activations = False
    alone.num_layers = len(kinds_of_layers(args))
    alone.moe_layer_freq = [int(kind == "moe") for kind in kinds_of_layers(args)]
    alone.rank = alone.local_rank = 0
    alone.world_size = args.tensor_model_parallel_size
    alone.data_parallel_size = 1
    alone.expert_model_parallel_size = alone.expert_tensor_parallel_size = 1
    alone.context_parallel_size = alone.pipeline_model_parallel_size = 1
    alone.virtual_pipeline_model_parallel_size = alone.pipeline_model_parallel_layout = None
    alone.num_layers_in_first_pipeline_stage = alone.num_layers_in_last_pipeline_stage = None
    alone.decoder_first_pipeline_num_layers = alone.decoder_last_pipeline_num_layers = None
    alone.account_for_embedding_in_pipeline_split = False
    alone.account_for_loss_in_pipeline_split = False
    alone.mtp_num_layers = None
    alone.use_cpu_initialization = alone.perform_initialization = False
    alone.overlap_p2p_comm = alone.batch_p2p_comm = False
    return alone


def recomputed_modules(args: argparse.Namespace) -> list[str]:
    """Return the parts of a layer that selective recompute computes again."""
    if args.recompute_granularity != "selective":
        return []
    # Megatron's default, which it sets in the model's configuration and not in the arguments.
    return list(args.recompute_modules or ["core_attn"])


def kinds_of_layers(args: argparse.Namespace) -> list[str]:
    """Return the kinds of layers that a model has, ``dense`` before ``moe``."""
    return sorted(set(layer_kinds(args)))


def layer_kinds(args: argparse.Namespace) -> list[str]:
    """Return the kind of each layer of the decoder, ``dense`` or ``moe``."""
    if not args.num_experts:
        return ["dense"] * args.num_layers
    frequency = args.moe_layer_freq
    if isinstance(frequency, int):
        return ["dense" if i % frequency else "moe" for i in range(args.num_layers)]
    return ["moe" if each else "dense" for each in frequency]


def build_layers(args: argparse.Namespace, model_config: Any, *, is_fused: bool) -> Any:
    """Build a model of ``arguments_of_layers`` in this forked process; return it without wrappers.

    Args:
        args: those arguments.
        model_config: makes the model from them.
        is_fused: let stand-ins take the place of Transformer Engine's norm and attention.
    """
    torch.set_num_threads(1)
    setup_without_values.forget_the_job()
    setup_without_values.fake_groups(args, rank=0)
    names.global_vars.set_args(args)
    names.model_parallel_cuda_manual_seed(1)
    with transformer_engine_of_the_job():
        models = model_config.get_builder_cls()(model_config).build_distributed_models(
            pg_collection=names.ProcessGroupCollection.use_mpu_process_groups(),
            wrap_with_ddp=False,
        )
    model = models[0].module if args.bf16 or args.fp16 else models[0]
    model.train()
    for parameter in model.parameters():
        # Data parallelism adds each gradient to its buffer and lets go of it.
        parameter.register_post_accumulate_grad_hook(_let_go)
    if is_fused:
        _fuse(model)
    return model


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None


# --- what stands in for kernels -------------------------------------------------------------------


class _Norm(torch.autograd.Function):
    """Keeps what Transformer Engine's norm keeps: its input, and a number or two per row.

    Source: transformer_engine/pytorch/module/layernorm_linear.py and rmsnorm.py, save_for_backward.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, num_statistics: int) -> Tensor:  # type: ignore[override]
        rows = states.new_zeros((num_statistics, *states.shape[:-1]), dtype=torch.float32)
        ctx.save_for_backward(states, rows)
        return torch.zeros_like(states)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return torch.zeros_like(gradient), None


class _Attention(torch.autograd.Function):
    """Keeps what fused attention keeps: query, key, value, output, and a number per row and head.

    Scores are never kept, so memory is linear in the length. Source: FlashAttention 2, algorithm 1
    (arXiv 2307.08691); transformer_engine/pytorch/attention/dot_product_attention/backends.py.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]
        length, batch, heads, _ = query.shape
        output = query.new_zeros((length, batch, heads * value.shape[-1]))
        sums = query.new_zeros((batch, heads, length), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(torch.zeros_like(each) for each in ctx.saved_tensors[:3])


def _fuse(model: Any) -> None:
    """Let the stand-ins compute what they stand in for, in every layer."""
    for module in model.modules():
        if isinstance(module, torch.nn.RMSNorm | torch.nn.LayerNorm):
            numbers = 1 if isinstance(module, torch.nn.RMSNorm) else 2
            module.forward = functools.partial(_norm, numbers)  # type: ignore[method-assign]
        elif isinstance(module, names.DotProductAttention):
            module.forward = _attention  # type: ignore[method-assign]


def _norm(num_statistics: int, states: Tensor) -> Any:
    return _Norm.apply(states, num_statistics)  # type: ignore[no-untyped-call]


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    return _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]


def hidden_states(args: argparse.Namespace, length: int, batch: int) -> Tensor:
    """Return the input of a layer [L, B, H], cut by sequence parallelism."""
    ranks = args.tensor_model_parallel_size if args.sequence_parallel else 1
    shape = (length // ranks, batch, args.hidden_size)
    return torch.zeros(shape, dtype=args.params_dtype, requires_grad=True)
