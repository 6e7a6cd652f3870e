"""Refuse outputs inside a checkpoint, or among the files that a run keeps for itself."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tst_megatron.checkpoint.folder import TRACKER, is_name_of_a_step
from tst_megatron.checkpoint.run_files import BRANCH, RESOLVED
from tst_megatron.system.files import beside, unfinished
from tst_megatron.system.machine.disk import check_writable
from tst_megatron.system.paths import is_there

_OF_A_RUN = (RESOLVED, "state.json", "versions.json", "metrics.jsonl")
"""A folder with one of these is a run's."""
_FILES_OF_A_RUN = (
    *_OF_A_RUN,
    *("recipe.yaml", "metrics.dropped.jsonl", "facts.json", "plan.json"),
    *("saves.json", "STOP", BRANCH),
)
_FOLDERS_OF_A_RUN = ("checkpoints", "tensorboard", "evaluations", "logs", "slurm")
"""Folders that a run, its job scripts and Megatron write to and delete from. Other names in a run
folder are free, such as an export ``RUN/hf``."""


def check_output(output: Path) -> None:
    """Refuse an output that a run would take for its own, or that would damage files of the run.

    Args:
        output: a file or folder that will be made.

    Raises:
        ValueError: it is in a checkpoint, or among what a run keeps for itself, or nothing can be
            made there.
        OSError: the place cannot be looked at.
    """
    # Links and ".." may lead there too.
    real = Path(os.path.realpath(output))
    _check_length(output, real)
    for folder in (real, *real.parents):
        if place := _owned(folder, folder == real):
            raise ValueError(
                f"{output}: is in {place}. Name a place outside, such as a folder of its own "
                "beside it"
            )
    # An output that exists is reused or refused by the command that makes it.
    if not is_there(real):
        check_writable(real)


def _check_length(output: Path, real: Path) -> None:
    # The hidden file that is made beside it has a longer name. The root has no name.
    for hidden in (beside(real), unfinished(real)) if real.name else ():
        try:
            hidden.lstat()
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise ValueError(
                f"{output}: this name is too long. A file system takes 255 bytes for a name and "
                "4,095 for a path, and what is written has a longer hidden name until it is "
                "whole. Give a shorter one"
            ) from error


def _owned(folder: Path, is_output: bool) -> str | None:
    """Return what a folder, or the output itself, belongs to; None if it is free to write to."""
    is_of_run = any(is_there(folder.parent / name) for name in _OF_A_RUN)
    if folder.is_dir() and is_name_of_a_step(folder.name):
        return f"{folder}, which is a checkpoint"
    if (folder / TRACKER).is_file():
        return f"{folder}, where checkpoints are"
    if (folder / ".metadata").is_file() and (folder / "metadata.json").is_file():
        return f"{folder}, which is a checkpoint"
    if is_of_run and folder.name in _FOLDERS_OF_A_RUN:
        return f"{folder}, which the run in {folder.parent} keeps for itself"
    if is_of_run and is_output and folder.name in _FILES_OF_A_RUN:
        return f"the run {folder.parent}, which has a file of that name"
    return None
