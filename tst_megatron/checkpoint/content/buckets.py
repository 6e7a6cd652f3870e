"""The optimizer's state against the weights, where it is stored as the buckets of the optimizer.

This is Megatron's default for its distributed optimizer. A bucket is a row of numbers: the master
copies of some weights one behind the other, each beginning at a multiple of 64, in an order that
only the model knows. A checkpoint does not say which weight is where, so it is found by content: at
each place the rounded values are looked up among the weights. Example, of two weights::

    bucket    | copy of output_layer.weight | 16 of k_layernorm | 48 unused | ...

What lies between the copies was never written and may be anything, also in the moments, which are
looked at only where a copy was found.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tst_megatron.checkpoint.content.values import Chunk, read_chunk, value_problem

if TYPE_CHECKING:
    import torch

_BUCKET = re.compile(
    r"(.*optimizer\.distributed\..*\.dtype_\(torch\.(\w+), torch\.\w+\)\.bucket_idx_\d+)\.(\w+)"
)
_MASTER = "param"
_SQUARES = "exp_avg_sq"

_PREFIX = 16
"""Values by which a weight is looked up."""

_ALIGNMENT = 64
"""Megatron starts each weight at a multiple of it."""


@dataclass(slots=True)
class WeightIndex:
    """The weights of a checkpoint, by how their values begin; filled from several threads."""

    by_prefix: dict[bytes, set[tuple[int, int]]] = field(default_factory=dict)
    """First values -> number of values and checksum of those that begin so."""
    names: dict[tuple[int, int], set[str]] = field(default_factory=dict)
    lengths: set[int] = field(default_factory=set)
    """Number of first values: fewer of weights that have fewer."""
    found: set[tuple[int, int]] = field(default_factory=set)

    def add(self, name: str, weight: torch.Tensor) -> None:
        """Take in one stored chunk of a weight; a router's bias is no parameter and has no copy."""
        if weight.numel() and not name.endswith(".expert_bias"):
            flat = weight.contiguous().flatten()
            key = flat.numel(), _checksum(flat)
            self.by_prefix.setdefault(_raw(flat[:_PREFIX]), set()).add(key)
            self.lengths.add(min(_PREFIX, flat.numel()))
            self.names.setdefault(key, set()).add(name)

    def without_copy(self) -> list[str]:
        """Weights of which a chunk was found in no bucket."""
        missing = self.names.keys() - self.found
        return sorted({name for key in missing for name in self.names[key]})


def _raw(values: torch.Tensor) -> bytes:
    import torch

    return values.view(torch.uint8).numpy().tobytes()


def _checksum(values: torch.Tensor) -> int:
    import torch

    return zlib.crc32(values.view(torch.uint8).numpy())


@dataclass(frozen=True, slots=True)
class Bucket:
    """The stored state of one bucket, each part a list of chunks in order."""

    name: str
    dtype: str
    """Of the weights."""
    states: Mapping[str, Sequence[Chunk]]

    @property
    def num_bytes(self) -> int:
        """That it takes in the shards."""
        return sum(chunk.num_bytes for part in self.states.values() for chunk in part)

    @property
    def memory(self) -> int:
        """That checking it takes: it is read a chunk at a time, and a copy may span several."""
        return 2 * max((chunk.memory for part in self.states.values() for chunk in part), default=0)


def buckets_of(chunks: Mapping[str, Sequence[Chunk]]) -> list[Bucket]:
    """The buckets of a checkpoint; none where it has another format.

    Args:
        chunks: ``chunks_of`` a checkpoint.
    """
    found: dict[tuple[str, str], dict[str, Sequence[Chunk]]] = {}
    for name, parts in chunks.items():
        if match := _BUCKET.fullmatch(name):
            ordered = sorted(parts, key=lambda chunk: chunk.offsets)
            found.setdefault((match[1], match[2]), {})[match[3]] = ordered
    return [Bucket(name, dtype, states) for (name, dtype), states in found.items()]


def check_bucket(checkpoint: Path, bucket: Bucket, weights: WeightIndex) -> tuple[list[str], int]:
    """Find the master copies of a bucket among the weights, and look at the moments there.

    Args:
        checkpoint: an ``iter_`` folder.
        bucket: one of ``buckets_of`` it.
        weights: all of the checkpoint's.

    Returns:
        What is wrong with the moments, and how many values are the copy of no weight.

    Raises:
        DamagedItem: an item is not what was saved.
    """
    import torch

    master = _Row(checkpoint, bucket.states.get(_MASTER, ()), getattr(torch, bucket.dtype))
    regions, num_strange = [], 0
    while (position := master.position) < master.end:
        if number := _copy_at(master, weights):
            regions.append((position, position + number))
            master.skip(number)
            continue
        number = min(_ALIGNMENT - position % _ALIGNMENT, master.end - position)
        # Up to the next multiple there may be padding.
        num_strange += number if position % _ALIGNMENT == 0 else 0
        master.skip(number)
    found: list[str] = []
    for state, parts in bucket.states.items():
        if state != _MASTER:
            found += _moment_problems(checkpoint, parts, regions, is_square=state == _SQUARES)
    return found, num_strange


def _copy_at(master: _Row, weights: WeightIndex) -> int:
    """Count the values from here on that are the rounded copy of a weight; 0 if of none."""
    for length in sorted(weights.lengths, reverse=True):
        prefix = master.ahead(length)
        keys = weights.by_prefix.get(_raw(prefix), ()) if len(prefix) == length else ()
        for key in sorted(keys, reverse=True):
            values = master.ahead(key[0])
            if (len(values), _checksum(values)) == key:
                weights.found.add(key)
                return key[0]
    return 0


class _Row:
    """A long row of numbers that is stored in chunks, read from its start on, rounded."""

    def __init__(self, checkpoint: Path, chunks: Sequence[Chunk], dtype: torch.dtype) -> None:
        import torch

        self._checkpoint, self._chunks = checkpoint, chunks
        self._num_read = 0
        self._values = torch.empty(0, dtype=dtype)
        self.position = 0
        self.end = chunks[-1].offsets[0] + chunks[-1].sizes[0] if chunks else 0

    def ahead(self, number: int) -> torch.Tensor:
        """The next values, or as many as are left."""
        import torch

        parts, have = [self._values], len(self._values)
        while have < number and self._num_read < len(self._chunks):
            values = read_chunk(self._checkpoint, self._chunks[self._num_read])
            parts.append(values.to(self._values.dtype))
            have += len(values)
            self._num_read += 1
        if len(parts) > 1:
            self._values = torch.cat(parts)
        return self._values[:number]

    def skip(self, number: int) -> None:
        """Go on behind the next values."""
        self.ahead(number)
        self._values = self._values[number:]
        self.position += number


def _moment_problems(
    checkpoint: Path,
    chunks: Sequence[Chunk],
    regions: Sequence[tuple[int, int]],
    *,
    is_square: bool,
) -> Iterator[str]:
    number = 0
    for chunk in chunks:
        values = read_chunk(checkpoint, chunk)
        start, end = chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]
        while number < len(regions) and regions[number][1] <= start:
            number += 1
        for low, high in regions[number:]:
            if low >= end:
                break
            part = values[max(low, start) - start : min(high, end) - start]
            if problem := value_problem(chunk.name, part, is_square=is_square):
                yield problem
