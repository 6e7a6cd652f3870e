"""Turn text into Megatron token files: in parallel, resumable, the same for any number of workers.

The text is cut into units. A worker makes a part of each unit (`encode_unit.py`, `make_parts.py`),
and the part stays on disk until all are made. Then this process joins the parts in their order
(`join_parts.py`). A run that was killed continues from its parts. The output is built among them
and renamed when it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tst_megatron.data.manifest import FILE_NAME, Manifest, Split, load_manifest
from tst_megatron.data.prepare.checks_before_reading import (
    check_before_reading,
    check_not_prepared,
    check_output_is_apart,
    check_reused,
    check_settings,
    load_without_faults,
    say_before,
)
from tst_megatron.data.prepare.encode_unit import Encoder
from tst_megatron.data.prepare.join_parts import build
from tst_megatron.data.prepare.make_parts import Job
from tst_megatron.data.prepare.output_folder import check_round_trip, finished, versions_here
from tst_megatron.data.prepare.parts import begin_parts, delete_parts, part_folder, parts_folder
from tst_megatron.data.prepare.settings import Limits, Settings
from tst_megatron.data.text.documents import Documents, read_unit
from tst_megatron.data.text.inputs import Input, Shard, files_of_shard, find
from tst_megatron.data.text.units import UNIT_BYTES, Unit, cut_into_units
from tst_megatron.data.tokenizer.facts import Tokenizer
from tst_megatron.data.tokenizer.fast import fast_tokenizer
from tst_megatron.data.tokenizer.files import tokenizer_sha256
from tst_megatron.data.tokenizer.round_trip import CHANGED_FRACTION, tried
from tst_megatron.system.files import file_sha256
from tst_megatron.system.machine.cores import num_cores
from tst_megatron.system.processes.lock import held
from tst_megatron.system.processes.worker_pool import in_order
from tst_megatron.system.progress import byte_progress

__all__ = ["Manifest", "Split", "load_manifest", "prepare"]

# Hashing less takes less time than starting processes for it.
_BYTES_HASHED_IN_THIS_PROCESS = 1 << 30

_SAMPLED_UNITS, _SAMPLED_TEXTS = 16, 32
_TEXTS_LOOKED_AT, _LOST_EVERYWHERE = 4, 0.5
"""Of each of those units so many texts are decoded again before the work; a larger share of these
that does not come back is no accident."""


@dataclass(frozen=True, slots=True)
class _Order:
    """The arguments of `prepare`, grouped."""

    inputs: Sequence[Path | str]
    tokenizer: Path
    output: Path
    settings: Settings
    limits: Limits
    fast: bool
    workers: int | None
    shard: Shard | None
    console: Console | None


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

    The files depend neither on the number of workers nor on how often the run was killed: what is
    done is kept in `<output>.parts`, and the same call continues. A finished folder with the same
    inputs, tokenizer and settings is checked and returned with `reused` set.

    Args:
        inputs: files, folders and patterns of lines (.jsonl, .json; also .gz and .zst) and tables
            (.parquet), read in this order.
        tokenizer: SentencePiece .model file, or folder in Hugging Face format; it is copied.
        output: folder to make; its parent is made too.
        eod_token: see `Settings`.
        special_tokens_in_text: see `Settings`.
        text_key: key or column of the documents' text.
        held_out_fraction: share of documents (0-1, both excluded) that go to validation.
        test_fraction: share of documents that go to test; 0 for no test split.
        max_rejected_fraction: see `Limits`.
        max_changed_fraction: see `Limits`.
        deduplicate: leave out documents whose text an earlier one has.
        fast: encode by gigatoken, checked against the tokenizer (`fast.py`), into the same files.
        workers: processes that encode; by default one per available core. More than 1 needs
            the calling script to have an `if __name__ == "__main__"` guard.
        shard: prepare this part of the files alone, for `merge` to join to the others.
        allow_empty_splits: see `Limits`.
        console: where progress goes; nowhere when None.

    Raises:
        ValueError: a setting, an input file or a line is wrong, text does not come back from its
            tokens, a split gets no document, or `output` holds something else.
        FileNotFoundError: the tokenizer is missing.
        ImportError: `fast` without gigatoken.
        RuntimeError: a worker was killed, or gigatoken gave other ids than the tokenizer.
    """
    settings = Settings(
        eod_token, special_tokens_in_text, text_key, held_out_fraction, test_fraction, deduplicate
    )
    limits = Limits(max_rejected_fraction, max_changed_fraction, allow_empty_splits)
    order = _Order(inputs, tokenizer, output, settings, limits, fast, workers, shard, console)
    return _prepare(order)


def _prepare(order: _Order) -> Manifest:
    """Take the steps of a preparation, the quick checks before the hours of work."""
    settings, limits, shard, console = order.settings, order.limits, order.shard, order.console
    # 1. The request: refuse settings that cannot be meant.
    check_settings(settings, limits, workers=order.workers, shard=shard)
    workers = order.workers or num_cores()
    # A shard may lack what the text that it is merged into has.
    limits = replace(limits, allow_empty_splits=limits.allow_empty_splits or shard is not None)

    # 2. The text: find its files, and those of this shard.
    found = find(order.inputs)
    files = found.files if shard is None else files_of_shard(found.files, shard)
    output = order.output.resolve()
    check_output_is_apart(output, order.inputs, files)
    check_not_prepared(found.files)

    # 3. The tokenizer, and everything else that would be refused after hours of reading.
    tokenizer = load_without_faults(order.tokenizer, settings)
    made_by = {"tokenizer_sha256": tokenizer_sha256(order.tokenizer), **asdict(settings)}
    known = made_by if shard is None else {**made_by, "shard": shard.record(found.files)}
    parts = parts_folder(output)
    check_before_reading(output, parts, known, tokenizer if order.fast else None)
    units = cut_into_units(files)
    if not (output / FILE_NAME).is_file():
        # Before the hashes: hashing terabytes takes hours too.
        say_before(found.not_read, tokenizer, console)
        _look_at_a_few(tokenizer, units, settings.text_key, limits.max_changed_fraction)

    # 4. The identity: hash the inputs, and reuse the folder if it is finished already.
    sums = _hash(files, workers, console)
    recipe = {"inputs": [_entry(each, sums) for each in files], **known}
    if (there := finished(output, recipe)) is not None:
        # A run may have been killed between the rename and this cleanup.
        delete_parts(parts)
        check_reused(there, limits)
        return there

    # 5. The work: make a part of each unit, and join the parts.
    versions = versions_here(*["gigatoken"] if order.fast else [])
    if order.fast:
        sample = _sample(units, settings.text_key, _SAMPLED_TEXTS)
        tokenizer = fast_tokenizer(tokenizer, sample)
    # The names of parts hold this, so that a part of an earlier form is not taken for a new one.
    form = {"unit_bytes": UNIT_BYTES, "round_trip": 1}
    made = begin_parts(parts, {**made_by, **form, "versions": versions})
    tasks = [(unit, part_folder(parts, unit, sums[unit.path], made)) for unit in units]
    encoder = Encoder(tokenizer, settings, limits.max_rejected_fraction)
    with held(parts, seconds=0):
        job = Job(parts, tasks, encoder, limits, workers, found.not_read, console)
        build(job, order.tokenizer, recipe, versions, output)
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
    """Return the SHA-256 of each file."""
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
    """Return texts from all over the inputs."""
    texts: list[str] = []
    for unit in units[:: max(1, len(units) // _SAMPLED_UNITS)]:
        # Files that cannot be read are reported later, all at once.
        with suppress(ValueError):
            documents = next(read_unit(unit, text_key), Documents())
            texts += documents.texts[:number]
    return texts
