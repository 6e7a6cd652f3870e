"""Text to Megatron token files: parallel, resumable, the same for any number of workers.

The text is cut into units; a worker makes a part of each (`encode.py`), which stays on disk until
all are there, and this process joins the parts in their order (`join.py`). A run that was killed
goes on from its parts. The output is built among them and renamed once it is complete.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from tst_megatron import __version__
from tst_megatron.data.build import Job, build
from tst_megatron.data.documents import Documents, read_unit
from tst_megatron.data.encode import Encoder, Settings
from tst_megatron.data.inputs import (
    UNIT_BYTES,
    Input,
    Shard,
    Unit,
    cut_into_units,
    files_of_shard,
    find_inputs,
)
from tst_megatron.data.manifest import FILE_NAME, Manifest, Split, load_manifest
from tst_megatron.data.parts import (
    begin_parts,
    delete_parts,
    is_parts_folder,
    part_folder,
    parts_folder,
)
from tst_megatron.data.prepared import (
    REJECTED_NAME,
    check_documents,
    finished,
    output_problems,
)
from tst_megatron.data.progress import byte_progress
from tst_megatron.data.tokenizer import (
    HUGGING_FACE_FOLDER,
    Tokenizer,
    load_tokenizer,
    store_tokenizer,
    tokenizer_sha256,
)
from tst_megatron.data.workers import in_order, num_cores
from tst_megatron.files import file_sha256
from tst_megatron.system.lock import LOCK, held

__all__ = ["Manifest", "Split", "load_manifest", "prepare"]

# Hashing less takes less time than starting processes for it.
_BYTES_HASHED_IN_THIS_PROCESS = 1 << 30

_SAMPLED_UNITS, _SAMPLED_TEXTS = 16, 32


def prepare(
    inputs: Sequence[Path | str],
    tokenizer: Path,
    output: Path,
    *,
    eod_token: str | None = None,
    special_tokens_in_text: bool = False,
    text_key: str = "text",
    held_out_fraction: float = 0.01,
    test_fraction: float = 0.0,
    max_rejected_fraction: float = 0.0,
    deduplicate: bool = False,
    fast: bool = False,
    workers: int | None = None,
    shard: Shard | None = None,
    allow_empty_splits: bool = False,
    console: Console | None = None,
) -> Manifest:
    """Tokenise text into a folder with training and held-out data and a manifest.

    The files do not depend on the number of workers, nor on how often the run was killed: what is
    done is kept in `<output>.parts`, and the same call goes on. A document's split (training,
    validation or test) depends on its text alone. A finished folder with the same inputs, tokenizer
    and settings is checked and returned with `reused` set.

    Args:
        inputs: files, folders and patterns of lines (.jsonl, .json; also .gz and .zst) and tables
            (.parquet), read in this order.
        tokenizer: SentencePiece .model file, or a folder with a tokenizer in Hugging Face format; a
            copy goes into the folder.
        output: folder to make; its parent is made too.
        eod_token: special token that ends documents, where it is not the tokenizer's EOS.
        special_tokens_in_text: text that spells a special token becomes its id; else it is text.
        text_key: key or column of the documents' text.
        held_out_fraction: share of documents (0-1, both excluded) that go to validation.
        test_fraction: share of documents that go to test, which is evaluated once, after the last
            step; 0 for no test split.
        max_rejected_fraction: share of lines and rows (0-1) that may hold no document and are left
            out; if it is above 0, files without any may too. rejected.jsonl lists them.
        deduplicate: leave out documents whose text an earlier one has.
        fast: encode by gigatoken, checked against the tokenizer (`fast_tokenizer.py`); the
            files are the same.
        workers: processes that encode; by default one per available core. More than 1 needs
            the calling script to have an `if __name__ == "__main__"` guard.
        shard: prepare this part of the files alone, for `merge` to join to the others.
        allow_empty_splits: a split may have no document, as in any shard. Training refuses such a
            folder.
        console: where progress goes; nowhere when None.

    Raises:
        ValueError: a setting, an input file or a line is wrong, a split gets no document, or
            `output` holds something else.
        FileNotFoundError: the tokenizer is missing.
        ImportError: `fast` without gigatoken.
        RuntimeError: a worker was killed, or gigatoken gave other ids than the tokenizer.
    """
    settings = Settings(
        eod_token=eod_token,
        special_tokens_in_text=special_tokens_in_text,
        text_key=text_key,
        held_out_fraction=held_out_fraction,
        test_fraction=test_fraction,
        deduplicate=deduplicate,
    )
    check_settings(settings, max_rejected_fraction, workers, shard)
    workers = workers or num_cores()
    text = find_inputs(inputs)
    output = output.resolve()
    files = text if shard is None else files_of_shard(text, shard)
    _check_output(output, inputs, files)
    _check_not_prepared(text)
    allow_empty_splits = allow_empty_splits or shard is not None
    loaded = load_as_copied(tokenizer, settings)
    made_by = {"tokenizer_sha256": tokenizer_sha256(tokenizer), **asdict(settings)}
    known = made_by if shard is None else {**made_by, "shard": shard.record(text)}
    parts = parts_folder(output)
    _check_before_reading(output, parts, known, loaded if fast else None)
    sums = _hash(files, workers, console)
    recipe = {"inputs": [_entry(each, sums) for each in files], **known}
    there = finished(output, recipe)
    if there is not None:
        # Of a run that was killed after its output had its name.
        delete_parts(parts)
        _check_reused(there, max_rejected_fraction, allow_empty_splits)
        return there
    versions = _versions(fast)
    units = cut_into_units(files)
    if fast:
        from tst_megatron.data.fast_tokenizer import fast_tokenizer

        loaded = fast_tokenizer(loaded, _sample(units, text_key))
    made = begin_parts(parts, {**made_by, "unit_bytes": UNIT_BYTES, "versions": versions})
    job = Job(
        parts=parts,
        tasks=[(unit, part_folder(parts, unit, sums[unit.path], made)) for unit in units],
        encoder=Encoder(loaded, settings, max_rejected_fraction),
        workers=workers,
        allow_empty_splits=allow_empty_splits,
        console=console,
    )
    with held(parts, seconds=0):
        build(job, tokenizer, recipe, versions, output)
    return load_manifest(output)


def check_settings(
    settings: Settings, max_rejected_fraction: float, workers: int | None, shard: Shard | None
) -> None:
    """Raise for settings that are out of range, with all of them."""
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
    if not 0.0 <= max_rejected_fraction < 1.0:
        problems.append(
            f"--max-rejected-fraction {max_rejected_fraction}: must be 0 or more, and less than 1. "
            "Try 0.001."
        )
    if workers is not None and workers < 1:
        problems.append(f"--workers {workers}: must be at least 1. Leave it out to use all cores.")
    if problems:
        raise ValueError("\n".join(problems))


def _check_output(output: Path, inputs: Sequence[Path | str], files: Sequence[Input]) -> None:
    """Whether the output has a place of its own."""
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


def _check_before_reading(
    output: Path, parts: Path, known: Mapping[str, Any], fast: Tokenizer | None
) -> None:
    """What would be refused after the inputs have been read, which can take hours.

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
    # A folder that is there needs no tokenizer that is fast.
    if fast is not None and not (output / FILE_NAME).is_file():
        from tst_megatron.data.fast_tokenizer import check_fast

        check_fast(fast)


def _check_not_prepared(text: Sequence[Input]) -> None:
    """Whether a pattern reaches into what `prepare` makes, perhaps while other shards are made."""
    parents = {file.path.parent for file in text}
    for folder in sorted(parents | {parent.parent for parent in parents}):
        marks = [folder / FILE_NAME, folder / "train.idx"]
        if is_parts_folder(folder) or all(mark.is_file() for mark in marks):
            raise ValueError(
                f"{folder}: was made by `data prepare`, and files in it are named as text. Name "
                "the text alone."
            )


def _entry(file: Input, sums: Mapping[Path, str]) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.num_bytes, "sha256": sums[file.path]}


def _check_reused(
    manifest: Manifest, max_rejected_fraction: float, allow_empty_splits: bool
) -> None:
    """Whether a finished folder is one that this call would have made."""
    if not allow_empty_splits:
        documents = {name: split.documents for name, split in manifest.splits().items()}
        check_documents(documents, manifest.recipe)
    if manifest.left_out.rejected and not max_rejected_fraction:
        raise ValueError(
            f"{manifest.path.parent}: was prepared without {manifest.left_out.rejected:,} lines or "
            f"files that hold no document ({REJECTED_NAME}). Allow them with "
            "--max-rejected-fraction, or give another output folder."
        )


def load_as_copied(tokenizer: Path, settings: Settings) -> Tokenizer:
    """The tokenizer as its copy will be."""
    asked = {"special_tokens_in_text": settings.special_tokens_in_text}
    if settings.eod_token is None:
        return load_tokenizer(tokenizer, **asked)
    with tempfile.TemporaryDirectory() as beside:
        try:
            stored = store_tokenizer(tokenizer, Path(beside), eod_token=settings.eod_token)
            return load_tokenizer(stored, **asked)
        except ValueError as error:
            copy = str(Path(beside) / HUGGING_FACE_FOLDER)
            raise ValueError(str(error).replace(copy, str(tokenizer))) from error


def _hash(files: Sequence[Input], workers: int, console: Console | None) -> dict[Path, str]:
    """SHA-256 of each file."""
    total = sum(each.num_bytes for each in files)
    if total < _BYTES_HASHED_IN_THIS_PROCESS:
        workers = 1
    paths = [each.path for each in files]
    sums = {}
    with (
        byte_progress(console if workers > 1 else None, "hashing the inputs", total) as advance,
        closing(in_order(_sum_of, paths, workers=workers, advance=advance)) as results,
    ):
        for path, result in results:
            if isinstance(result, Exception):
                raise result
            sums[path] = result
    return sums


def _sum_of(path: Path, advance: Callable[[int], None]) -> str:
    result = file_sha256(path)
    advance(path.stat().st_size)
    return result


def _sample(units: Sequence[Unit], text_key: str) -> list[str]:
    """Texts from all over the inputs."""
    texts: list[str] = []
    for unit in units[:: max(1, len(units) // _SAMPLED_UNITS)]:
        # What cannot be read is said later, all at once.
        with suppress(ValueError):
            documents = next(read_unit(unit, text_key), Documents())
            texts += documents.texts[:_SAMPLED_TEXTS]
    return texts


def _versions(fast: bool) -> dict[str, str]:
    packages = ["sentencepiece", "tokenizers", "transformers", "numpy"]
    packages += ["gigatoken"] if fast else []
    return {
        "tst_megatron": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
