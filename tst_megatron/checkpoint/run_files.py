"""Recognise a run from its files, and find the tokenizer that it keeps beside its checkpoints.

::

    runs/tst/                  a run: it has a resolved.yaml
      resolved.yaml            what run this is
      checkpoints/
        iter_0000012/
        tokenizer.model        its tokenizer, one file, or
        tokenizer/             one folder in Hugging Face format

Here is what a reader of checkpoints must know of a run; ``training/run/`` makes and keeps the rest.
"""

from __future__ import annotations

import os
from pathlib import Path

from tst_megatron.data.tokenizer.files import (
    HUGGING_FACE_FOLDER,
    SENTENCEPIECE_FILE,
    tokenizer_sha256,
)
from tst_megatron.system.machine.errors import machine_error
from tst_megatron.system.paths import is_there

RESOLVED = "resolved.yaml"
"""The file of a run folder that says what run it is; a folder without one is no run."""


def is_run(folder: Path) -> bool:
    """Tell whether a start has said what run a folder holds."""
    return is_there(folder / RESOLVED)


def run_of(path: Path) -> Path:
    """Return the run folder that a path leads to; a path in no run is returned as it is.

    Args:
        path: a run folder, its ``checkpoints/`` or one ``iter_`` folder.
    """
    if is_run(path):
        return path
    # By name, and not by where links lead: checkpoints may lie on another file system.
    own = Path(os.path.abspath(path))
    for checkpoints in (own, own.parent):
        if checkpoints.name == "checkpoints" and is_run(checkpoints.parent):
            return checkpoints.parent
    return path


def places_of_tokenizers(checkpoints: Path) -> list[Path]:
    """List where a tokenizer beside checkpoints may be: a file, or a Hugging Face folder."""
    return [checkpoints / name for name in (SENTENCEPIECE_FILE, HUGGING_FACE_FOLDER)]


def is_tokenizer(path: Path, sha256: str) -> bool:
    """Check that a file or folder is the tokenizer of this hash, and complete.

    Raises:
        OSError: the machine did not let it be read, so that it may be.
    """
    try:
        return tokenizer_sha256(path) == sha256
    except OSError as error:
        if machine_error(error) is not None:
            raise
        return False
