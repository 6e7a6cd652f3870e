"""Read checkpoints so that nothing in them can run and every byte is checked before it is used.

Torch and Megatron unpickle what they read without looking at it, and compare no checksum although
``torch.save`` stores one of every record. ``read_checked`` puts our reading in the place of theirs
for the rest of the process. Every module through which a checkpoint can be loaded calls it when it
is imported, so that no command can forget it (``tests/unit/megatron/test_loads_are_checked.py``).

    FileSystemReader.read_metadata    .metadata            names are listed, its tables agree
    FileSystemReader.read_data        tensors, objects     checksums and shapes are compared
    DefaultLoadPlanner.load_bytes     objects              names are listed
    load_common                       common.pt            names are listed
    maybe_load_config                 metadata.json        any error is said of the file

Remove each line when upstream reads so itself. ``test_upstream_contract.py`` pins what is replaced.
"""

from __future__ import annotations

import functools
import importlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint._nested_dict import set_element  # type: ignore[attr-defined]
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType
from torch.futures import Future

from tst_megatron.megatron import names
from tst_megatron.megatron.repairs.wrapping import wrap
from tst_megatron.system.pickles.metadata_file import read_description
from tst_megatron.system.pickles.restricted_unpickler import Class, Refused, enum_of
from tst_megatron.system.pickles.torch_archive import archive_problem
from tst_megatron.system.pickles.torch_pickles import (
    ENUMS,
    EXTRA_STATE,
    NAMED_TUPLES,
    check_extra_states,
    load_archive,
)


class Unreadable(CheckpointException):
    """A file of a checkpoint is not what was saved.

    No ``Exception``: torch takes one of ``.metadata`` for its absence, and looks for another file.
    """

    def __init__(self, words: str) -> None:
        """Say in ``words`` which file it is, and what is wrong with it."""
        super().__init__(words, {})

    def __str__(self) -> str:
        """The words alone: torch's lists the failures of all ranks."""
        return str(self.args[0])

    def __reduce__(self) -> Any:
        """As torch makes it again on the ranks that it tells."""
        return Unreadable, (self.args[0],)


def read_checked() -> None:
    """Let this process read checkpoints with every check; a second call changes nothing."""
    wrap(FileSystemReader, "read_metadata", _of_listed_names)
    wrap(FileSystemReader, "read_data", _with_checksums)
    wrap(DefaultLoadPlanner, "load_bytes", _objects_of_listed_names)
    # Under both names that Megatron calls it by.
    for module in (names.dist_common, names.dist_serialization):
        wrap(module, "load_common", _legacy_of_listed_names)
    wrap(names.dist_core, "maybe_load_config", _config_in_words)
    wrap(names.dist_validation, "_verify_integrity_manifest_impl", _in_words)


def read_item(stream: BinaryIO, place: Any, name: str) -> io.BytesIO:
    """Read the archive of one stored item and compare its checksums.

    Args:
        stream: its file.
        place: torch's record of the item's place in it.
        name: of the item.

    Raises:
        Unreadable: it is damaged.
    """
    stream.seek(place.offset)
    data = io.BytesIO(stream.read(place.length))
    try:
        found = archive_problem(data)
    except Exception as error:
        # A damaged header raises whatever its bytes happen to mean.
        found = str(error).partition("\n")[0] or type(error).__name__
    if found:
        raise Unreadable(f"{place.relative_path}: {name} is damaged ({found})")
    data.seek(0)
    return data


def load_tensor(data: BinaryIO, shape: Any) -> torch.Tensor:
    """Load the tensor in an archive, on the CPU.

    Raises:
        Refused: it holds no tensor, or one of another shape.
    """
    tensor = load_archive(data, map_location="cpu")
    if not isinstance(tensor, torch.Tensor):
        raise Refused(f"it holds a {type(tensor).__name__} in the place of a tensor")
    if tensor.shape != shape:
        raise Refused(f"it is {tuple(tensor.shape)}, and .metadata says {tuple(shape)}")
    return tensor


@functools.cache
def state_names() -> Mapping[tuple[str, str], Any]:
    """List the classes that Megatron's objects may name, beside those that ``torch.save`` names."""
    listed: dict[tuple[str, str], Any] = {}
    for module, kinds in ENUMS.items():
        for kind in kinds:
            if (real := getattr(importlib.import_module(module), kind, None)) is not None:
                listed[module, kind] = enum_of(real)
    for module, kinds in NAMED_TUPLES.items():
        for kind in kinds:
            real = getattr(importlib.import_module(module), kind)
            listed[module, kind] = Class(real, takes_values=True)
    return listed


def _of_listed_names(read_metadata: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(read_metadata)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        file = Path(self._get_metadata_path(kwargs.get("rank")))
        try:
            metadata = read_description(file)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise Unreadable(f"{file.name} cannot be read ({_words(error)})") from error
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    return wrapper


def _with_checksums(read_data: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(read_data)
    def wrapper(self: Any, plan: Any, planner: Any) -> Any:
        files: dict[str, list[Any]] = {}
        for item in plan.items:
            place = self.storage_data[item.storage_index]
            files.setdefault(place.relative_path, []).append((item, place))
        shapes = _described_shapes(planner.metadata, {item.dest_index.fqn for item in plan.items})
        for name, items in files.items():
            with self.fs.create_stream(self.fs.concat_path(self.path, name), "rb") as stream:
                for item, place in items:
                    data = read_item(stream, place, item.dest_index.fqn)
                    try:
                        _give(planner, item, data, shapes)
                    except Exception as error:
                        raise Unreadable(
                            f"{name}: {item.dest_index.fqn} cannot be read ({_words(error)})"
                        ) from error
        done: Future[None] = Future()
        done.set_result(None)
        return done

    return wrapper


def _described_shapes(metadata: Any, wanted: set[str]) -> dict[tuple[str, Any], Any]:
    """Map each stored chunk of some tensors, by name and offsets, to its shape."""
    return {
        (name, chunk.offsets): chunk.sizes
        for name in wanted
        for chunk in getattr(metadata.state_dict_metadata.get(name), "chunks", ())
    }


def _give(planner: Any, item: Any, data: io.BytesIO, shapes: Mapping[Any, Any]) -> None:
    """Give one item to the planner that asked for it, as torch does."""
    if item.type == LoadItemType.BYTE_IO:
        planner.load_bytes(item, data)
        return
    index = item.storage_index
    tensor = load_tensor(data, shapes[index.fqn, index.offset])
    part = narrow_tensor_by_index(tensor, item.storage_offsets, item.lengths)
    target = planner.resolve_tensor(item).detach()
    if target.shape != part.shape:
        raise Refused(f"it is {tuple(part.shape)}, and {tuple(target.shape)} was asked for")
    target.copy_(part)
    planner.commit_tensor(item, target)


def _objects_of_listed_names(load_bytes: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load_bytes)
    def wrapper(self: Any, read_item: Any, value: BinaryIO) -> None:
        name = read_item.dest_index.fqn
        loaded = load_archive(value, state_names())
        if EXTRA_STATE in name:
            # Transformer Engine unpickles these bytes once more.
            check_extra_states(loaded)
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], loaded)
        else:
            self.state_dict[name] = loaded

    return wrapper


def _legacy_of_listed_names(load_common: Callable[..., Any]) -> Callable[..., Any]:
    """Read ``common.pt``, where older versions of Megatron keep all that is not a tensor."""

    @functools.wraps(load_common)
    def wrapper(checkpoint_dir: Any) -> Any:
        file = Path(checkpoint_dir) / names.dist_common.COMMON_STATE_FNAME
        try:
            data = io.BytesIO(file.read_bytes())
            if found := archive_problem(data):
                raise Refused(found)
            data.seek(0)
            return load_archive(data, state_names(), map_location="cpu")
        except FileNotFoundError:
            raise
        except Exception as error:
            raise Unreadable(f"{file.name} cannot be read ({_words(error)})") from error

    return wrapper


def _config_in_words(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def wrapper(checkpoint_dir: Any) -> Any:
        try:
            return load(checkpoint_dir)
        except Exception as error:
            raise Unreadable(f"metadata.json cannot be read ({_words(error)})") from error

    return wrapper


def _in_words(verify: Callable[..., Any]) -> Callable[..., Any]:
    """Raise every error as ``CheckpointingException``, the only kind that rank 0 tells the others.

    On another error they would wait for ever; example: a manifest that lost its list. Remove when
    rank 0 tells them of all.
    """

    @functools.wraps(verify)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return verify(*args, **kwargs)
        except names.CheckpointingException:
            raise
        except Exception as error:
            raise names.CheckpointingException(
                f"integrity.json cannot be read ({_words(error)})"
            ) from error

    return wrapper


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
