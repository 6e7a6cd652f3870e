"""Write the weights of a model as a distributed checkpoint, one at a time, in bounded memory.

Megatron saves a model from memory as one. Here the model is on the meta device and says how
Megatron names and cuts each weight. A weight is made when its turn to be written comes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensorFactory
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save

from tst_megatron.megatron.distributed_checkpoint.weights import shards_of


@dataclass(frozen=True, slots=True)
class _Shards:
    """All shards of one stored tensor, in the form that torch's checkpoint writer plans."""

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
    """A plan of a save that makes each tensor when it is written, and not before."""

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
        read: returns the values of a weight, by its name in Megatron; called once for each name
            that the weight is stored under.
        dtype: returns the type of the values that ``read`` returns.
        common: all that a checkpoint holds beside its tensors: ``args``, ``iteration`` and so on.
        aliases: stored name -> another name that the same tensor is stored under too.
        on_weight: called with the shards written so far and the shards to write.
    """
    # For each stored tensor, its shards; for each shard, the weight that it is cut from.
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
    # The shards of one weight are written one after the other: keep the latest weight.
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
        return latest[1][part]

    save(
        state,
        storage_writer=FileSystemWriter(folder, single_file_per_rank=True, thread_count=1),
        planner=_OneByOne(make),
        no_dist=True,
    )
    save_config(CheckpointingConfig("torch_dist"), str(folder))


def _cut(entry: Any, weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """Cut a weight into the tensors of its shards, with the axes that Megatron puts in front."""
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
