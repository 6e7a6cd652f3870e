"""The Qwen3-MoE family: Qwen3 with routed experts in some or all layers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from tst_megatron.hf.families.family import Family, only_full_attention, shown
from tst_megatron.hf.families.qwen3 import ATTENTION, window_settings
from tst_megatron.hf.families.weight_table import (
    MLP,
    Rule,
    Table,
    common_sizes,
    decoder,
    gated_mlp,
)

_BALANCING = {"aux_loss", "seq_aux_loss", "global_aux_loss", "none"}


def _problems(args: argparse.Namespace) -> list[str]:
    found = []
    frequency = getattr(args, "moe_layer_freq", 1)
    if not getattr(args, "num_experts", None):
        found.append("num-experts is not set: a dense model is another family")
    # A recipe that `check` has still to refuse may have no layers, or a frequency of 0.
    elif frequency == 0 or (args.num_layers and not any(expert_layers(args))):
        found.append(f"moe-layer-freq is {shown(frequency)}, which leaves no layer with experts")
    balancing = getattr(args, "moe_router_load_balancing_type", "aux_loss")
    others = set([balancing] if isinstance(balancing, str) else balancing) - _BALANCING
    if others:
        found.append(
            f"moe-router-load-balancing-type is {', '.join(sorted(others))}, which also changes "
            f"which experts are used (only {', '.join(sorted(_BALANCING))} do not)"
        )
    return found


def _config(args: argparse.Namespace) -> dict[str, Any]:
    """Return the part of config.json that Qwen3-MoE alone has.

    ``router_aux_loss_coef`` is Megatron's coefficient as it is. Transformers scales its auxiliary
    loss differently, so a fine-tuning run chooses its own.
    """
    coefficient = args.moe_aux_loss_coeff
    has_experts = expert_layers(args)
    return {
        **window_settings(args),
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


def expert_layers(args: argparse.Namespace) -> list[bool]:
    """Tell of each layer whether it has experts.

    Args:
        args: Megatron's arguments.
    """
    frequency = getattr(args, "moe_layer_freq", 1)
    if isinstance(frequency, int):
        return [index % frequency == 0 for index in range(args.num_layers)]
    return [bool(has) for has in frequency]


def _flags(config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    only_full_attention(config, problems)
    dense = config["mlp_only_layers"]
    has_experts = [int(layer not in dense) for layer in range(config["num_hidden_layers"])]
    if not any(has_experts):
        problems.append("no layer has experts: the model is Qwen3, dense")
    if config["num_experts_per_tok"] == 1 and config["norm_topk_prob"]:
        # Every chosen expert then weighs 1, and the router learns nothing.
        problems.append(
            "norm_topk_prob=True with num_experts_per_tok=1 (must be False: Megatron takes one "
            "expert of several by its share of all)"
        )
    flags: dict[str, Any] = {
        "qk-layernorm": True,
        "num-experts": config["num_experts"],
        "moe-router-topk": config["num_experts_per_tok"],
        "moe-ffn-hidden-size": config["moe_intermediate_size"],
        "moe-router-pre-softmax": not config["norm_topk_prob"],
        "moe-router-load-balancing-type": "aux_loss",
        "moe-aux-loss-coeff": config["router_aux_loss_coef"],
        "moe-router-dtype": "fp32",
        "moe-token-dispatcher-type": "alltoall",
    }
    if not all(has_experts):
        # Its parser takes no spaces.
        flags["moe-layer-freq"] = str(has_experts).replace(" ", "")
    return flags


# --- weights -------------------------------------------------------------------------------------

_ROUTER = Rule(
    "decoder.layers.{layer}.mlp.router.weight",
    ("model.layers.{layer}.mlp.gate.weight",),
    sizes=(("experts", "hidden"),),
)
_EXPERT: Table = gated_mlp(
    "decoder.layers.{layer}.mlp.experts.local_experts.{expert}.",
    "model.layers.{layer}.mlp.experts.{expert}.",
    "expert_feed_forward",
)


def _rules(config: Mapping[str, Any]) -> Iterator[Rule]:
    dense = set(config["mlp_only_layers"])

    def layer_rules(layer: int) -> Iterator[Rule]:
        yield from ATTENTION
        if layer in dense:
            yield from MLP
            return
        yield _ROUTER
        for expert in range(config["num_experts"]):
            for rule in _EXPERT:
                yield rule.at(expert=expert)

    return decoder(config, layer_rules)


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    return {
        **common_sizes(config),
        "experts": config["num_experts"],
        "expert_feed_forward": config["moe_intermediate_size"],
    }


QWEN3_MOE = Family(
    name="Qwen3-MoE",
    architecture="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    fixed={
        "qk_layernorm": (True,),
        "use_rope_scaling": (False,),
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
    },
    problems=_problems,
    config=_config,
    flags=_flags,
    rules=_rules,
    sizes=_sizes,
)
