"""The optimizer's state against the weights, where both are stored under the weights' names.

So do runs without the distributed optimizer, and those that save its fully reshardable format::

    decoder.final_layernorm.weight                              bfloat16
    optimizer.state.param.decoder.final_layernorm.weight        float32: master copy (or fp32_param)
    optimizer.state.exp_avg.decoder.final_layernorm.weight      float32
    optimizer.state.exp_avg_sq.decoder.final_layernorm.weight   float32: squares

A master copy, rounded to the type of the weight, is the weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tst_megatron.checkpoint.content.buckets import WeightIndex
from tst_megatron.checkpoint.content.facts import OPTIMIZER, Facts
from tst_megatron.checkpoint.content.values import Chunk, DamagedItem, read_chunk, value_problem

if TYPE_CHECKING:
    import torch

_STATE = re.compile(r"(?:chained_\d+\.)?optimizer\.state\.(\w+)\.(.+)")
_MASTERS = ("param", "fp32_param", "master_param")
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq")

UNLIKE_THE_WEIGHTS = ("fp8_param_gather", "fp4_param_gather", "use_precision_aware_optimizer")
"""Arguments with which weights are not their master copies, rounded."""

SHIFTED = (
    "This is how megatron-core 0.19.2 saves dist-ckpt-optim-fully-reshardable where "
    "overlap-grad-reduce makes several gradient buckets: the optimizer's state is at wrong places, "
    "and a run that goes on from it is another run. The weights are right: export them, or start "
    "from them with pretrained-checkpoint. Or go on from an older checkpoint that is whole. Save "
    "with a tst-megatron that repairs this, without dist-ckpt-optim-fully-reshardable, or with one "
    "bucket (without overlap-grad-reduce)"
)


@dataclass(slots=True)
class Compared:
    """Findings of the comparison of master copies; filled from several threads."""

    weights: set[str] = field(default_factory=set)
    """Those that have a master copy."""
    other: set[str] = field(default_factory=set)
    """Those that differ from it."""


@dataclass(frozen=True, slots=True)
class Group:
    """A chunk of a weight with the chunks of its optimizer state that cover the same values."""

    weight: Chunk
    states: tuple[tuple[str, Chunk], ...]

    @property
    def num_bytes(self) -> int:
        """That it takes in the shards."""
        return self.weight.num_bytes + sum(chunk.num_bytes for _, chunk in self.states)

    @property
    def memory(self) -> int:
        """That checking it takes: the weight stays while its state is read, one after the other."""
        return self.weight.num_bytes + max(
            chunk.memory for chunk in (self.weight, *(chunk for _, chunk in self.states))
        )


def grouped(chunks: Mapping[str, Sequence[Chunk]]) -> tuple[list[Group], list[Chunk]]:
    """Every chunk of a weight with its state, and the chunks that belong to no weight's chunk.

    Args:
        chunks: ``chunks_of`` a checkpoint.
    """
    states: dict[tuple[str, tuple[int, ...], tuple[int, ...]], list[tuple[str, Chunk]]] = {}
    rest: list[Chunk] = []
    weights = {name for name in chunks if not OPTIMIZER.match(name)}
    boxes = {(name, each.offsets, each.sizes) for name in weights for each in chunks[name]}
    for name in chunks.keys() - weights:
        match = _STATE.fullmatch(name)
        for chunk in chunks[name]:
            key = (match[2] if match else "", chunk.offsets, chunk.sizes)
            if match and key in boxes:
                states.setdefault(key, []).append((match[1], chunk))
            else:
                rest.append(chunk)
    groups = [
        Group(chunk, tuple(states.get((name, chunk.offsets, chunk.sizes), ())))
        for name in weights
        for chunk in chunks[name]
    ]
    return groups, rest


def is_square(name: str) -> bool:
    """Tell whether a tensor of the optimizer holds means of squares."""
    match = _STATE.fullmatch(name)
    return bool(match and match[1] in _SQUARES)


def check_group(
    checkpoint: Path, group: Group, compared: Compared, index: WeightIndex | None = None
) -> list[str]:
    """Read a weight's chunk and its optimizer state, one after the other; say what is wrong.

    Args:
        checkpoint: an ``iter_`` folder.
        group: one of ``grouped`` of its chunks.
        compared: is told what was compared.
        index: is told the values of the weight.
    """
    try:
        weight = read_chunk(checkpoint, group.weight)
    except DamagedItem as damage:
        found, known = [str(damage)], None
    else:
        found, known = _of_values(group.weight.name, weight), weight
        if index is not None:
            index.add(group.weight.name, weight)
    for state, chunk in group.states:
        try:
            values = read_chunk(checkpoint, chunk)
        except DamagedItem as damage:
            found.append(str(damage))
            continue
        found += _of_values(chunk.name, values, is_square=state in _SQUARES)
        if state in _MASTERS and known is not None:
            compared.weights.add(group.weight.name)
            if not _is_copy(values, known):
                compared.other.add(group.weight.name)
    return found


def _of_values(name: str, values: torch.Tensor, **options: bool) -> list[str]:
    return list(filter(None, [value_problem(name, values, **options)]))


def _is_copy(master: torch.Tensor, weight: torch.Tensor) -> bool:
    """Check that a master copy, rounded to the weight's type, is the weight bit for bit."""
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = integers[weight.element_size()]
    rounded = master.to(weight.dtype).contiguous().view(kind)
    return torch.equal(rounded, weight.contiguous().view(kind))


# --- what it means -------------------------------------------------------------------------------


def state_problems(chunks: Mapping[str, Sequence[Chunk]]) -> list[str]:
    """Weights that lack a part of their optimizer state that others have, and state of no weight.

    Args:
        chunks: ``chunks_of`` a checkpoint.
    """
    by_state: dict[str, set[str]] = {}
    for name in chunks:
        if match := _STATE.fullmatch(name):
            by_state.setdefault(match[1], set()).add(match[2])
    weights = {name for name in chunks if not OPTIMIZER.match(name)}
    found = [
        f"{weight} is missing, and its optimizer state ({state}) is there"
        for state, names in sorted(by_state.items())
        for weight in sorted(names - weights)
    ]
    moments = {state: names for state, names in by_state.items() if state not in _MASTERS}
    known = set().union(*moments.values()) & weights if moments else set()
    kinds = {
        weight: frozenset(state for state, names in moments.items() if weight in names)
        for weight in known
    }
    # Optimizers with moments of other kinds may share the weights of a model.
    for weight in sorted(known):
        more = {state for other in kinds.values() if kinds[weight] < other for state in other}
        found += [
            f"{weight} has no {state} in the optimizer state, and has other parts of it"
            for state in sorted(more - kinds[weight])
        ]
    masters = set().union(*(by_state.get(state, set()) for state in _MASTERS))
    if masters:
        # In a run of fp32 without the distributed optimizer the weights are their own copies, as
        # are single weights of 32 bits among others.
        found += [
            f"{weight} has no master copy in the optimizer state, and has other parts of it"
            for weight in sorted(known - masters)
            if chunks[weight][0].dtype.itemsize < 4
        ]
    return found


def master_problems(compared: Compared, facts: Facts | None) -> list[str]:
    """One sentence on the weights that are not their master copies, and what can be done.

    Args:
        compared: what was found.
        facts: of the checkpoint, if it could be read.
    """
    if not compared.other:
        return []
    names = sorted(compared.other)
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    text = (
        f"the optimizer's master copies, rounded, are not the weights: {len(names)} of "
        f"{len(compared.weights)} differ ({shown})"
    )
    return [f"{text}. {SHIFTED}" if facts is not None and _may_be_shifted(facts) else text]


def _may_be_shifted(facts: Facts) -> bool:
    content: Any = facts.state.get("content_metadata")
    kind = content.get("distrib_optim_sharding_type") if isinstance(content, dict) else None
    return kind == "fully_reshardable" and bool(facts.argument("overlap_grad_reduce"))
