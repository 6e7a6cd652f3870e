"""Qwen3-MoE: which Megatron arguments it can express, its config.json, and where each weight goes.

Shapes: V vocabulary, H hidden, G query groups, Q query heads of one group, D head size, F
feed-forward size. Megatron fuses the attention projections group by group, [G, Q + 2, D, H], and
stores gate and up as one [2, F, H]; Hugging Face keeps all of them apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

ARCHITECTURE = "Qwen3MoeForCausalLM"

_ABSENT = object()
# Settings that Qwen3-MoE has in one form only. One that a checkpoint does not know is neutral.
_FIXED: dict[str, tuple[Any, ...]] = {
    "add_bias_linear": (False,),
    "add_qkv_bias": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "layernorm_zero_centered_gamma": (False,),
    "activation_func_clamp_value": (None,),
    "glu_linear_offset": (0.0,),
    "qk_l2_norm": (False,),
    "multi_latent_attention": (False,),
    "attention_output_gate": (False,),
    "softmax_type": ("vanilla",),
    "window_size": (None,),
    "no_rope_freq": (None,),
    "rotary_percent": (1.0,),
    "rotary_interleaved": (False,),
    "rotary_seq_len_interpolation_factor": (None,),
    "use_rope_scaling": (False,),
    "use_mup": (False,),
    "mtp_num_layers": (None, 0),
    "experimental_attention_variant": (None,),
    "moe_apply_probs_on_input": (False,),
    "moe_expert_capacity_factor": (None,),
    "moe_expert_rank_capacity_factor": (None,),
    "moe_latent_size": (None,),
    "moe_router_enable_expert_bias": (False,),
    "moe_router_force_biased": (None,),
    "moe_router_force_load_balancing": (False,),
    "moe_router_group_topk": (None,),
    "moe_router_score_function": ("softmax",),
    "moe_router_topk_scaling_factor": (None, 1.0),
    "moe_shared_expert_intermediate_size": (None, 0),
}
# Settings without which it is another family; they must be there.
_NEEDED: dict[str, tuple[Any, ...]] = {
    "normalization": ("RMSNorm",),
    "swiglu": (True,),
    "qk_layernorm": (True,),
    "position_embedding_type": ("rope",),
}
_BALANCING = {"aux_loss", "seq_aux_loss", "global_aux_loss", "none"}


def check(args: argparse.Namespace) -> None:
    """Refuse a model that Qwen3-MoE cannot express, with every reason at once.

    Args:
        args: Megatron's arguments as saved in a checkpoint.

    Raises:
        ValueError: some setting has no counterpart in Qwen3-MoE.
    """
    problems = []
    for name, allowed in _NEEDED.items():
        if getattr(args, name, None) not in allowed:
            problems.append(_must_be(args, name, allowed))
    for name, allowed in _FIXED.items():
        if getattr(args, name, _ABSENT) not in (_ABSENT, *allowed):
            problems.append(_must_be(args, name, allowed))
    if not getattr(args, "num_experts", None):
        problems.append("num_experts is not set: a dense model is another family")
    elif not any(_expert_layers(args)):
        problems.append(f"moe_layer_freq={args.moe_layer_freq!r} leaves no layer with experts")
    balancing = getattr(args, "moe_router_load_balancing_type", "aux_loss")
    others = set([balancing] if isinstance(balancing, str) else balancing) - _BALANCING
    if others:
        problems.append(
            f"moe_router_load_balancing_type={', '.join(sorted(others))} also changes which "
            f"experts are used (only {', '.join(sorted(_BALANCING))} do not)"
        )
    if problems:
        raise ValueError(
            f"The model has no Qwen3-MoE form: {'; '.join(problems)}. "
            "Train with the settings named, or export to another family."
        )


def _must_be(args: argparse.Namespace, name: str, allowed: Sequence[Any]) -> str:
    wanted = " or ".join(repr(value) for value in allowed)
    return f"{name}={getattr(args, name, None)!r} (must be {wanted})"


def config_from_args(
    args: argparse.Namespace,
    *,
    vocab_size: int | None = None,
    dtype: torch.dtype | None = None,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
) -> dict[str, Any]:
    """The whole config.json of a model, from the arguments that trained it.

    ``router_aux_loss_coef`` is Megatron's coefficient as it is; transformers scales its auxiliary
    loss differently, so a fine-tuning run chooses its own.

    Args:
        args: Megatron's arguments as saved in a checkpoint.
        vocab_size: rows of the embedding without padding; the saved vocabulary size when not given.
        dtype: type of the exported weights; the type they were trained in when not given.
        bos_token_id: the tokenizer's, if it has one.
        eos_token_id: the tokenizer's, if it has one.

    Raises:
        ValueError: the model has no Qwen3-MoE form, or the vocabulary is larger than the embedding.
    """
    check(args)
    vocab_size = vocab_size or getattr(args, "vocab_size", None) or args.padded_vocab_size
    if vocab_size > args.padded_vocab_size:
        raise ValueError(
            f"vocab_size {vocab_size}: the model has only {args.padded_vocab_size} rows of "
            "embedding. Give the tokenizer that the model was trained with."
        )
    heads = args.num_attention_heads
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen3_moe",
        "vocab_size": vocab_size,
        "hidden_size": args.hidden_size,
        "num_hidden_layers": args.num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": args.num_query_groups if args.group_query_attention else heads,
        "head_dim": args.kv_channels,
        "intermediate_size": args.ffn_hidden_size,
        **_experts(args),
        "hidden_act": "silu",
        "rms_norm_eps": args.layernorm_epsilon,
        "attention_bias": False,
        "attention_dropout": args.attention_dropout,
        "max_position_embeddings": args.max_position_embeddings,
        "rope_theta": float(args.rotary_base),
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": args.num_layers,
        "tie_word_embeddings": not args.untie_embeddings_and_output_weights,
        "initializer_range": args.init_method_std,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "torch_dtype": str(dtype or args.params_dtype).removeprefix("torch."),
        "use_cache": True,
    }


def _experts(args: argparse.Namespace) -> dict[str, Any]:
    coefficient = args.moe_aux_loss_coeff
    has_experts = _expert_layers(args)
    return {
        "moe_intermediate_size": args.moe_ffn_hidden_size or args.ffn_hidden_size,
        "num_experts": args.num_experts,
        "num_experts_per_tok": args.moe_router_topk,
        # Softmax before the choice leaves the chosen weights as they are; after it, they sum to 1.
        "norm_topk_prob": not args.moe_router_pre_softmax,
        "router_aux_loss_coef": sum(coefficient) if isinstance(coefficient, list) else coefficient,
        "output_router_logits": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [index for index, has in enumerate(has_experts) if not has],
    }


def _expert_layers(args: argparse.Namespace) -> list[bool]:
    frequency = getattr(args, "moe_layer_freq", 1)
    if isinstance(frequency, int):
        return [index % frequency == 0 for index in range(args.num_layers)]
    return [bool(has) for has in frequency]


class Form(Enum):
    """How one Megatron tensor is kept on the other side."""

    WHOLE = "as it is"
    VOCABULARY = "[V, H] without the padding rows"
    QKV = "[G, Q + 2, D, H] as query, key and value"
    GATE_UP = "[2, F, H] as gate and up"


@dataclass(frozen=True, slots=True)
class Rule:
    """One Megatron tensor and the Hugging Face tensors it becomes."""

    megatron: str
    hf: tuple[str, ...]
    form: Form = Form.WHOLE


def rules(config: Mapping[str, Any]) -> Iterator[Rule]:
    """Every weight of a model, in the order of its layers.

    Args:
        config: what ``config_from_args`` returned.
    """
    yield Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Form.VOCABULARY)
    for layer in range(config["num_hidden_layers"]):
        here, there = f"decoder.layers.{layer}.", f"model.layers.{layer}."
        attention, attn = f"{here}self_attention.", f"{there}self_attn."
        yield Rule(f"{here}input_layernorm.weight", (f"{there}input_layernorm.weight",))
        projections = tuple(f"{attn}{name}_proj.weight" for name in "qkv")
        yield Rule(f"{attention}linear_qkv.weight", projections, Form.QKV)
        yield Rule(f"{attention}q_layernorm.weight", (f"{attn}q_norm.weight",))
        yield Rule(f"{attention}k_layernorm.weight", (f"{attn}k_norm.weight",))
        yield Rule(f"{attention}linear_proj.weight", (f"{attn}o_proj.weight",))
        yield Rule(f"{here}pre_mlp_layernorm.weight", (f"{there}post_attention_layernorm.weight",))
        if layer in config["mlp_only_layers"]:
            yield from _mlp(f"{here}mlp.", f"{there}mlp.")
            continue
        yield Rule(f"{here}mlp.router.weight", (f"{there}mlp.gate.weight",))
        for expert in range(config["num_experts"]):
            yield from _mlp(
                f"{here}mlp.experts.local_experts.{expert}.", f"{there}mlp.experts.{expert}."
            )
    yield Rule("decoder.final_layernorm.weight", ("model.norm.weight",))
    if not config["tie_word_embeddings"]:
        yield Rule("output_layer.weight", ("lm_head.weight",), Form.VOCABULARY)


def _mlp(here: str, there: str) -> Iterator[Rule]:
    gate_up = (f"{there}gate_proj.weight", f"{there}up_proj.weight")
    yield Rule(f"{here}linear_fc1.weight", gate_up, Form.GATE_UP)
    yield Rule(f"{here}linear_fc2.weight", (f"{there}down_proj.weight",))


def split(form: Form, weight: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The Hugging Face tensors of one Megatron tensor, in the order of ``Rule.hf``.

    Args:
        form: how it is kept there.
        weight: Megatron's tensor, whole (tensor-parallel size 1).
        config: what ``config_from_args`` returned.
    """
    if form is Form.WHOLE:
        return (weight,)
    if form is Form.VOCABULARY:
        return (weight[: config["vocab_size"]],)
    if form is Form.GATE_UP:
        return weight.chunk(2)
    groups = config["num_key_value_heads"]
    heads = config["num_attention_heads"] // groups
    fused = weight.reshape(groups, heads + 2, config["head_dim"], -1)
    return tuple(part.flatten(0, 2) for part in torch.split(fused, [heads, 1, 1], dim=1))


def merge(form: Form, parts: Sequence[Tensor], config: Mapping[str, Any]) -> Tensor:
    """The inverse of ``split``; of a vocabulary tensor, the rows that are not padding.

    Args:
        form: how the tensor is kept on the Hugging Face side.
        parts: the tensors of ``Rule.hf``, in that order.
        config: what ``config_from_args`` returned.
    """
    if form is not Form.QKV:
        return torch.cat(tuple(parts))
    groups, hidden_size = config["num_key_value_heads"], parts[0].shape[-1]
    grouped = [part.reshape(groups, -1, config["head_dim"], hidden_size) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 2)
