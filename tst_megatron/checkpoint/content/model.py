"""Check that a checkpoint has every layer, expert and table that its arguments describe.

A layer's tensors are stored in one of two ways: stacked, with the number of layers as first axis,
or under the layer's number. Experts are the next axis of either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tst_megatron.checkpoint.content.facts import OPTIMIZER, Facts
from tst_megatron.system.problems import shortened

_LAYERS = "decoder.layers."
_NUMBERED = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_EMBEDDING, _OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"
_EXPERTS = "mlp.experts."

_Shapes = Mapping[str, tuple[int, ...]]


def weight_shapes(description: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model.

    Args:
        description: torch's ``Metadata``.
    """
    return {
        name: tuple(item.size)
        for name, item in description.state_dict_metadata.items()
        if hasattr(item, "chunks") and not OPTIMIZER.match(name)
    }


def model_problems(shapes: _Shapes, facts: Facts) -> list[str]:
    """List what of the model is missing in the checkpoint, a sentence each.

    Args:
        shapes: ``weight_shapes``.
        facts: of the checkpoint.
    """
    num_layers = facts.argument("num_layers")
    if not isinstance(num_layers, int) or facts.argument("is_hybrid_model"):
        return []
    numbered: dict[int, dict[str, tuple[int, ...]]] = {}
    stacked: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if match := _NUMBERED.fullmatch(name):
            numbered.setdefault(int(match[1]), {})[match[2]] = shape
        elif name.startswith(_LAYERS):
            stacked[name.removeprefix(_LAYERS)] = shape
    found = _table_problems(shapes, facts)
    if numbered:
        found += _numbered_problems(numbered, num_layers, facts)
    else:
        wrong = [name for name, shape in stacked.items() if shape[:1] != (num_layers,)]
        found += [
            f"{_LAYERS}{name} has {stacked[name][0] if stacked[name] else 'no'} layers of "
            f"{num_layers}"
            for name in wrong
        ]
        layer = {name: shape[1:] for name, shape in stacked.items()}
        found += _layer_problems(f"{_LAYERS[:-1]}", layer, facts, is_moe=_is_moe(facts, 0))
    return shortened(found)


def _table_problems(shapes: _Shapes, facts: Facts) -> list[str]:
    is_tied = not facts.argument("untie_embeddings_and_output_weights")
    rows, columns = facts.argument("padded_vocab_size"), facts.argument("hidden_size")
    found = []
    for name in (_EMBEDDING,) if is_tied else (_EMBEDDING, _OUTPUT):
        if name not in shapes:
            found.append(f"{name} is missing")
        elif isinstance(rows, int) and rows and shapes[name] != (rows, columns):
            found.append(f"{name} is {shapes[name]} and should be {(rows, columns)}")
    if not any(re.fullmatch(r"decoder\.final_\w*norm\w*\.weight", name) for name in shapes):
        found.append("decoder.final_layernorm.weight is missing")
    return found


def _numbered_problems(layers: Mapping[int, _Shapes], num_layers: int, facts: Facts) -> list[str]:
    missing = sorted(set(range(num_layers)) - set(layers))
    found = [f"layer {number} of {num_layers} is missing" for number in missing]
    found += [f"layer {number} of {num_layers}" for number in layers if number >= num_layers]
    for number, layer in sorted(layers.items()):
        is_moe = _is_moe(facts, number)
        found += _layer_problems(f"layer {number}", layer, facts, is_moe=is_moe)
        alike = [other for key, other in layers.items() if _is_moe(facts, key) == is_moe]
        known = set().union(*alike)
        found += [f"layer {number}: {name} is missing" for name in sorted(known - set(layer))]
    return found


def _is_moe(facts: Facts, layer: int) -> bool | None:
    """Tell whether a layer has experts; None if the arguments do not say."""
    if not facts.argument("num_experts"):
        return False
    pattern = facts.argument("moe_layer_freq")
    if isinstance(pattern, int):
        return layer % pattern == 0 if pattern > 0 else None
    if isinstance(pattern, list) and layer < len(pattern):
        return bool(pattern[layer])
    return None


def _layer_problems(title: str, layer: _Shapes, facts: Facts, *, is_moe: bool | None) -> list[str]:
    found = []
    parts = ["self_attention.linear_proj.weight"]
    if not (facts.argument("multi_latent_attention") or facts.argument("attention_output_gate")):
        parts.append("self_attention.linear_qkv.weight")
    if is_moe:
        parts.append("mlp.router.weight")
    elif is_moe is False:
        parts += ["mlp.linear_fc1.weight", "mlp.linear_fc2.weight"]
    found += [f"{title}: {part} is missing" for part in parts if part not in layer]
    experts = {name: shape for name, shape in layer.items() if name.startswith(_EXPERTS)}
    if is_moe and not any("fc1" in name or "weight1" in name for name in experts):
        found.append(f"{title}: the first matrices of its experts are missing")
    if is_moe and not any("fc2" in name or "weight2" in name for name in experts):
        found.append(f"{title}: the second matrices of its experts are missing")
    num_experts = facts.argument("num_experts")
    # Older grouped experts are one matrix, and have no axis of experts.
    found += [
        f"{title}: {name} has {shape[0] if shape else 'no'} experts of {num_experts}"
        for name, shape in experts.items()
        if is_moe and "linear_fc" in name and shape[:1] != (num_experts,)
    ]
    return found
