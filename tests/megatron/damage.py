"""Checkpoints that lack something, or hold damaged bytes."""

import pickle
from pathlib import Path


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
