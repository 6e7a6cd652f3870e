"""Write a record of a checkpoint when its save is complete, and compare with it later.

Megatron writes checksums of the values, and none of ``.metadata``, which says where the values
are. ``saved.json`` holds hashes of the small files and, of each shard, its size and a hash of the
end of its longest item, where the checksum of that item's values is: so a shard of another
checkpoint is noticed without reading it. Older checkpoints have no such file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tst_megatron.system.files import file_sha256, write_beside
from tst_megatron.system.problems import shortened
from tst_megatron.system.records import read_bytes

RECORD = "saved.json"

MANIFEST = "integrity.json"
"""Hashes of all files of a checkpoint, written last under Megatron's ``verify-integrity``."""

SMALL_FILES = (".metadata", "metadata.json", MANIFEST)

_TAIL_BYTES = 4096


def write_record(checkpoint: Path, places: Mapping[Any, Any], step: int | None) -> None:
    """Write ``saved.json``; for one process, once all others have written their shards.

    Args:
        checkpoint: a complete checkpoint.
        places: torch's ``storage_data``.
        step: optimizer steps that were completed when it was saved; None of imported weights.

    Raises:
        OSError: a file cannot be read or written.
    """
    record = {
        "files": {
            name: file_sha256(checkpoint / name)
            for name in SMALL_FILES
            if (checkpoint / name).exists()
        },
        "shards": {name: _shard(checkpoint, name, *end) for name, end in _ends(places).items()},
        "step": step,
    }
    write_beside(checkpoint / RECORD, _text(record))


def record_problems(checkpoint: Path, places: Mapping[Any, Any], step: int | None) -> list[str]:
    """List what differs from a checkpoint's ``saved.json``; nothing where it has no such file.

    Every byte of that file follows from the checkpoint, so a change in it is noticed too.

    Args:
        checkpoint: an ``iter_`` folder, or ``release``.
        places: torch's ``storage_data``; empty where ``.metadata`` cannot be read.
        step: of the folder's name.
    """
    if not (checkpoint / RECORD).exists():
        return []
    record = _read(checkpoint / RECORD)
    if record is None:
        return [f"{RECORD} is damaged"]
    found = []
    # Imported weights, and a copy of a checkpoint that is to be one, have no step in their name.
    if step is not None and record["step"] != step:
        found.append(f"{RECORD} is of step {record['step']}, and the folder's name of {step}")
    found += _file_problems(checkpoint, record["files"])
    ends, said = _ends(places), record["shards"]
    if places and set(ends) != set(said):
        found.append(f"{RECORD} and .metadata name other shards")
    found += [
        f"{name} is not the one that {RECORD} says was saved"
        for name, end in sorted(ends.items())
        if name in said
        and (checkpoint / name).is_file()
        and said[name] != _shard(checkpoint, name, *end)
    ]
    return shortened(found)


def _read(path: Path) -> dict[str, Any] | None:
    """Return the record; None if the file is not to the last byte as ``write_record`` writes."""
    data = read_bytes(path) or b""
    try:
        record = json.loads(data)
        is_ours = _text(record).encode() == data
        is_ours = is_ours and set(record) == {"files", "shards", "step"}
        is_ours = is_ours and all(isinstance(record[name], dict) for name in ("files", "shards"))
    except (ValueError, RecursionError, TypeError):
        return None
    return record if is_ours else None


def _file_problems(checkpoint: Path, hashes: Mapping[str, str]) -> list[str]:
    found = []
    here = {name for name in SMALL_FILES if (checkpoint / name).exists()}
    for name in sorted(here | set(hashes)):
        if name not in here:
            found.append(f"{ascii(name)[1:-1]} is missing")
        elif not (checkpoint / name).is_file():
            # A pipe would be waited for without an end.
            found.append(f"{name} is no file")
        elif hashes.get(name) != file_sha256(checkpoint / name):
            found.append(f"{name} is not what {RECORD} says it was when it was saved")
    return found


def _text(record: Any) -> str:
    return json.dumps(record, indent=1, sort_keys=True) + "\n"


def _ends(places: Mapping[Any, Any]) -> dict[str, tuple[int, int]]:
    """Return of each shard the length and the end of its longest item, the first of several."""
    longest: dict[str, tuple[int, int]] = {}
    for item in places.values():
        length, start = longest.get(item.relative_path, (0, 0))
        if (item.length, -item.offset) > (length, -start):
            longest[item.relative_path] = item.length, item.offset
    return {name: (length, start + length) for name, (length, start) in longest.items()}


def _shard(checkpoint: Path, name: str, length: int, end: int) -> dict[str, Any]:
    tail = min(length, _TAIL_BYTES)
    with (checkpoint / name).open("rb") as file:
        file.seek(end - tail)
        digest = hashlib.sha256(file.read(tail)).hexdigest()
    return {"bytes": (checkpoint / name).stat().st_size, "end": digest}
