"""The tokenizer that a run keeps with its checkpoints, to be exported with them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tst_megatron.checkpoint.run_files import is_tokenizer, places_of_tokenizers
from tst_megatron.data.tokenizer.files import copy_files
from tst_megatron.system.files import copy_beside, folder_appearing_whole, is_beside
from tst_megatron.system.paths import is_there

if TYPE_CHECKING:
    # Imports numpy, and `tst-megatron status` is to answer in less time than that takes.
    from tst_megatron.data.manifest import Manifest


def kept_tokenizer(checkpoints: Path, manifest: Manifest) -> Path:
    """Where a run keeps the tokenizer of its text."""
    return checkpoints / manifest.tokenizer_path.name


def wrong_tokenizers(checkpoints: Path, manifest: Manifest) -> list[tuple[Path, str]]:
    """What lies beside checkpoints and would be taken for their tokenizer, each with the reason."""
    found = []
    for path in places_of_tokenizers(checkpoints):
        if is_there(path) and not is_tokenizer(path, manifest.tokenizer.sha256):
            found.append((path, "is not the tokenizer of the training text"))
    return found


def keep_tokenizer(checkpoints: Path, manifest: Manifest, *, is_new: bool) -> None:
    """Copy the tokenizer of the text, if the run does not have it yet.

    Args:
        checkpoints: of the run.
        manifest: of the text.
        is_new: no start of this run got so far before: what is there is of another recipe.
    """
    source, target = manifest.tokenizer_path, kept_tokenizer(checkpoints, manifest)
    if is_new:
        for path in checkpoints.iterdir():
            if any(
                path == place or is_beside(path, place)
                for place in places_of_tokenizers(checkpoints)
            ):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if target.exists():
        return
    if source.is_file():
        copy_beside(source, target)
        return
    with folder_appearing_whole(target) as folder:
        copy_files(source, folder)
