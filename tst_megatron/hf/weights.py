"""Convert each weight between Megatron's form and Hugging Face's, by the tables of the families.

The tables themselves are in ``families/``, with both names side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tst_megatron.hf.families.known import FAMILIES
from tst_megatron.hf.families.weight_table import Form, Rule

_FAMILIES = {family.model_type: family for family in FAMILIES}


def rules(config: Mapping[str, Any]) -> Iterator[Rule]:
    """Yield every weight of a model, in the order of its layers.

    Args:
        config: a config.json of one of the families, as its ``config_from_args`` writes it.
    """
    return _FAMILIES[config["model_type"]].rules(config)


def shapes(rule: Rule, config: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a rule's Hugging Face tensors, by the configuration alone.

    Args:
        rule: one of ``rules``.
        config: as for ``rules``.
    """
    sizes = _FAMILIES[config["model_type"]].sizes(config)
    return tuple(tuple(sizes[name] for name in names) for names in rule.sizes)


def split(form: Form, weight: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Return the Hugging Face tensors of one Megatron tensor, in the order of ``Rule.hf``.

    Args:
        form: how it is kept there.
        weight: Megatron's complete tensor (tensor-parallel size 1).
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
    """Return the Megatron tensor of its Hugging Face tensors: the inverse of ``split``.

    A vocabulary tensor comes without its padding rows.

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


def place_of(name: str, state: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    """Return the place where transformers keeps a tensor of the files.

    transformers 5 stacks those of experts.

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
