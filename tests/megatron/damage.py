"""Checkpoints that lack something, or hold damaged bytes."""

import pickle
from pathlib import Path

from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
)

from tst_megatron.training.checkpoint_record import RECORD


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
        metadata.state_dict_metadata[f"unused/{number}"] = BytesStorageMetadata()
        place = metadata.storage_data.pop(index)
        metadata.storage_data[MetadataIndex(f"unused/{number}")] = place
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    (checkpoint / RECORD).unlink(missing_ok=True)


def overwrite(checkpoint: Path, key: str) -> None:
    """Zero the bytes of whatever is stored under names that begin so."""
    places = pickle.loads((checkpoint / ".metadata").read_bytes()).storage_data
    for place in [place for index, place in places.items() if index.fqn.startswith(key)]:
        with (checkpoint / place.relative_path).open("r+b") as shard:
            shard.seek(place.offset)
            shard.write(b"\0" * place.length)
