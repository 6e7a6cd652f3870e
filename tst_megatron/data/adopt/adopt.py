"""A prepared folder for a .bin/.idx pair of another tool, whose tokens stay where they are.

Each split is an index of its own over the whole .bin: ``train.bin`` and ``validation.bin`` are
links to the original, and ``train.idx`` lists the training documents with their places in it.
Example: of documents A B C, with B held out, it has A and C and leaves a gap where B stands.

The text decides a document's split, as in `prepare`: each document is decoded. A pair that
Megatron's tools/preprocess_data.py made of a text is then trained on in the batches of `prepare`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from tst_megatron.data.adopt.adopted_index import write_chosen
from tst_megatron.data.adopt.foreign_pair import pair_problems, prefix_of
from tst_megatron.data.adopt.foreign_sample import look_at_sample
from tst_megatron.data.manifest import ADOPTED, LeftOut, Manifest, load_manifest
from tst_megatron.data.prepare.before_reading import check_settings, load_without_faults
from tst_megatron.data.prepare.encode import Settings
from tst_megatron.data.prepare.output_folder import (
    check_documents,
    is_free,
    versions_here,
    write_manifest,
)
from tst_megatron.data.text.split import SPLITS, split_of
from tst_megatron.data.tokenizer.load import Tokenizer, body, store_tokenizer, tokenizer_sha256
from tst_megatron.data.tokens.fingerprint import fingerprint
from tst_megatron.data.tokens.indexed import IndexedFacts, IndexedReader, bin_path, idx_path
from tst_megatron.data.verify.held_out_copies import keeps_text
from tst_megatron.data.verify.token_scan import Faults, block_at, check_block
from tst_megatron.system.files import check_not_claimed, file_sha256, folder_appearing_whole
from tst_megatron.system.processes.worker_pool import in_order, num_cores
from tst_megatron.system.progress import byte_progress

UNIT_TOKENS = 1 << 23
"""About so many tokens are one worker's at a time."""
LEFT_OUT = len(SPLITS)
"""In place of a split's number: a document without text, which `prepare` leaves out too."""


@dataclass(frozen=True, slots=True)
class _Adoption:
    """What a worker must know."""

    prefix: Path
    tokenizer: Tokenizer
    settings: Settings


@dataclass(frozen=True, slots=True)
class _Read:
    """What a worker found in some documents."""

    splits: npt.NDArray[np.uint8]
    """[documents] number of each one's split in SPLITS, or LEFT_OUT."""
    train_counts: npt.NDArray[np.int64]
    """[vocabulary size] how often each token occurs in the training documents."""
    problems: list[str]


def adopt(
    pair: Path,
    tokenizer: Path,
    output: Path,
    *,
    eod_token: str | None = None,
    special_tokens_in_text: bool = False,
    held_out_fraction: float = 0.01,
    test_fraction: float = 0.0,
    workers: int | None = None,
    console: Console | None = None,
) -> Manifest:
    """Make a prepared folder of links to a pair that another tool wrote, and of indexes into it.

    All documents are read and decoded once. Memory is one byte for each document, beside a few
    million tokens for each worker.

    Args:
        pair: common path of the .bin and the .idx; the ending of either may be there.
        tokenizer: that made the tokens (`prepare`); a copy goes into the folder.
        output: folder to make; its parent is made too.
        eod_token: special token that ends documents, where it is not the tokenizer's EOS.
        special_tokens_in_text: text that spelled a special token became its id.
        held_out_fraction: share of documents (0-1, both excluded) that go to validation.
        test_fraction: share of documents that go to test; 0 for no test split.
        workers: processes that decode; by default one per available core. More than 1 needs
            the calling script to have an `if __name__ == "__main__"` guard.
        console: where documents as text, notes and progress go; nowhere when None.

    Raises:
        ValueError: with what is wrong: a setting, the pair, its documents, or the output.
        FileNotFoundError: the tokenizer is missing.
        RuntimeError: a worker was killed.
    """
    settings = Settings(
        eod_token=eod_token,
        special_tokens_in_text=special_tokens_in_text,
        text_key="text",
        held_out_fraction=held_out_fraction,
        test_fraction=test_fraction,
        deduplicate=False,
    )
    check_settings(settings, workers=workers)
    prefix = prefix_of(pair)
    # Also where a link on the way leads elsewhere later.
    prefix = prefix.parent.resolve() / prefix.name
    problems = pair_problems(prefix)
    if not is_free(output):
        problems.append(f"{output}: exists. Give another output folder, or delete this one.")
    if problems:
        raise ValueError("\n".join(problems))
    check_not_claimed(output)
    job = _Adoption(prefix, load_without_faults(tokenizer, settings), settings)
    reader = _open(prefix)
    reader.check()
    before = _state(prefix)
    look_at_sample(reader, job.tokenizer, console)
    if console and not keeps_text(job.tokenizer):
        _say(
            console,
            "note: the tokenizer gives different texts the same tokens, so some documents may be "
            "in another split than `data prepare` of the original text would put them.",
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with folder_appearing_whole(output) as folder:
        stored = store_tokenizer(tokenizer, folder, eod_token=eod_token)
        splits, counts, bin_sha256 = _read_all(job, reader, workers or num_cores(), console)
        files = _write_splits(folder, job, reader, splits, bin_sha256)
        recipe = _recipe(job, files, tokenizer)
        check_documents({name: facts.num_documents for name, facts in files.items()}, recipe)
        if _state(prefix) != before:
            raise ValueError(f"{prefix}: the pair was changed while it was read. Adopt it again.")
        write_manifest(
            folder,
            recipe=recipe,
            splits=files,
            train_counts=counts,
            tokenizer=job.tokenizer.facts,
            tokenizer_name=stored.name,
            left_out=LeftOut(
                empty=reader.num_empty_documents + int((splits == LEFT_OUT).sum()),
                rejected=0,
                duplicates=0,
            ),
            # Of which files the documents were is not known.
            contents=None,
            versions=versions_here(),
            dtype=reader.dtype.name,
        )
    return load_manifest(output)


def _open(prefix: Path) -> IndexedReader:
    return IndexedReader(prefix, has_empty_documents=True)


def _state(prefix: Path) -> list[tuple[int, int, int]]:
    stats = [path.stat() for path in (bin_path(prefix), idx_path(prefix))]
    return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in stats]


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _read_all(
    job: _Adoption, reader: IndexedReader, workers: int, console: Console | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], str]:
    """The split of each document, the counts of training tokens, and the hash of the .bin.

    Raises:
        ValueError: documents of another tokenizer or another rule; those of the first unit that
            has some are named.
    """
    splits = np.empty(reader.num_documents, dtype=np.uint8)
    counts = np.zeros(job.tokenizer.facts.vocab_size, dtype=np.int64)
    digest = hashlib.sha256()
    units = list(_units(reader))
    path = bin_path(job.prefix)
    with (
        path.open("rb") as file,
        byte_progress(console, "reading", path.stat().st_size) as advance,
        closing(
            in_order(
                partial(_read_unit, job), units, workers=min(workers, len(units)), advance=advance
            )
        ) as results,
    ):
        for (first, stop), read in results:
            if isinstance(read, Exception):
                raise read
            if read.problems:
                raise ValueError("\n".join(f"{each} {FIX}" for each in read.problems))
            splits[first:stop] = read.splits
            counts += read.train_counts
            # A worker has just read these bytes, so they are still in memory.
            num_tokens = int(reader.document_lengths[first:stop].sum(dtype=np.int64))
            digest.update(file.read(num_tokens * reader.dtype.itemsize))
    return splits, counts, digest.hexdigest()


FIX = "Adopt the pair with the tokenizer that made it (--eod-token), or prepare the text."


def _units(reader: IndexedReader) -> Iterator[tuple[int, int]]:
    """Documents [first, stop) of each unit; together they are all documents."""
    first = 0
    for position in range(UNIT_TOKENS, reader.num_tokens, UNIT_TOKENS):
        stop = reader.document_at(position)
        if stop > first:
            yield first, stop
            first = stop
    yield first, reader.num_documents


def _read_unit(job: _Adoption, unit: tuple[int, int], advance: Callable[[int], None]) -> _Read:
    """Check some documents, decode each, and let its text decide its split."""
    reader, facts = _open(job.prefix), job.tokenizer.facts
    first, stop = unit
    start = int(reader.starts(first, first + 1)[0])
    end = int(reader.starts(stop - 1, stop)[0]) + int(reader.document_lengths[stop - 1])
    ids = reader.stretch(start, end)
    counts, faults = np.zeros(facts.vocab_size, dtype=np.int64), Faults()
    check_block(block_at(reader, start, ids), facts, counts, faults)
    splits = np.zeros(stop - first, dtype=np.uint8)
    if problems := faults.problems(reader):
        return _Read(splits, counts, problems)
    for document in range(first, stop):
        tokens = reader.tokens(document)
        number = _split_number(job, tokens)
        splits[document - first] = number
        if number:
            np.subtract.at(counts, tokens, 1)
        advance(tokens.nbytes)
    return _Read(splits, counts, [])


def _split_number(job: _Adoption, tokens: npt.NDArray[Any]) -> int:
    text = job.tokenizer.decode(body(tokens.tolist(), job.tokenizer.facts))
    if not text:
        return LEFT_OUT
    return SPLITS.index(
        split_of(
            text,
            held_out_fraction=job.settings.held_out_fraction,
            test_fraction=job.settings.test_fraction,
        )
    )


def _write_splits(
    folder: Path,
    job: _Adoption,
    reader: IndexedReader,
    splits: npt.NDArray[np.uint8],
    bin_sha256: str,
) -> dict[str, IndexedFacts]:
    """Link the .bin under each split's name, and write each split's index."""
    original = bin_path(job.prefix)
    bin_fingerprint = fingerprint(original)
    names = SPLITS if job.settings.test_fraction else SPLITS[:2]
    files = {}
    for number, name in enumerate(names):
        bin_path(folder / name).symlink_to(original)
        num_documents, num_tokens = write_chosen(idx_path(folder / name), reader, splits, number)
        files[name] = IndexedFacts(
            num_documents=num_documents,
            num_tokens=num_tokens,
            bin_sha256=bin_sha256,
            idx_sha256=file_sha256(idx_path(folder / name)),
            bin_fingerprint=bin_fingerprint,
            idx_fingerprint=fingerprint(idx_path(folder / name)),
        )
    return files


def _recipe(job: _Adoption, files: Mapping[str, IndexedFacts], tokenizer: Path) -> dict[str, Any]:
    paths, settings = (bin_path(job.prefix), idx_path(job.prefix)), job.settings
    sums = (files["train"].bin_sha256, file_sha256(paths[1]))
    return {
        ADOPTED: {"prefix": str(job.prefix)},
        "inputs": [
            {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256}
            for path, sha256 in zip(paths, sums, strict=True)
        ],
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "eod_token": settings.eod_token,
        "special_tokens_in_text": settings.special_tokens_in_text,
        # Of the original text, for `data verify --against`.
        "text_key": settings.text_key,
        "held_out_fraction": settings.held_out_fraction,
        "test_fraction": settings.test_fraction,
        "deduplicate": settings.deduplicate,
    }
