"""Find numbers in a config.json that no model can have.

A configuration comes from outside and decides what is allocated, so its numbers are looked at
before a library is asked that believes them. Each problem is a sentence of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tst_megatron.hf.families.family import Family

_MOST = 2**31 - 1
_MOST_PARTS = 2**16
"""Layers or experts. The largest models have some hundreds; each costs time before it is missed."""
_SIZES = {
    "vocab_size": _MOST,
    "hidden_size": _MOST,
    "intermediate_size": _MOST,
    "num_hidden_layers": _MOST_PARTS,
    "num_attention_heads": _MOST_PARTS,
    "num_key_value_heads": _MOST_PARTS,
    "head_dim": _MOST,
    "max_position_embeddings": _MOST,
}
_EXPERT_SIZES = {
    "num_experts": _MOST_PARTS,
    "num_local_experts": _MOST_PARTS,
    "num_experts_per_tok": _MOST_PARTS,
    "moe_intermediate_size": _MOST,
    "decoder_sparse_step": _MOST_PARTS,
}
_THETA = (0.0, 1e12, True)
# From, to, and whether both ends are excluded.
_NUMBERS = {
    "rms_norm_eps": (0.0, 1.0, True),
    "rope_theta": _THETA,
    "initializer_range": (0.0, 1.0, False),
    "attention_dropout": (0.0, 1.0, False),
}
_EXPERT_NUMBERS = {"router_aux_loss_coef": (0.0, 1e9, False)}
_TYPES = ("float32", "bfloat16", "float16")
_SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
_MAY_BE_NULL = {
    "num_key_value_heads",
    "head_dim",
    "attention_dropout",
    "rope_theta",
    "attention_bias",
    "mlp_bias",
    "use_sliding_window",
}


def config_problems(written: Mapping[str, Any], family: Family) -> list[str]:
    """List what no model can have: first kinds and ranges, then contradictions.

    Args:
        written: as config.json has it; what it leaves out is right.
        family: of the configuration.
    """
    has_experts = family.model_type == "qwen3_moe"
    sizes = _SIZES | (_EXPERT_SIZES if has_experts else {})
    numbers = _NUMBERS | (_EXPERT_NUMBERS if has_experts else {})
    switches = (*_SWITCHES, "norm_topk_prob") if has_experts else _SWITCHES
    found = [
        f"{name}={_shown(written[name])}: must be a whole number from 1 to {most:,}"
        for name, most in sizes.items()
        if _is_said(written, name) and not _is_size(written[name], most)
    ]
    found += [
        f"{name}={_shown(written[name])}: {_must_be(*bounds)}"
        for name, bounds in numbers.items()
        if _is_said(written, name) and not _is_number(written[name], *bounds)
    ]
    found += [
        f"{name}={_shown(written[name])}: must be true or false"
        for name in switches
        if _is_said(written, name) and not isinstance(written[name], bool)
    ]
    found += _other_kinds(written)
    return found + _rope_problems(written) + _contradictions(written, family, sizes)


def _other_kinds(written: Mapping[str, Any]) -> list[str]:
    """Check what is neither a size nor a share: the type of the weights, and ids of tokens."""
    found = [
        f"{name}={_shown(written[name])}: must be one of {', '.join(_TYPES)}"
        for name in ("dtype", "torch_dtype")
        if written.get(name) is not None and written[name] not in _TYPES
    ]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = written.get(name)
        listed = ids if isinstance(ids, list) and name == "eos_token_id" else [ids]
        if ids is not None and not all(type(each) is int for each in listed):
            found.append(f"{name}={_shown(ids)}: must be the number of a token")
    return found


def _is_said(written: Mapping[str, Any], name: str) -> bool:
    return name in written and not (written[name] is None and name in _MAY_BE_NULL)


def _is_size(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _is_number(value: Any, low: float, high: float, is_open: bool) -> bool:
    if type(value) not in (int, float) or not abs(value) < 1e300:
        return False
    return bool(low < value < high) if is_open else bool(low <= value <= high)


def _must_be(low: float, high: float, is_open: bool) -> str:
    between, and_ = ("between", "and") if is_open else ("from", "to")
    return f"must be a number {between} {low:g} {and_} {high:g}"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _rope_problems(written: Mapping[str, Any]) -> list[str]:
    found = []
    for name in ("rope_parameters", "rope_scaling"):
        rope = written.get(name)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            found.append(f"{name}={_shown(rope)}: must be a block of settings")
            continue
        for key in ("rope_theta", "factor", "low_freq_factor", "high_freq_factor"):
            if key in rope and not _is_number(rope[key], *_THETA):
                found.append(f"{name}.{key}={_shown(rope[key])}: {_must_be(*_THETA)}")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if not isinstance(kind, str):
            found.append(f"{name}.rope_type={_shown(kind)}: must be a name")
        elif kind != "default" and "factor" not in rope:
            found.append(f"{name}.rope_type={_shown(kind)}: needs a factor")
    return found + _two_ropes(written)


def _two_ropes(written: Mapping[str, Any]) -> list[str]:
    """List where the names of transformers 5 and those before it say different things."""
    new, old = written.get("rope_parameters"), written.get("rope_scaling")
    if not isinstance(new, dict):
        return []
    others = {"rope_theta": written.get("rope_theta")}
    if isinstance(old, dict):
        others |= {"rope_type": old.get("type"), **old}
    return [
        f"{key}={_shown(value)}: contradicts rope_parameters.{key}={_shown(new[key])}; take the "
        "wrong one out"
        for key, value in others.items()
        if value is not None and key in new and new[key] != value
    ]


def _contradictions(
    written: Mapping[str, Any], family: Family, limits: Mapping[str, int]
) -> list[str]:
    """List contradictions between settings; a setting that is wrong alone is left out."""
    from transformers import CONFIG_MAPPING

    said = {name: value for name, value in written.items() if value is not None}
    defaults = CONFIG_MAPPING[family.model_type]().to_dict()
    if family.model_type == "llama":
        # They follow the heads and the width, which are not the default's.
        defaults = {**defaults, "num_key_value_heads": None, "head_dim": None}
    # transformers 5 has a name of its own for one of them.
    defaults["num_experts"] = said.get("num_local_experts", defaults.get("num_local_experts"))
    values = {**defaults, **said}
    sizes = {name: values[name] for name in limits if _is_size(values.get(name), limits[name])}
    found = _head_problems(sizes, is_llama=family.model_type == "llama")
    experts, chosen = sizes.get("num_experts"), sizes.get("num_experts_per_tok")
    if experts and chosen and chosen > experts:
        found.append(f"num_experts_per_tok={chosen}: more than num_experts={experts}")
    other = sizes.get("num_local_experts")
    if experts and other and "num_local_experts" in said and experts != other:
        found.append(
            f"num_experts={experts}: contradicts num_local_experts={other}; take the wrong one out"
        )
    return found + _layer_problems(said, sizes.get("num_hidden_layers"))


def _head_problems(sizes: Mapping[str, int], *, is_llama: bool) -> list[str]:
    found = []
    hidden, heads = sizes.get("hidden_size"), sizes.get("num_attention_heads")
    groups, head_dim = sizes.get("num_key_value_heads"), sizes.get("head_dim")
    if heads and groups and heads % groups:
        found.append(f"num_attention_heads={heads}: not a multiple of num_key_value_heads={groups}")
    if hidden and heads and hidden % heads and (is_llama or not head_dim):
        found.append(f"hidden_size={hidden}: not a multiple of num_attention_heads={heads}")
    elif hidden and heads:
        head_dim = head_dim or hidden // heads
        if head_dim % 2:
            found.append(f"head_dim={head_dim}: must be even, since RoPE turns pairs of numbers")
    return found


def _layer_problems(said: Mapping[str, Any], num_layers: int | None) -> list[str]:
    found = []
    dense = said.get("mlp_only_layers", [])
    is_list = isinstance(dense, list) and all(type(layer) is int for layer in dense)
    if not is_list:
        found.append(f"mlp_only_layers={_shown(dense)}: must be a list of numbers of layers")
    elif num_layers and any(not 0 <= layer < num_layers for layer in dense):
        found.append(f"mlp_only_layers={_shown(dense)}: the layers are 0 to {num_layers - 1}")
    kinds = said.get("layer_types", [])
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        found.append(f"layer_types={_shown(kinds)}: must be a list of names")
    elif kinds and num_layers and len(kinds) != num_layers:
        found.append(f"layer_types: names {len(kinds)} layers, and num_hidden_layers={num_layers}")
    return found
