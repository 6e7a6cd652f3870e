"""Refuse what cannot work, and say what may be wrong, before `prepare` reads text for hours."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tst_megatron.data.manifest import FILE_NAME, Manifest
from tst_megatron.data.prepare.output_folder import (
    REJECTED_NAME,
    check_documents,
    check_round_trip,
    output_problems,
)
from tst_megatron.data.prepare.parts import is_parts_folder, parts_folder
from tst_megatron.data.prepare.settings import Limits, Settings
from tst_megatron.data.text.inputs import Input, NotRead, Shard
from tst_megatron.data.tokenizer.checks import tokenizer_faults, tokenizer_remarks
from tst_megatron.data.tokenizer.facts import Tokenizer
from tst_megatron.data.tokenizer.fast import check_fast
from tst_megatron.data.tokenizer.files import HUGGING_FACE_FOLDER, tokenizer_sha256
from tst_megatron.data.tokenizer.load import load_tokenizer, store_tokenizer
from tst_megatron.data.tokenizer.round_trip import CHANGED_FRACTION
from tst_megatron.system.processes.lock import LOCK, held
from tst_megatron.system.progress import say_warning

_SHOWN = 8


def check_settings(
    settings: Settings,
    limits: Limits | None = None,
    *,
    workers: int | None = None,
    shard: Shard | None = None,
) -> None:
    """Check that all numbers are in their ranges, and name every one that is not.

    Raises:
        ValueError: one is not.
    """
    problems = [] if shard is None else shard.problems()
    if not 0.0 < settings.held_out_fraction < 1.0:
        problems.append(
            f"--held-out-fraction {settings.held_out_fraction}: must lie between 0 and 1, both "
            "excluded. Try 0.01."
        )
    if not 0.0 <= settings.test_fraction < 1.0 - settings.held_out_fraction:
        problems.append(
            f"--test-fraction {settings.test_fraction}: must be 0 or more, and leave text to train "
            f"on beside --held-out-fraction {settings.held_out_fraction}. Try 0.01."
        )
    if limits is not None:
        problems += _limit_problems(limits)
    if workers is not None and workers < 1:
        problems.append(f"--workers {workers}: must be at least 1. Leave it out to use all cores.")
    if problems:
        raise ValueError("\n".join(problems))


def _limit_problems(limits: Limits) -> list[str]:
    problems = []
    if not 0.0 <= limits.max_rejected_fraction < 1.0:
        problems.append(
            f"--max-rejected-fraction {limits.max_rejected_fraction}: must be 0 or more, and less "
            "than 1. Try 0.001."
        )
    if not 0.0 <= limits.max_changed_fraction <= 1.0:
        problems.append(
            f"--max-changed-fraction {limits.max_changed_fraction}: must lie between 0 and 1. Try "
            f"{CHANGED_FRACTION}."
        )
    return problems


def check_output_is_apart(
    output: Path, inputs: Sequence[Path | str], files: Sequence[Input]
) -> None:
    """Check that the output is neither in the text nor around it."""
    folders = [Path(each).resolve() for each in inputs if Path(each).is_dir()]
    inside = [folder for folder in folders if output.is_relative_to(folder)]
    own = (output, parts_folder(output))
    inside += [file.path for file in files if any(map(file.path.resolve().is_relative_to, own))]
    if inside:
        raise ValueError(
            f"{output}: is not apart from the text ({inside[0]}), so it would be read as text the "
            "next time. Give an output folder elsewhere."
        )
    if os.path.ismount(output):
        raise ValueError(
            f"{output}: is a mount point, which nothing can be renamed to. Name a folder in it."
        )


def check_before_reading(
    output: Path, parts: Path, known: Mapping[str, Any], fast: Tokenizer | None
) -> None:
    """Refuse now what would be refused after the inputs have been read, which can take hours.

    Args:
        output: folder to make.
        parts: of the output.
        known: of the recipe, without the inputs' sums.
        fast: the tokenizer that is to have a fast form.
    """
    if problems := output_problems(output, known):
        raise ValueError("\n".join(problems))
    if (parts / LOCK).exists():
        # Another preparation of this output says so.
        with held(parts, seconds=0):
            pass
    # A finished folder is reused, and then no fast tokenizer is needed.
    if fast is not None and not (output / FILE_NAME).is_file():
        check_fast(fast)


def check_not_prepared(text: Sequence[Input]) -> None:
    """Check that no pattern reaches into the output of `prepare`, perhaps of a shard at work."""
    parents = {file.path.parent for file in text}
    for folder in sorted(parents | {parent.parent for parent in parents}):
        marks = [folder / FILE_NAME, folder / "train.idx"]
        if is_parts_folder(folder) or all(mark.is_file() for mark in marks):
            raise ValueError(
                f"{folder}: was made by `data prepare`, and files in it are named as text. Name "
                "the text alone."
            )


def check_reused(manifest: Manifest, limits: Limits) -> None:
    """Check that a finished folder is one that this call would have made.

    Raises:
        ValueError: it lost or left out more than the limits of this call let pass.
    """
    if not limits.allow_empty_splits:
        documents = {name: split.documents for name, split in manifest.splits().items()}
        check_documents(documents, manifest.recipe)
    if manifest.contents is not None:
        check_round_trip(manifest.contents.round_trip, limits.max_changed_fraction)
    if manifest.left_out.rejected and not limits.max_rejected_fraction:
        raise ValueError(
            f"{manifest.path.parent}: was prepared without {manifest.left_out.rejected:,} lines or "
            f"files that hold no document ({REJECTED_NAME}). Allow them with "
            "--max-rejected-fraction, or give another output folder."
        )


def say_before(not_read: Sequence[NotRead], tokenizer: Tokenizer, console: Console | None) -> None:
    """Say what a person can still change before the work."""
    if console is None:
        return
    remarks = tokenizer_remarks(tokenizer)
    if not_read:
        shown = ", ".join(f"{each.name} ({each.reason})" for each in not_read[:_SHOWN])
        more = f" and {len(not_read) - _SHOWN:,} more" if len(not_read) > _SHOWN else ""
        num_bytes = sum(each.num_bytes for each in not_read)
        remarks.append(
            f"left out, {len(not_read):,} of {num_bytes / 1e6:,.1f} MB that are no files of text: "
            f"{shown}{more}; {FILE_NAME} lists them"
        )
    for remark in remarks:
        say_warning(console, remark)


def load_without_faults(tokenizer: Path, settings: Settings) -> Tokenizer:
    """Load the tokenizer as its copy in the output will be.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: text cannot be prepared by it.
    """
    asked = {"special_tokens_in_text": settings.special_tokens_in_text}
    if not tokenizer.is_dir() and settings.eod_token is None:
        return load_tokenizer(tokenizer, **asked)
    if tokenizer.is_dir():
        tokenizer_sha256(tokenizer)  # That it is none is said of the folder itself.
    # A config.json beside a tokenizer decides too how transformers reads it, and is not copied.
    with tempfile.TemporaryDirectory() as beside:
        try:
            stored = store_tokenizer(tokenizer, Path(beside), eod_token=settings.eod_token)
            return _without_faults(stored, load_tokenizer(stored, **asked))
        except ValueError as error:
            copy = str(Path(beside) / HUGGING_FACE_FOLDER)
            raise ValueError(str(error).replace(copy, str(tokenizer))) from error


def _without_faults(source: Path, tokenizer: Tokenizer) -> Tokenizer:
    if faults := tokenizer_faults(source, tokenizer):
        raise ValueError("\n".join(faults))
    return tokenizer
