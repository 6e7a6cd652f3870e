"""Recognise a run from its files, and find the tokenizer that it keeps beside its checkpoints.

::

    runs/tst/                  a run: it has a resolved.yaml
      resolved.yaml            what run this is
      branch.json              of a branch alone: which run it came from, and at which step
      checkpoints/
        iter_0000012/
        tokenizer.model        its tokenizer, one file, or
        tokenizer/             one folder in Hugging Face format

Here is what a reader of checkpoints must know of a run; ``training/run/`` makes and keeps the rest.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tst_megatron.data.tokenizer.files import (
    HUGGING_FACE_FOLDER,
    SENTENCEPIECE_FILE,
    tokenizer_sha256,
)
from tst_megatron.system.files import write_beside
from tst_megatron.system.machine.errors import machine_error
from tst_megatron.system.paths import is_there
from tst_megatron.system.records import Damaged, read_json

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


# --- a run that came from another -----------------------------------------------------------------

BRANCH = "branch.json"
"""The file in which a branch says which run is its trunk (docs/branching.md)."""

_FORMAT = 1
_KEYS = {"format": int, "trunk": str, "trunk name": str, "step": int}


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """What a branch knows of its trunk: the run of which it is a continuation."""

    trunk: Path
    """The trunk's run folder, absolute, as it was when the branch was made."""
    trunk_name: str
    """The name of that folder."""
    step: int
    """Optimizer steps that the trunk had made. Steps up to this one are the trunk's: their rows
    are copies, and they cost the branch nothing."""
    recipe_sha256: str | None
    """Of the trunk's ``recipe.yaml``; None where it had none."""
    checkpoint_sha256: dict[str, str]
    """Of the small files of the trunk's checkpoint, by name."""

    def words(self) -> str:
        """Say it in a few words."""
        return f"branch of {self.trunk_name} at step {self.step:,}"


def read_branch(run: Path) -> Branch | None:
    """Return what a run folder says of its trunk; None where the run is no branch.

    Args:
        run: the folder of the run.

    Raises:
        Damaged: the record is there, and is not what a branch has.
    """
    said = read_json(run / BRANCH, _KEYS) if run.is_dir() else None
    if said is None:
        return None
    if said["format"] != _FORMAT:
        raise Damaged(f"has the format {said['format']}, and this version reads {_FORMAT}")
    if said["step"] < 1:
        raise Damaged(f"says step {said['step']}, and a trunk has made one step or more")
    sha256 = said.get("recipe sha256")
    hashes = said.get("checkpoint sha256")
    return Branch(
        trunk=Path(said["trunk"]),
        trunk_name=said["trunk name"],
        step=said["step"],
        recipe_sha256=sha256 if isinstance(sha256, str) else None,
        checkpoint_sha256=dict(hashes) if isinstance(hashes, dict) else {},
    )


def write_branch(run: Path, branch: Branch) -> None:
    """Write the record into the folder of a branch."""
    said: dict[str, Any] = {
        "format": _FORMAT,
        "trunk": str(branch.trunk),
        "trunk name": branch.trunk_name,
        "step": branch.step,
        "recipe sha256": branch.recipe_sha256,
        "checkpoint sha256": branch.checkpoint_sha256,
    }
    write_beside(run / BRANCH, json.dumps(said, indent=2) + "\n")


def steps_of_trunk(run: Path) -> int:
    """Return up to which step a run is its trunk's; 0 where it is no branch.

    Raises:
        Damaged: as ``read_branch`` does.
    """
    branch = read_branch(run)
    return branch.step if branch else 0
