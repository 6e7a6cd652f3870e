"""Read ``.metadata``, the pickle in which a checkpoint says where each stored item is."""

from __future__ import annotations

import errno
import functools
import importlib
import io
import os
from pathlib import Path
from typing import Any

from tst_megatron.system.paths import is_own_name
from tst_megatron.system.pickles.restricted_unpickler import (
    Class,
    Function,
    Names,
    Refused,
    enum_of,
    unpickled,
)
from tst_megatron.system.pickles.torch_pickles import dtypes, layout, paths
from tst_megatron.system.records import read_bytes

_DCP = "torch.distributed.checkpoint"

_DESCRIPTION_CLASSES = {
    f"{_DCP}.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    ),
    f"{_DCP}.filesystem": ("_StorageInfo",),
    # The plans of all ranks, which Megatron keeps with it.
    f"{_DCP}.planner": ("BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem"),
}
_OLD_MODULE = "megatron.core.dist_checkpointing.strategies.torch"
_OLD_NAMES = {
    "MCoreMetadata": (f"{_DCP}.metadata", "Metadata"),
    "MCoreSavePlan": (f"{_DCP}.planner", "SavePlan"),
}
"""Names that Megatron-Core up to 0.15 wrote in place of torch's own."""
_DESCRIPTION_ENUMS = {
    f"{_DCP}.metadata": ("_MEM_FORMAT_ENCODING",),
    f"{_DCP}.planner": ("WriteItemType",),
}


@functools.cache
def description_names() -> Names:
    """Return the names that ``.metadata`` may use."""
    # Takes seconds to import, and most commands do not need it.
    import torch

    names: dict[tuple[str, str], Any] = {
        **paths(),
        ("torch", "Size"): Function(torch.Size),
        ("torch.serialization", "_get_layout"): Function(layout),
        **dtypes(),
    }
    for module, classes in _DESCRIPTION_CLASSES.items():
        for name in classes:
            names[module, name] = Class(getattr(importlib.import_module(module), name))
    for old, new in _OLD_NAMES.items():
        names[_OLD_MODULE, old] = names[new]
    for module, enums in _DESCRIPTION_ENUMS.items():
        for name in enums:
            names[module, name] = enum_of(getattr(importlib.import_module(module), name))
    return names


def read_description(checkpoint: Path) -> Any:
    """Read ``.metadata`` of a ``torch_dist`` checkpoint: torch's ``Metadata``.

    Args:
        checkpoint: its folder, or the file itself.

    Raises:
        Exception: a damaged pickle raises whatever its bytes happen to mean.
    """
    file = checkpoint if checkpoint.is_file() else checkpoint / ".metadata"
    data = read_bytes(file)
    if data is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))
    stream = io.BytesIO(data)
    found = unpickled(stream, description_names())
    if stream.tell() != len(data):
        raise Refused(f"it ends at byte {stream.tell():,} of {len(data):,}")
    _require_description(found)
    return found


def _require_description(found: Any) -> None:
    """Refuse a description whose parts are not of the types that torch reads them as."""
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        Metadata,
        TensorStorageMetadata,
    )

    items, places = found.state_dict_metadata, found.storage_data
    if type(found) is not Metadata or type(items) is not dict or type(places) is not dict:
        raise Refused("it is no description of a checkpoint")
    stored: dict[str, set[Any]] = {}
    for index, place in places.items():
        _require_place(index, place)
        stored.setdefault(index.fqn, set()).add(index.offset)
    if stored.keys() != items.keys():
        name = min(stored.keys() ^ items.keys())
        raise Refused(f"{name} is {'not stored' if name in items else 'stored and not described'}")
    for name, item in items.items():
        if type(name) is not str or type(item) not in (BytesStorageMetadata, TensorStorageMetadata):
            raise Refused("it names what is no item of a checkpoint")
        if type(item) is TensorStorageMetadata:
            _require_tensor(name, item, stored[name])


def _require_place(index: Any, place: Any) -> None:
    """Refuse a place outside the files of the checkpoint."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import MetadataIndex

    if type(index) is not MetadataIndex or type(place) is not _StorageInfo:
        raise Refused("it places what is no item of a checkpoint")
    name, numbers = place.relative_path, (place.offset, place.length)
    # A path with folders would lead to a file of somebody else.
    if not is_own_name(name):
        raise Refused(f"{index.fqn} is said to be in {name!r}, which is no file beside it")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise Refused(f"{index.fqn} is said to be at {numbers}")
    if place.transform_descriptors:
        raise Refused(f"{index.fqn} is packed in a way that no checkpoint is")


def _require_tensor(name: str, item: Any, stored: Any) -> None:
    """Refuse a tensor with a part outside its shape, or with other parts than are stored."""
    import torch

    if type(item.size) is not torch.Size or type(item.properties.dtype) is not torch.dtype:
        raise Refused(f"{name} has no shape or no type")
    for chunk in item.chunks:
        ends = [start + size for start, size in zip(chunk.offsets, chunk.sizes, strict=True)]
        if len(ends) != len(item.size) or any(
            not 0 <= start <= end <= whole
            for start, end, whole in zip(chunk.offsets, ends, item.size, strict=True)
        ):
            raise Refused(f"{name} has a part outside its shape {tuple(item.size)}")
    if {chunk.offsets for chunk in item.chunks} != stored:
        raise Refused(f"{name} has other parts than those that are stored of it")
