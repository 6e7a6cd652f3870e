"""The weights of a distributed checkpoint, read and written one at a time, in bounded memory.

Megatron loads and saves a whole model at once. Here a model is built on the meta device, which says
how Megatron names and cuts each weight, and only the weights that are asked for are in memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensorFactory
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save

from tst_megatron.megatron.distributed_checkpoint.reading import Unreadable, load_tensor, read_item
from tst_megatron.system.pickles.metadata_file import read_description


def shards_of(entry: Any) -> list[Any]:
    """The ``ShardedTensor``s that a checkpoint stores for one weight, in order.

    Args:
        entry: a value of ``sharded_weights``: a tensor, or a factory that cuts one into several, as
            Megatron keeps gate and up apart.
    """
    built = entry.build() if isinstance(entry, ShardedTensorFactory) else entry
    shards = [built] if isinstance(built, ShardedTensor) else list(nested_values(built))
    return [shard for shard in shards if isinstance(shard, ShardedTensor)]


def _whole(entry: Any, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """A weight from what its shards hold."""
    if not isinstance(entry, ShardedTensorFactory):
        return parts[0]
    built = entry.build()
    # The factory puts together what it cut, which here is a list; of a dictionary, its values.
    loaded = dict(zip(built, parts, strict=True)) if isinstance(built, dict) else list(parts)
    whole: torch.Tensor = entry.merge_fn(loaded)
    return whole


class SavedWeights:
    """The weights that a checkpoint holds of a model, whatever parallel sizes wrote it."""

    def __init__(self, folder: Path, weights: Mapping[str, Any]) -> None:
        """Read where everything is stored, and no tensor.

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
        self._places: Mapping[Any, Any] = metadata.storage_data
        self._chunks: dict[str, dict[tuple[int, ...], list[Any]]] = {}

    def names(self) -> list[str]:
        """Every weight of the model, by its name in Megatron."""
        return list(self._entries)

    def problems(self) -> list[str]:
        """What the model needs and the checkpoint does not have so; a sentence for each tensor."""
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
        """The type that a weight was saved in."""
        dtype: torch.dtype = self._stored[shards_of(self._entries[name])[0].key].properties.dtype
        return dtype

    def read(self, name: str) -> torch.Tensor:
        """One weight, in the type that it was saved in.

        Args:
            name: one of ``names()``.

        Raises:
            ValueError: its bytes cannot be read.
        """
        entry = self._entries[name]
        return _whole(entry, [self._read_shard(shard) for shard in shards_of(entry)])

    def _read_shard(self, shard: Any) -> torch.Tensor:
        """What one shard covers, from every stored chunk that overlaps with it."""
        axes = shard.prepend_axis_num
        sizes = (1,) * axes + tuple(shard.local_shape)
        chunks = self._chunks_near(shard.key, tuple(shard.global_offset[:axes]))
        if len(chunks) == 1 and tuple(chunks[0].sizes) == sizes:
            # Saved uncut, as most are: no second copy of it.
            return self._read_chunk(shard.key, chunks[0]).reshape(tuple(shard.local_shape))
        target = torch.empty(sizes, dtype=self._stored[shard.key].properties.dtype)
        for chunk in chunks:
            overlap = _overlap(shard.global_offset, sizes, chunk.offsets, chunk.sizes)
            if overlap is not None:
                into, of = overlap
                target[into] = self._read_chunk(shard.key, chunk)[of]
        return target.reshape(tuple(shard.local_shape))

    def _chunks_near(self, key: str, leading: tuple[int, ...]) -> list[Any]:
        """The stored chunks of one layer (and expert) of a tensor that holds all of them."""
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
    """Where two boxes of one tensor overlap, as slices of the first and of the second."""
    into, of = [], []
    for start, size, of_start, of_size in zip(offsets, sizes, of_offsets, of_sizes, strict=True):
        low, high = max(start, of_start), min(start + size, of_start + of_size)
        if low >= high:
            return None
        into.append(slice(low - start, high - start))
        of.append(slice(low - of_start, high - of_start))
    return tuple(into), tuple(of)


# --- writing -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shards:
    """All shards of one stored tensor, as torch's checkpoint writer plans them."""

    shards: Sequence[Any]
    dtypes: Sequence[torch.dtype]

    def __create_write_items__(self, key: str, _: Any) -> list[WriteItem]:
        return [
            WriteItem(
                index=_index_of(key, shard, number),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(
                        offsets=torch.Size(shard.global_offset), sizes=_sizes_of(shard)
                    ),
                    properties=TensorProperties(dtype=dtype),
                    size=torch.Size(shard.global_shape),
                ),
            )
            for number, (shard, dtype) in enumerate(zip(self.shards, self.dtypes, strict=True))
        ]


def _index_of(key: str, shard: Any, number: int) -> MetadataIndex:
    return MetadataIndex(key, torch.Size(shard.global_offset), number)


def _sizes_of(shard: Any) -> torch.Size:
    return torch.Size((1,) * shard.prepend_axis_num + tuple(shard.local_shape))


class _OneByOne(DefaultSavePlanner):
    """Makes each tensor when it is written, and not before."""

    def __init__(self, make: Callable[[MetadataIndex], torch.Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._make = make

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            return io.BytesIO(self.state_dict[write_item.index.fqn].getvalue())
        return self._make(write_item.index)


def write_checkpoint(
    folder: Path,
    weights: Mapping[str, Any],
    read: Callable[[str], torch.Tensor],
    *,
    dtype: Callable[[str], torch.dtype],
    common: Mapping[str, Any],
    aliases: Mapping[str, str],
    on_weight: Callable[[int, int], None] | None = None,
) -> None:
    """Write one ``torch_dist`` checkpoint as Megatron would save this model on one rank.

    Args:
        folder: exists and is empty.
        weights: ``sharded_weights`` of the model on the meta device.
        read: the values of a weight, by its name in Megatron; asked once for each name it is stored
            under.
        dtype: the type of what ``read`` gives.
        common: what a checkpoint holds beside its tensors: ``args``, ``iteration`` and so on.
        aliases: stored name -> another name that the same tensor is stored under too.
        on_weight: told the shards written so far and the shards to write.
    """
    sources: dict[tuple[str, torch.Size], tuple[str, int]] = {}
    grouped: dict[str, list[tuple[Any, torch.dtype]]] = {}
    state: dict[str, Any] = {}
    for name, entry in weights.items():
        if isinstance(entry, ShardedObject):
            state[entry.unique_key] = _bytes_of([entry.data])
            continue
        for part, shard in enumerate(shards_of(entry)):
            for key in filter(None, (shard.key, aliases.get(shard.key))):
                sources[key, torch.Size(shard.global_offset)] = name, part
                grouped.setdefault(key, []).append((shard, dtype(name)))
    for key, pairs in grouped.items():
        state[key] = _Shards(*zip(*pairs, strict=True))
    everything = ShardedObject("common_state", dict(common), (1,), (0,))
    state[everything.unique_key] = _bytes_of([everything.data])
    latest: tuple[str, list[torch.Tensor]] = "", []
    done = 0

    def make(index: MetadataIndex) -> torch.Tensor:
        nonlocal latest, done
        done += 1
        if on_weight is not None:
            on_weight(done, len(sources))
        assert index.offset is not None
        name, part = sources[index.fqn, index.offset]
        if latest[0] != name:
            latest = name, list(_cut(weights[name], read(name)))
        shard = latest[1][part]
        return shard

    save(
        state,
        storage_writer=FileSystemWriter(folder, single_file_per_rank=True, thread_count=1),
        planner=_OneByOne(make),
        no_dist=True,
    )
    save_config(CheckpointingConfig("torch_dist"), str(folder))


def _cut(entry: Any, weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """What each shard of a weight stores, with the axes that Megatron puts in front."""
    if isinstance(entry, ShardedTensorFactory):
        shards = nested_values(entry.build_fn(entry.key, weight, entry.replica_id, None))
    else:
        shards = [_with_data(entry, weight)]
    for shard in shards:
        yield shard.data.reshape(_sizes_of(shard)).contiguous()


def _with_data(entry: Any, weight: torch.Tensor) -> Any:
    if tuple(weight.shape) != tuple(entry.local_shape):
        raise RuntimeError(
            f"{entry.key}: a weight of shape {tuple(weight.shape)} was made where the model has "
            f"{tuple(entry.local_shape)}"
        )
    filled = entry.without_data()
    filled.data, filled.dtype = weight, weight.dtype
    return filled


def _bytes_of(value: Any) -> io.BytesIO:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream
