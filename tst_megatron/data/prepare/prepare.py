"""Text to Megatron token files: parallel, resumable, the same for any number of workers.

The text is cut into units; a worker makes a part of each (`encode.py`), which stays on disk until
all are there, and this process joins the parts in their order (`join_parts.py`). A run that was
killed goes on from its parts. The output is built among them and renamed once it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from tst_megatron.data.manifest import FILE_NAME, Manifest, Split, load_manifest
from tst_megatron.data.prepare.before_reading import (
    check_before_reading,
    check_not_prepared,
    check_output_is_apart,
    check_reused,
    check_settings,
    load_without_faults,
    say_before,
)
from tst_megatron.data.prepare.encode import Encoder, Settings
from tst_megatron.data.prepare.join_parts import Job, build
from tst_megatron.data.prepare.output_folder import check_round_trip, finished, versions_here
from tst_megatron.data.prepare.parts import begin_parts, delete_parts, part_folder, parts_folder
from tst_megatron.data.text.documents import Documents, read_unit
from tst_megatron.data.text.inputs import Input, Shard, files_of_shard, find
from tst_megatron.data.text.units import UNIT_BYTES, Unit, cut_into_units
from tst_megatron.data.tokenizer.load import Tokenizer, tokenizer_sha256
from tst_megatron.data.tokenizer.round_trip import CHANGED_FRACTION, tried
from tst_megatron.system.files import file_sha256
from tst_megatron.system.processes.lock import held
from tst_megatron.system.processes.worker_pool import in_order, num_cores
from tst_megatron.system.progress import byte_progress

__all__ = ["Manifest", "Split", "load_manifest", "prepare"]

# Hashing less takes less time than starting processes for it.
_BYTES_HASHED_IN_THIS_PROCESS = 1 << 30

_SAMPLED_UNITS, _SAMPLED_TEXTS = 16, 32
_TEXTS_LOOKED_AT, _LOST_EVERYWHERE = 4, 0.5
"""Of each of those units so many texts are decoded again before the work; a larger share of these
that does not come back is no accident."""


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
    max_changed_fraction: float = CHANGED_FRACTION,
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
        max_changed_fraction: share of the documents that are decoded again (0-1) that may not come
            back (`round_trip.py`).
        deduplicate: leave out documents whose text an earlier one has.
        fast: encode by gigatoken, checked against the tokenizer (`tokenizer/fast.py`); the
            files are the same.
        workers: processes that encode; by default one per available core. More than 1 needs
            the calling script to have an `if __name__ == "__main__"` guard.
        shard: prepare this part of the files alone, for `merge` to join to the others.
        allow_empty_splits: a split may have no document, as in any shard. Training refuses such a
            folder.
        console: where progress goes; nowhere when None.

    Raises:
        ValueError: a setting, an input file or a line is wrong, text does not come back from its
            tokens, a split gets no document, or `output` holds something else.
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
    check_settings(
        settings,
        max_rejected_fraction=max_rejected_fraction,
        max_changed_fraction=max_changed_fraction,
        workers=workers,
        shard=shard,
    )
    workers = workers or num_cores()
    found = find(inputs)
    text = found.files
    output = output.resolve()
    files = text if shard is None else files_of_shard(text, shard)
    check_output_is_apart(output, inputs, files)
    check_not_prepared(text)
    allow_empty_splits = allow_empty_splits or shard is not None
    loaded = load_without_faults(tokenizer, settings)
    made_by = {"tokenizer_sha256": tokenizer_sha256(tokenizer), **asdict(settings)}
    known = made_by if shard is None else {**made_by, "shard": shard.record(text)}
    parts = parts_folder(output)
    check_before_reading(output, parts, known, loaded if fast else None)
    units = cut_into_units(files)
    if not (output / FILE_NAME).is_file():
        # Hashing terabytes takes hours too.
        say_before(found.not_read, loaded, console)
        _look_at_a_few(loaded, units, text_key, max_changed_fraction)
    sums = _hash(files, workers, console)
    recipe = {"inputs": [_entry(each, sums) for each in files], **known}
    there = finished(output, recipe)
    if there is not None:
        # Of a run that was killed after its output had its name.
        delete_parts(parts)
        check_reused(there, max_rejected_fraction, max_changed_fraction, allow_empty_splits)
        return there
    versions = versions_here(*["gigatoken"] if fast else [])
    if fast:
        from tst_megatron.data.tokenizer.fast import fast_tokenizer

        loaded = fast_tokenizer(loaded, _sample(units, text_key, _SAMPLED_TEXTS))
    # A part of an earlier form is made anew.
    form = {"unit_bytes": UNIT_BYTES, "round_trip": 1}
    made = begin_parts(parts, {**made_by, **form, "versions": versions})
    job = Job(
        parts=parts,
        tasks=[(unit, part_folder(parts, unit, sums[unit.path], made)) for unit in units],
        encoder=Encoder(loaded, settings, max_rejected_fraction),
        workers=workers,
        allow_empty_splits=allow_empty_splits,
        max_changed_fraction=max_changed_fraction,
        not_read=found.not_read,
        console=console,
    )
    with held(parts, seconds=0):
        build(job, tokenizer, recipe, versions, output)
    return load_manifest(output)


def _entry(file: Input, sums: Mapping[Path, str]) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.num_bytes, "sha256": sums[file.path]}


def _look_at_a_few(
    tokenizer: Tokenizer, units: Sequence[Unit], text_key: str, max_changed_fraction: float
) -> None:
    """Refuse a tokenizer that loses text everywhere before hours of work; the rest comes later."""
    found = tried(tokenizer, _sample(units, text_key, _TEXTS_LOOKED_AT))
    check_round_trip(found, max_changed_fraction, at_least=_LOST_EVERYWHERE)


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


def _sample(units: Sequence[Unit], text_key: str, number: int) -> list[str]:
    """Texts from all over the inputs."""
    texts: list[str] = []
    for unit in units[:: max(1, len(units) // _SAMPLED_UNITS)]:
        # What cannot be read is said later, all at once.
        with suppress(ValueError):
            documents = next(read_unit(unit, text_key), Documents())
            texts += documents.texts[:number]
    return texts
