"""Checkpoints that lack something, or hold damaged bytes."""

import io
import os
import pickle
import shlex
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
)

from tst_megatron.checkpoint.record import RECORD


def without(checkpoint: Path, key: str) -> None:
    """Take a tensor out of a checkpoint, as if it had never been saved."""
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    del metadata.state_dict_metadata[key]
    _forget(checkpoint, metadata, [index for index in metadata.storage_data if index.fqn == key])


def without_a_part(checkpoint: Path, key: str) -> None:
    """Let the description forget one of the pieces in which ranks saved a tensor."""
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    gone = metadata.state_dict_metadata[key].chunks.pop()
    _forget(
        checkpoint,
        metadata,
        [i for i in metadata.storage_data if (i.fqn, i.offset) == (key, gone.offsets)],
    )


def _forget(checkpoint: Path, metadata: Metadata, items: list[MetadataIndex]) -> None:
    """Let their bytes be those of something that no model asks for; the shard stays whole."""
    for number, index in enumerate(items):
        name = f"unused.{index.fqn}/shard_{number}_{len(items)}"
        metadata.state_dict_metadata[name] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex(name)] = metadata.storage_data.pop(index)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    (checkpoint / RECORD).unlink(missing_ok=True)


def overwrite(checkpoint: Path, key: str) -> None:
    """Zero the bytes of whatever is stored under names that begin so."""
    places = pickle.loads((checkpoint / ".metadata").read_bytes()).storage_data
    for place in [place for index, place in places.items() if index.fqn.startswith(key)]:
        with (checkpoint / place.relative_path).open("r+b") as shard:
            shard.seek(place.offset)
            shard.write(b"\0" * place.length)


def flip(checkpoint: Path, key: str) -> None:
    """Change one bit in the middle of what is stored under names that begin so."""
    places = pickle.loads((checkpoint / ".metadata").read_bytes()).storage_data
    place = next(place for index, place in places.items() if index.fqn.startswith(key))
    content = bytearray((checkpoint / place.relative_path).read_bytes())
    content[place.offset + place.length // 2] ^= 4
    (checkpoint / place.relative_path).write_bytes(content)


def replace(checkpoint: Path, key: str, content: object) -> None:
    """Let an item be something else, with the checksums of a whole one."""
    file = checkpoint / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    place = next(place for i, place in metadata.storage_data.items() if i.fqn.startswith(key))
    archive = io.BytesIO()
    torch.save(content, archive)
    shard = checkpoint / place.relative_path
    before = shard.read_bytes()
    end = place.offset + place.length
    shard.write_bytes(before[: place.offset] + archive.getvalue() + before[end:])
    for other in metadata.storage_data.values():
        if other.relative_path == place.relative_path and other.offset >= end:
            other.offset += len(archive.getvalue()) - place.length
    place.length = len(archive.getvalue())
    file.write_bytes(pickle.dumps(metadata))
    (checkpoint / RECORD).unlink(missing_ok=True)


class Touch:
    """An object whose pickle runs a command, which makes a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {shlex.quote(str(self._file))}",)


def with_a_command(checkpoint: Path, where: str, file: Path) -> None:
    """Hide a command in a checkpoint: in its description, or in an item of this name."""
    if where == ".metadata":
        content = (checkpoint / where).read_bytes()
        command = pickle.dumps(Touch(file), protocol=0).removesuffix(b".") + b"0"
        (checkpoint / where).write_bytes(command + content)
    else:
        replace(checkpoint, where, [Touch(file)])
