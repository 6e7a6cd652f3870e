"""Where each weight of a model goes: pairs of Megatron's and Hugging Face's names, and both ways.

Shapes: V vocabulary, H hidden, G query groups, Q query heads of one group, D head size, F
feed-forward size. Megatron fuses the attention projections group by group, [G, Q + 2, D, H], and
stores gate and up as one [2, F, H]; Hugging Face keeps all of them apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor


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

    Qwen3-MoE, Qwen3 and Llama name their parts alike; what a model has of them is in its
    configuration.

    Args:
        config: a config.json of one of these families, as its ``config_from_args`` writes it.
    """
    has_norms = config["model_type"] != "llama"
    num_experts = config.get("num_experts", 0)
    dense = range(config["num_hidden_layers"]) if not num_experts else config["mlp_only_layers"]
    yield Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Form.VOCABULARY)
    for layer in range(config["num_hidden_layers"]):
        here, there = f"decoder.layers.{layer}.", f"model.layers.{layer}."
        yield from _attention(here, there, has_norms=has_norms)
        yield Rule(f"{here}pre_mlp_layernorm.weight", (f"{there}post_attention_layernorm.weight",))
        if layer in dense:
            yield from _mlp(f"{here}mlp.", f"{there}mlp.")
            continue
        yield Rule(f"{here}mlp.router.weight", (f"{there}mlp.gate.weight",))
        for expert in range(num_experts):
            yield from _mlp(
                f"{here}mlp.experts.local_experts.{expert}.", f"{there}mlp.experts.{expert}."
            )
    yield Rule("decoder.final_layernorm.weight", ("model.norm.weight",))
    if not config["tie_word_embeddings"]:
        yield Rule("output_layer.weight", ("lm_head.weight",), Form.VOCABULARY)


def _attention(here: str, there: str, *, has_norms: bool) -> Iterator[Rule]:
    attention, attn = f"{here}self_attention.", f"{there}self_attn."
    yield Rule(f"{here}input_layernorm.weight", (f"{there}input_layernorm.weight",))
    projections = tuple(f"{attn}{name}_proj.weight" for name in "qkv")
    yield Rule(f"{attention}linear_qkv.weight", projections, Form.QKV)
    if has_norms:
        yield Rule(f"{attention}q_layernorm.weight", (f"{attn}q_norm.weight",))
        yield Rule(f"{attention}k_layernorm.weight", (f"{attn}k_norm.weight",))
    yield Rule(f"{attention}linear_proj.weight", (f"{attn}o_proj.weight",))


def _mlp(here: str, there: str) -> Iterator[Rule]:
    gate_up = (f"{there}gate_proj.weight", f"{there}up_proj.weight")
    yield Rule(f"{here}linear_fc1.weight", gate_up, Form.GATE_UP)
    yield Rule(f"{here}linear_fc2.weight", (f"{there}down_proj.weight",))


def split(form: Form, weight: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The Hugging Face tensors of one Megatron tensor, in the order of ``Rule.hf``.

    Args:
        form: how it is kept there.
        weight: Megatron's tensor, whole (tensor-parallel size 1).
        config: as for ``rules``.
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
        config: as for ``rules``.
    """
    if form is not Form.QKV:
        return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
    groups, hidden_size = config["num_key_value_heads"], parts[0].shape[-1]
    grouped = [part.reshape(groups, -1, config["head_dim"], hidden_size) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 2)


def shapes(rule: Rule, config: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """The shapes of a rule's Hugging Face tensors, by the configuration alone.

    Args:
        rule: one of ``rules``.
        config: as for ``rules``.
    """
    hidden, size = config["hidden_size"], config["head_dim"]
    rows, groups = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    if rule.form is Form.VOCABULARY:
        return ((config["vocab_size"], hidden),)
    if rule.form is Form.QKV:
        return ((rows, hidden), (groups, hidden), (groups, hidden))
    name = rule.hf[0].removesuffix(".weight").rpartition(".")[2]
    in_expert = ".experts." in rule.hf[0]
    feed_forward = config["moe_intermediate_size" if in_expert else "intermediate_size"]
    if rule.form is Form.GATE_UP:
        return ((feed_forward, hidden),) * 2
    whole = {
        "o_proj": (hidden, rows),
        "down_proj": (hidden, feed_forward),
        "gate": (config.get("num_experts", 0), hidden),
        "q_norm": (size,),
        "k_norm": (size,),
    }
    return (whole.get(name, (hidden,)),)


def place_of(name: str, state: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """Where transformers keeps a tensor of the files; transformers 5 stacks those of experts.

    Args:
        name: as the files have it.
        state: of transformers' model.

    Returns:
        The name of the tensor it is in, and the part that it is: a view.

    Raises:
        RuntimeError: transformers has no place for it.
    """
    if name in state:
        return name, state[name]
    match = re.fullmatch(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight", name)
    place = f"{match[1]}.{'down_proj' if match[3] == 'down' else 'gate_up_proj'}" if match else ""
    if match is None or place not in state or int(match[2]) >= len(state[place]):
        raise RuntimeError(f"{name}: transformers has no such weight.")
    part = state[place][int(match[2])]
    if match[3] == "down":
        return place, part
    gate, up = part.chunk(2)
    return place, gate if match[3] == "gate" else up
