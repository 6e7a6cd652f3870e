"""Read the weights of a distributed checkpoint one at a time, in bounded memory.

Megatron loads a model as one. Here a model is built on the meta device, which says how Megatron
names and cuts each weight, and only the weights that are asked for are in memory. The parallel
sizes that wrote the checkpoint do not matter: a weight is put together from every stored chunk that
overlaps with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from tst_megatron.megatron.distributed_checkpoint.reading import Unreadable, load_tensor, read_item
from tst_megatron.system.pickles.metadata_file import read_description


def shards_of(entry: Any) -> list[Any]:
    """List the ``ShardedTensor``s that a checkpoint stores for one weight, in order.

    Args:
        entry: a value of ``sharded_weights``: a tensor, or a factory that cuts one into several, as
            Megatron keeps gate and up apart.
    """
    built = entry.build() if isinstance(entry, ShardedTensorFactory) else entry
    shards = [built] if isinstance(built, ShardedTensor) else list(nested_values(built))
    return [shard for shard in shards if isinstance(shard, ShardedTensor)]


_NORMS_BEFORE_EXPERTS = (".mlp.linear_fc1.layer_norm_", ".pre_mlp_layernorm.")


def rename_norms(weights: Iterable[Any], stored: Container[str]) -> None:
    """Let the norms before experts have the names under which a checkpoint has them.

    Megatron's local layers save such a norm as a part of the linear layer that follows, whatever
    that layer is. Transformer Engine fuses the two in dense layers alone, and keeps
    ``pre_mlp_layernorm`` in MoE layers. Remove when the local specification tells them apart.

    Args:
        weights: what a model asks a checkpoint for; changed in place.
        stored: names of the tensors in the checkpoint.
    """
    for shard in (each for each in weights if isinstance(each, ShardedTensor)):
        if shard.key in stored:
            continue
        for own, other in itertools.permutations(_NORMS_BEFORE_EXPERTS):
            name = shard.key.replace(own, other)
            if name != shard.key and name in stored:
                shard.key = name
                break


def _joined(entry: Any, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join a weight from the tensors of its shards."""
    if not isinstance(entry, ShardedTensorFactory):
        return parts[0]
    built = entry.build()
    # The factory joins what it cut in the same form: a dictionary or a list.
    loaded = dict(zip(built, parts, strict=True)) if isinstance(built, dict) else list(parts)
    weight: torch.Tensor = entry.merge_fn(loaded)
    return weight


class SavedWeights:
    """The weights of a model in a checkpoint, which any parallel sizes may have written."""

    def __init__(self, folder: Path, weights: Mapping[str, Any]) -> None:
        """Read the places of all weights, and no tensor.

        Args:
            folder: one ``torch_dist`` checkpoint.
            weights: ``sharded_weights`` of the model, which may be on the meta device.
        """
        self.folder = folder
        self._entries = {
            name: entry
            for name, entry in weights.items()
            if isinstance(entry, ShardedTensor | ShardedTensorFactory)
        }
        metadata = read_description(folder)
        self._stored: dict[str, TensorStorageMetadata] = {
            key: value
            for key, value in metadata.state_dict_metadata.items()
            if isinstance(value, TensorStorageMetadata)
        }
        rename_norms(self._entries.values(), self._stored)
        self._places: Mapping[Any, Any] = metadata.storage_data
        self._chunks: dict[str, dict[tuple[int, ...], list[Any]]] = {}

    def names(self) -> list[str]:
        """List every weight of the model, by its name in Megatron."""
        return list(self._entries)

    def problems(self) -> list[str]:
        """List each tensor that the model needs and the checkpoint lacks or has otherwise."""
        needed = {
            shard.key: (tuple(shard.global_shape), shard.allow_shape_mismatch)
            for entry in self._entries.values()
            for shard in shards_of(entry)
        }
        found = []
        for key, (shape, may_be_padded) in sorted(needed.items()):
            if key not in self._stored:
                found.append(f"{key} is missing")
            elif (size := tuple(self._stored[key].size)) != shape and not may_be_padded:
                found.append(f"{key} is {size} and should be {shape}")
            elif self._holes(key, size):
                found.append(f"{key} has parts that no rank saved")
        return found

    def _holes(self, key: str, shape: tuple[int, ...]) -> bool:
        stored = {tuple(chunk.offsets): chunk.sizes for chunk in self._stored[key].chunks}
        return sum(size.numel() for size in stored.values()) < torch.Size(shape).numel()

    def dtype(self, name: str) -> torch.dtype:
        """Return the type that a weight was saved in."""
        dtype: torch.dtype = self._stored[shards_of(self._entries[name])[0].key].properties.dtype
        return dtype

    def read(self, name: str) -> torch.Tensor:
        """Read one weight, in the type that it was saved in.

        Args:
            name: one of ``names()``.

        Raises:
            ValueError: its bytes cannot be read.
        """
        entry = self._entries[name]
        return _joined(entry, [self._read_shard(shard) for shard in shards_of(entry)])

    def _read_shard(self, shard: Any) -> torch.Tensor:
        """Fill one shard from every stored chunk that overlaps with it."""
        axes = shard.prepend_axis_num
        sizes = (1,) * axes + tuple(shard.local_shape)
        chunks = self._chunks_near(shard.key, tuple(shard.global_offset[:axes]))
        if len(chunks) == 1 and tuple(chunks[0].sizes) == sizes:
            # Most shards were saved uncut: no second copy is made of them.
            return self._read_chunk(shard.key, chunks[0]).reshape(tuple(shard.local_shape))
        target = torch.empty(sizes, dtype=self._stored[shard.key].properties.dtype)
        for chunk in chunks:
            overlap = _overlap(shard.global_offset, sizes, chunk.offsets, chunk.sizes)
            if overlap is not None:
                into, of = overlap
                target[into] = self._read_chunk(shard.key, chunk)[of]
        return target.reshape(tuple(shard.local_shape))

    def _chunks_near(self, key: str, leading: tuple[int, ...]) -> list[Any]:
        """List the stored chunks of one layer (and expert) of a tensor that holds all layers."""
        if key not in self._chunks:
            by_leading: dict[tuple[int, ...], list[Any]] = {}
            for chunk in self._stored[key].chunks:
                covered = (
                    range(start, start + size)
                    for start, size in zip(
                        chunk.offsets[: len(leading)], chunk.sizes[: len(leading)], strict=True
                    )
                )
                for place in product(*covered):
                    by_leading.setdefault(place, []).append(chunk)
            self._chunks[key] = by_leading
        return self._chunks[key].get(leading, [])

    def _read_chunk(self, key: str, chunk: Any) -> torch.Tensor:
        place = self._places[MetadataIndex(key, chunk.offsets)]
        file = self.folder / place.relative_path
        try:
            with file.open("rb") as stream:
                return load_tensor(read_item(stream, place, key), chunk.sizes).detach()
        except (Exception, Unreadable) as error:
            # Damaged bytes raise whatever they happen to mean.
            raise ValueError(
                f"{file}: {key} cannot be read ({type(error).__name__}: {error}). See what is "
                f"damaged with `tst-megatron checkpoint verify {self.folder.parent}`"
            ) from error


def _overlap(
    offsets: Sequence[int], sizes: Sequence[int], of_offsets: Sequence[int], of_sizes: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Return the overlap of two boxes of one tensor as slices of each, or None.

    Example in one dimension: [0, 4) and [2, 6) give slice(2, 4) of the first and slice(0, 2) of the
    second.
    """
    into, of = [], []
    for start, size, of_start, of_size in zip(offsets, sizes, of_offsets, of_sizes, strict=True):
        low, high = max(start, of_start), min(start + size, of_start + of_size)
        if low >= high:
            return None
        into.append(slice(low - start, high - start))
        of.append(slice(low - of_start, high - of_start))
    return tuple(into), tuple(of)
