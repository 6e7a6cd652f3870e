"""The table of a family's weights: Megatron's name and Hugging Face's names side by side.

A row may stand for many tensors: ``{layer}`` and ``{expert}`` in its names are numbers. What all
families here have alike is here too; what one family has in its own way stands in its own file.

Shapes: V vocabulary, H hidden, G query groups, Q query heads of one group, D head size, F
feed-forward size. Megatron fuses the attention projections group by group, [G, Q + 2, D, H], and
stores gate and up as one [2, F, H]; Hugging Face keeps all of them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any


class Form(Enum):
    """The form in which Hugging Face keeps one Megatron tensor."""

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
    sizes: tuple[tuple[str, ...], ...] = (("hidden",),)
    """The shape of each Hugging Face tensor, in names that ``Family.sizes`` has numbers for."""

    def at(self, **numbers: int) -> Rule:
        """Return the rule of one layer or expert: ``at(layer=3)`` fills in ``{layer}``."""
        return replace(
            self,
            megatron=_filled(self.megatron, numbers),
            hf=tuple(_filled(name, numbers) for name in self.hf),
        )


Table = tuple[Rule, ...]


def _filled(name: str, numbers: Mapping[str, int]) -> str:
    for key, number in numbers.items():
        name = name.replace(f"{{{key}}}", str(number))
    return name


# --- what the families here have alike -----------------------------------------------------------

# In each row: Megatron's name, Hugging Face's names, the form, the shape of each of the latter.
EMBEDDING = Rule(
    "embedding.word_embeddings.weight",
    ("model.embed_tokens.weight",),
    Form.VOCABULARY,
    (("vocabulary", "hidden"),),
)
FINAL_NORM = Rule("decoder.final_layernorm.weight", ("model.norm.weight",))
HEAD = Rule(
    "output_layer.weight",
    ("lm_head.weight",),
    Form.VOCABULARY,
    (("vocabulary", "hidden"),),
)

_HERE, _THERE = "decoder.layers.{layer}.", "model.layers.{layer}."

ATTENTION_IN: Table = (
    Rule(f"{_HERE}input_layernorm.weight", (f"{_THERE}input_layernorm.weight",)),
    Rule(
        f"{_HERE}self_attention.linear_qkv.weight",
        tuple(f"{_THERE}self_attn.{name}_proj.weight" for name in "qkv"),
        Form.QKV,
        (("queries", "hidden"), ("keys", "hidden"), ("keys", "hidden")),
    ),
)
"""Grouped-query attention, up to what may stand between its projections."""

ATTENTION_OUT: Table = (
    Rule(
        f"{_HERE}self_attention.linear_proj.weight",
        (f"{_THERE}self_attn.o_proj.weight",),
        sizes=(("hidden", "queries"),),
    ),
    Rule(f"{_HERE}pre_mlp_layernorm.weight", (f"{_THERE}post_attention_layernorm.weight",)),
)


def gated_mlp(here: str, there: str, size: str) -> Table:
    """Return the rows of one SwiGLU feed-forward block.

    Args:
        here: what Megatron's names begin with, up to the block's own parts.
        there: the same of Hugging Face's names.
        size: name of its feed-forward size.
    """
    return (
        Rule(
            f"{here}linear_fc1.weight",
            (f"{there}gate_proj.weight", f"{there}up_proj.weight"),
            Form.GATE_UP,
            ((size, "hidden"), (size, "hidden")),
        ),
        Rule(
            f"{here}linear_fc2.weight",
            (f"{there}down_proj.weight",),
            sizes=(("hidden", size),),
        ),
    )


MLP = gated_mlp(f"{_HERE}mlp.", f"{_THERE}mlp.", "feed_forward")


def decoder(config: Mapping[str, Any], rules_of: Callable[[int], Iterator[Rule]]) -> Iterator[Rule]:
    """Yield every rule of a decoder of layers, in the order in which an export writes them.

    Args:
        config: a config.json.
        rules_of: the rows of a layer, by its number.
    """
    yield EMBEDDING
    for layer in range(config["num_hidden_layers"]):
        for rule in rules_of(layer):
            yield rule.at(layer=layer)
    yield FINAL_NORM
    if not config["tie_word_embeddings"]:
        yield HEAD


def common_sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the numbers behind the names of ``Rule.sizes`` that all families here share.

    Args:
        config: a config.json.
    """
    head = config["head_dim"]
    return {
        "vocabulary": config["vocab_size"],
        "hidden": config["hidden_size"],
        "head": head,
        "queries": config["num_attention_heads"] * head,
        "keys": config["num_key_value_heads"] * head,
        "feed_forward": config["intermediate_size"],
    }
