"""Make a prepared folder for a .bin/.idx pair of another tool, without copying its tokens.

``train.bin`` and ``validation.bin`` are links to the original. Each split has an index of its own:
``train.idx`` lists the training documents with their places in the original. Example: of documents
A B C, with B held out, ``train.idx`` lists A and C and leaves a gap where B is.

The text decides a document's split, as in `prepare`, so each document is decoded. A run then reads
a pair that Megatron's tools/preprocess_data.py made of a text in the batches of `prepare`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from tst_megatron.data.adopt.adopted_index import write_chosen
from tst_megatron.data.adopt.decide_splits import LEFT_OUT, Adoption, decide_splits, open_pair
from tst_megatron.data.adopt.foreign_pair import pair_problems, prefix_of
from tst_megatron.data.adopt.foreign_sample import look_at_sample
from tst_megatron.data.manifest import ADOPTED, LeftOut, Manifest, load_manifest
from tst_megatron.data.prepare.checks_before_reading import check_settings, load_without_faults
from tst_megatron.data.prepare.output_folder import (
    check_documents,
    is_free,
    versions_here,
    write_manifest,
)
from tst_megatron.data.prepare.settings import Settings
from tst_megatron.data.text.split import SPLITS
from tst_megatron.data.tokenizer.facts import Tokenizer
from tst_megatron.data.tokenizer.files import tokenizer_sha256
from tst_megatron.data.tokenizer.load import store_tokenizer
from tst_megatron.data.tokens.fingerprint import fingerprint
from tst_megatron.data.tokens.format import bin_path, idx_path
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.tokens.writer import IndexedFacts
from tst_megatron.data.verify.held_out_copies import keeps_text
from tst_megatron.system.files import check_not_claimed, file_sha256, folder_appearing_whole
from tst_megatron.system.machine.cores import num_cores


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
    prefix = _prefix_without_problems(pair, output)
    check_not_claimed(output)
    job = Adoption(prefix, load_without_faults(tokenizer, settings), settings)
    reader = open_pair(prefix)
    reader.check()
    before = _state(prefix)
    # A wrong tokenizer shows in seconds here; reading every document takes hours.
    look_at_sample(reader, job.tokenizer, console)
    _say_if_splits_may_differ(job.tokenizer, console)
    output.parent.mkdir(parents=True, exist_ok=True)
    with folder_appearing_whole(output) as folder:
        _fill(folder, job, reader, tokenizer, workers or num_cores(), console)
        if _state(prefix) != before:
            raise ValueError(f"{prefix}: the pair was changed while it was read. Adopt it again.")
    return load_manifest(output)


def _prefix_without_problems(pair: Path, output: Path) -> Path:
    """Return the absolute common path of the pair.

    Raises:
        ValueError: the pair cannot be read as it is, or the output exists.
    """
    prefix = prefix_of(pair)
    # Absolute, because the folder's links must hold even if a link on the way changes later.
    prefix = prefix.parent.resolve() / prefix.name
    problems = pair_problems(prefix)
    if not is_free(output):
        problems.append(f"{output}: exists. Give another output folder, or delete this one.")
    if problems:
        raise ValueError("\n".join(problems))
    return prefix


def _say_if_splits_may_differ(tokenizer: Tokenizer, console: Console | None) -> None:
    """Warn that a decoded text may not be the original one, by which `prepare` would split."""
    if console and not keeps_text(tokenizer):
        console.print(
            "note: the tokenizer gives different texts the same tokens, so some documents may be "
            "in another split than `data prepare` of the original text would put them.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _fill(
    folder: Path,
    job: Adoption,
    reader: IndexedReader,
    tokenizer: Path,
    workers: int,
    console: Console | None,
) -> None:
    """Write what a prepared folder holds: tokenizer, links, indexes and, last, the manifest."""
    stored = store_tokenizer(tokenizer, folder, eod_token=job.settings.eod_token)
    splits, counts, bin_sha256 = decide_splits(job, reader, workers, console)
    files = _write_splits(folder, job, reader, splits, bin_sha256)
    recipe = _recipe(job, files, tokenizer)
    check_documents({name: facts.num_documents for name, facts in files.items()}, recipe)
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
        # Nobody knows of which files the documents were.
        contents=None,
        versions=versions_here(),
        dtype=reader.dtype.name,
    )


def _state(prefix: Path) -> list[tuple[int, int, int]]:
    stats = [path.stat() for path in (bin_path(prefix), idx_path(prefix))]
    return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in stats]


def _write_splits(
    folder: Path,
    job: Adoption,
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


def _recipe(job: Adoption, files: Mapping[str, IndexedFacts], tokenizer: Path) -> dict[str, Any]:
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
