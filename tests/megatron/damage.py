"""Checkpoints that lack something, or hold damaged bytes."""

import io
import os
import pickle
import shlex
from pathlib import Path

import torch


def without(checkpoint: Path, key: str) -> None:
    """Take a tensor out of a checkpoint's description."""
    file = checkpoint / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    del metadata.state_dict_metadata[key]
    for index in [index for index in metadata.storage_data if index.fqn == key]:
        del metadata.storage_data[index]
    file.write_bytes(pickle.dumps(metadata))


def without_a_part(checkpoint: Path, key: str) -> None:
    """Let the description forget one of the pieces in which ranks saved a tensor."""
    file = checkpoint / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    gone = metadata.state_dict_metadata[key].chunks.pop()
    for index in [i for i in metadata.storage_data if (i.fqn, i.offset) == (key, gone.offsets)]:
        del metadata.storage_data[index]
    file.write_bytes(pickle.dumps(metadata))


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
    with (checkpoint / place.relative_path).open("ab") as shard:
        place.offset, place.length = shard.tell(), len(archive.getvalue())
        shard.write(archive.getvalue())
    file.write_bytes(pickle.dumps(metadata))


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
