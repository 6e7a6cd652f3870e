"""Write documents as JSONL, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def write_jsonl(path: Path, documents: Iterable[tuple[str, str]]) -> str:
    """Write a line ``{"id": name, "text": text}`` for each document.

    Args:
        path: the file; written beside and renamed, so an existing one is replaced at once.
        documents: the name and the text of each.

    Returns:
        SHA-256 of the file.
    """
    digest = hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as beside:
        temporary = Path(beside) / path.name
        with temporary.open("wb") as file:
            for name, text in documents:
                line = json.dumps({"id": name, "text": text}, ensure_ascii=False).encode() + b"\n"
                digest.update(line)
                file.write(line)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    return digest.hexdigest()
