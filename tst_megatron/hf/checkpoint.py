"""Read a Megatron checkpoint from its folder alone, in one process, without a GPU.

Shapes come from the arguments saved in the checkpoint. The model is built as Megatron builds it
from those arguments, except that what only says how and where to run (parallel sizes, precision
recipes, fused kernels, overlaps) is set back: any checkpoint then loads into one CPU process.
"""

from __future__ import annotations

import argparse
import copy
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tst_megatron.host import cpu
from tst_megatron.training.checkpoints import TRACKER

# Arguments that say how to run and not what the model computes go back to Megatron's defaults. An
# unknown one stays as saved, so that a new architecture setting is never dropped in silence.
_EXECUTION = re.compile(
    r"tensor_model_parallel_size|context_parallel_size|sequence_parallel|expert_tensor_parallel_size"
    r"|(virtual_)?pipeline_model_parallel_.*|decoder_(first|last)_pipeline_num_layers"
    r"|expert_model_parallel_size|account_for_.*_in_pipeline_split|microbatch_group_size_.*"
    r"|hierarchical_context_parallel_sizes|hybrid_context_parallel|cp_comm_type"
    r"|(expert_)?gtp_.*|(expert_)?tensor_parallel_num_weight_shards"
    r"|(delay|overlap|defer|tp_comm|recompute|cuda_graph|cpu_offloading|offload|inference)_.*"
    r"|(fine_grained_.*|activation_)offload.*|distribute_saved_activations|wgrad_deferral_limit"
    r"|fp[48](_.*)?|bf16|fp16|first_last_layers_bf16|num_layers_at_(start|end)_in_bf16"
    r"|te_precision_config_file|te_rng_tracker|use_te_activation_func|use_transformer_engine_op_fuser"
    r"|kitchen_.*|use_kitchen.*|fused_residual_rmsnorm|batch_invariant_mode|symmetric_ar_type"
    r"|moe_(enable_deepep|permute_fusion.*|router_fusion|router_padding_for_.*|paged_stash.*)"
    r"|moe_(grouped_gemm|token_dispatcher_type|flex_.*|deepep_.*|hybridep_.*|ncclep_.*)"
    r"|moe_(pad_experts_for_.*|shared_expert_overlap|enable_routing_replay|single_grouped_.*)"
    r"|moe_(per_layer_logging|layer_recompute|routing_trace_.*|mlp_glu_interleave_size)"
    r"|(enable|external)_cuda_graph|use_grouped_gemm_for_.*|high_priority_.*|mlp_chunks_for_.*"
    r"|nccl_.*|use_ring_exchange_p2p|variable_seq_lengths|flash_.*|deterministic_mode"
    r"|qk_clip(_.*)?|log_max_attention_logit|moe_input_jitter_eps|cross_entropy_.*"
    r"|ep_overlap_.*|config_logger_dir|restore_modelopt_state|init_model_with_meta_device"
)
_SIZES = ("num_layers", "hidden_size", "num_attention_heads", "kv_channels", "padded_vocab_size")
_OTHER_MODELS = (
    "hybrid_layer_pattern",
    "hybrid_override_pattern",
    "is_hybrid_model",
    "heterogeneous_layers_config_path",
    "heterogeneous_layers_config_encoded_json",
    "spec",
    "yaml_cfg",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A trained model and where it comes from."""

    args: argparse.Namespace
    """Megatron's arguments as the checkpoint saved them, the run's parallel sizes included."""
    model: nn.Module
    """``GPTModel`` on the CPU, in evaluation mode, every parallel size 1."""
    iteration: int
    """Optimizer steps behind the weights."""


def seam() -> ModuleType:
    """``upstream.checkpoint``, in a process made ready for it.

    Imported on first use: importing Megatron already needs the CPU host.

    Raises:
        RuntimeError: this process already uses a GPU, or is one rank of a larger job.
    """
    if not cpu.is_installed():
        if cpu.is_in_use_elsewhere():
            raise RuntimeError(
                "A checkpoint is read on the CPU, but this process already uses a GPU. "
                "Read it in a process of its own."
            )
        # Reading is CPU work also on a machine that has a GPU.
        cpu.install(even_with_gpu=True)
    from tst_megatron.upstream import checkpoint

    checkpoint.start_alone()
    return checkpoint


def load_model(
    checkpoint: Path, *, iteration: int | None = None, dtype: torch.dtype | None = None
) -> LoadedModel:
    """Build the model that a checkpoint was saved from and load its weights; no optimizer state.

    Args:
        checkpoint: a folder of checkpoints with Megatron's tracker file, or one ``iter_`` folder.
        iteration: which checkpoint of the folder, in optimizer steps; the tracker's when not given.
        dtype: type of the weights in memory; the type they were trained in when not given.

    Raises:
        ValueError: there is no such checkpoint, it is incomplete, or its model is not a GPT.
        RuntimeError: this process cannot be a Megatron job of its own.
    """
    megatron = seam()
    folder, state = _open(checkpoint, iteration)
    args = state["args"]
    _check_is_gpt(folder, args)
    with megatron.quietly():
        model = megatron.build_gpt(_single_process(args, dtype or args.params_dtype))
        if args.transformer_impl != "local":
            megatron.name_norms_as_transformer_engine(model)
        weights = megatron.sharded_weights(model, state.get("content_metadata"))
        _check_is_complete(folder, weights)
        megatron.load_weights(model, folder, weights)
    _separate_gates(model, args)
    # Norms are built in float32 here whatever the type of the rest.
    model = model.to(dtype or args.params_dtype).eval()
    return LoadedModel(args=args, model=model, iteration=int(state["iteration"]))


def read_args(checkpoint: Path, *, iteration: int | None = None) -> argparse.Namespace:
    """The arguments saved in a checkpoint, without its weights.

    Args:
        checkpoint: as for ``load_model``.
        iteration: as for ``load_model``.

    Raises:
        ValueError: there is no such checkpoint.
    """
    _, state = _open(checkpoint, iteration)
    args: argparse.Namespace = state["args"]
    return args


def find_checkpoint(checkpoint: Path, iteration: int | None = None) -> Path:
    """The ``iter_`` folder that a path and an iteration stand for.

    Args:
        checkpoint: a folder of checkpoints with Megatron's tracker file, or one ``iter_`` folder.
        iteration: in optimizer steps; the tracker's when not given.

    Raises:
        ValueError: there is no such checkpoint; the message lists those that exist.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint}: no such folder. Give a folder of Megatron checkpoints.")
    own = _iteration_of(checkpoint)
    if own is not None and iteration in (None, own):
        return checkpoint
    if own is not None:
        raise ValueError(
            f"{checkpoint} is the checkpoint of iteration {own}, but iteration {iteration} was "
            f"asked for. Give {checkpoint.parent} instead, or leave the iteration out."
        )
    existing = sorted(
        number for path in checkpoint.iterdir() if (number := _iteration_of(path)) is not None
    )
    if not existing:
        raise ValueError(
            f"{checkpoint}: no checkpoint there (no iter_XXXXXXX folder). "
            "Give the folder that --save named."
        )
    wanted = _tracked(checkpoint, existing) if iteration is None else iteration
    if wanted not in existing:
        raise ValueError(
            f"{checkpoint}: no checkpoint of iteration {wanted}. "
            f"Iterations there: {_listed(existing)}."
        )
    return checkpoint / f"iter_{wanted:07d}"


def _tracked(checkpoint: Path, existing: list[int]) -> int:
    tracker = checkpoint / TRACKER
    text = tracker.read_text().strip() if tracker.is_file() else ""
    if not text.isdigit():
        raise ValueError(
            f"{tracker}: must hold the newest iteration as a number, but "
            f"{f'holds {text!r}' if tracker.is_file() else 'does not exist'}. "
            f"Name an iteration; those there: {_listed(existing)}."
        )
    return int(text)


def _iteration_of(folder: Path) -> int | None:
    match = re.fullmatch(r"iter_(\d{7,})", folder.resolve().name)
    return int(match[1]) if match and folder.is_dir() else None


def _listed(iterations: list[int]) -> str:
    return ", ".join(str(iteration) for iteration in iterations)


def _open(checkpoint: Path, iteration: int | None) -> tuple[Path, dict[str, Any]]:
    folder = find_checkpoint(checkpoint, iteration)
    if not seam().is_distributed_checkpoint(folder):
        raise ValueError(
            f"{folder}: not a whole torch_dist checkpoint (no usable metadata.json). Give one "
            "saved with --ckpt-format torch_dist, and another iteration if its save was cut off."
        )
    state = seam().read_saved_state(folder)
    if "args" not in state or "iteration" not in state:
        raise ValueError(
            f"{folder}: holds no arguments, so the model's shapes are unknown. "
            "Give a checkpoint saved by Megatron's training loop."
        )
    return folder, state


def _check_is_gpt(folder: Path, args: argparse.Namespace) -> None:
    others = [name for name in _OTHER_MODELS if getattr(args, name, None)]
    missing = [name for name in _SIZES if getattr(args, name, None) is None]
    if others or missing:
        problems = [f"{name}={getattr(args, name)!r}" for name in others]
        problems += [f"{name} is missing" for name in missing]
        raise ValueError(
            f"{folder}: not a GPT model of uniform layers: {'; '.join(problems)}. "
            "Only checkpoints of Megatron's GPTModel are supported."
        )
    if getattr(args, "moe_mlp_glu_interleave_size", None) and args.expert_tensor_parallel_size > 1:
        raise ValueError(
            f"{folder}: moe_mlp_glu_interleave_size={args.moe_mlp_glu_interleave_size} with "
            f"expert_tensor_parallel_size={args.expert_tensor_parallel_size}: the saved order of "
            "gate rows depends on the rank. Save it again with expert-tensor-parallel size 1."
        )


def _single_process(args: argparse.Namespace, dtype: torch.dtype) -> argparse.Namespace:
    """The same model's arguments for one CPU process."""
    ours = copy.copy(args)
    for name, default in vars(seam().default_arguments()).items():
        if not hasattr(ours, name) or _EXECUTION.fullmatch(name):
            setattr(ours, name, default)
    # Set by Megatron's validation, not by its parser.
    ours.virtual_pipeline_model_parallel_size = None
    ours.expert_tensor_parallel_size = 1
    ours.params_dtype = dtype
    ours.transformer_impl = "local"
    ours.attention_backend = seam().unfused_attention()
    ours.moe_token_dispatcher_type = "alltoall"
    ours.use_cpu_initialization = True
    ours.perform_initialization = False
    ours.no_persist_layer_norm = True
    for fusion in ("masked_softmax", "bias_dropout", "bias_swiglu", "bias_gelu"):
        setattr(ours, f"{fusion}_fusion", False)
    ours.gradient_accumulation_fusion = ours.apply_rope_fusion = False
    ours.attention_dropout = ours.hidden_dropout = 0.0
    return ours


def _check_is_complete(folder: Path, weights: dict[str, Any]) -> None:
    needed, saved = seam().shapes_of(weights), seam().saved_shapes(folder)
    problems = [f"{name} is missing" for name in sorted(needed.keys() - saved.keys())]
    problems += [
        f"{name} is {saved[name]} and should be {needed[name]}"
        for name in sorted(needed.keys() & saved.keys())
        if saved[name] != needed[name]
    ]
    if problems:
        raise ValueError(
            f"{folder}: its weights are not those of its arguments: {'; '.join(problems)}. "
            "Was it saved by another model class, or only in part?"
        )


def _separate_gates(model: nn.Module, args: argparse.Namespace) -> None:
    size = getattr(args, "moe_mlp_glu_interleave_size", None)
    if not size:
        return
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".experts." in name and name.endswith("linear_fc1.weight"):
                weight.copy_(separate_gates(weight, size))


def separate_gates(weight: Tensor, interleave_size: int) -> Tensor:
    """Put the rows of an interleaved ``linear_fc1`` in the order gate rows, then up rows.

    Args:
        weight: [2F, H], blocks of ``interleave_size`` gate rows and up rows in turn.
        interleave_size: rows in a block.

    Source: ``TEGroupedMLP._remove_glu_interleaving``, which does the same to its outputs.
    """
    blocks = weight.reshape(-1, 2, interleave_size, weight.shape[1])
    return blocks.transpose(0, 1).reshape(weight.shape)
