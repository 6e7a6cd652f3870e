"""Encode documents of the source text again, and look them up where they must be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from tst_megatron.data.manifest import ADOPTED, FILE_NAME, Manifest
from tst_megatron.data.text.documents import read_unit, text_hash
from tst_megatron.data.text.inputs import Input, Shard, files_of_shard, find_inputs
from tst_megatron.data.text.split import split_of
from tst_megatron.data.text.units import cut_into_units
from tst_megatron.data.tokenizer.facts import Tokenizer
from tst_megatron.data.tokenizer.load import load_tokenizer
from tst_megatron.data.tokens.format import bin_path
from tst_megatron.data.tokens.reader import IndexedReader

DOCUMENTS_PER_STEP = 1000
"""Progress is reported after so many."""


@dataclass(slots=True)
class Comparison:
    """The number of documents compared, and the differences in words."""

    num_compared: int
    problems: list[str]


@dataclass(slots=True)
class _Place:
    """Progress of the comparison of a split."""

    reader: IndexedReader
    num_documents: int = 0
    num_wrong: int = 0
    first_wrong: str = ""


def compare_with_inputs(
    manifest: Manifest,
    inputs: Sequence[Path | str],
    *,
    sample: float,
    advance: Callable[[int], None] = lambda documents: None,
) -> Comparison:
    """Read the files that a folder was made of again, and compare some documents with its tokens.

    Where copies were left out, they are here too. That takes memory for each document of the text,
    or of the largest shard of a merged folder: about 100 bytes.

    Args:
        manifest: of a folder whose files are sound.
        inputs: what was given to `prepare`: files, folders and patterns, in that order; for a
            shard all files of the text, or its own.
        sample: share of documents (0-1) that is encoded again; all are read and counted.
        advance: called with the number of documents read since the last call.
    """
    try:
        files = find_inputs(inputs)
        files = _of_the_shard(manifest, files)
    except ValueError as error:
        return Comparison(0, str(error).splitlines())
    if problems := _input_problems(manifest, files):
        return Comparison(0, problems)
    tokenizer = load_tokenizer(
        manifest.tokenizer_path, special_tokens_in_text=manifest.tokenizer.special_tokens_in_text
    )
    try:
        return compare_with_texts(
            manifest, tokenizer, _documents(manifest, files), sample=sample, advance=advance
        )
    except (ValueError, OSError) as error:
        return Comparison(0, [str(error)])


def _of_the_shard(manifest: Manifest, files: list[Input]) -> list[Input]:
    """Of the files of a text those that a shard was made of; else, and if they are it, all."""
    record = manifest.recipe.get("shard")
    if record is None or not _input_problems(manifest, files):
        return files
    shard = Shard.recorded(record)
    if shard.record(files) != record:
        raise ValueError(
            f"--against: {manifest.path.parent} is shard {shard} of a text with "
            "other files than these (names or sizes). Name what was given to `data prepare`, or "
            f"the shard's own files in the order of {FILE_NAME}."
        )
    return files_of_shard(files, shard)


def _documents(manifest: Manifest, files: Sequence[Input]) -> Iterator[str]:
    """The texts that are in the token files, in their order."""
    if not manifest.recipe["deduplicate"]:
        yield from _texts(manifest, files)
        return
    # Copies in different shards of a merged folder are still there.
    shards = manifest.recipe.get("shards") or [{"num_inputs": len(files)}]
    rest = iter(files)
    for shard in shards:
        yield from _without_copies(_texts(manifest, list(islice(rest, shard["num_inputs"]))))


def _texts(manifest: Manifest, files: Sequence[Input]) -> Iterator[str]:
    for unit in cut_into_units(files):
        for documents in read_unit(unit, manifest.recipe["text_key"]):
            if documents.rejected and not manifest.left_out.rejected:
                raise ValueError(str(documents.rejected[0]))
            yield from documents.texts


def _without_copies(texts: Iterable[str]) -> Iterator[str]:
    seen: set[bytes] = set()
    for text in texts:
        digest = text_hash(text)
        if digest not in seen:
            seen.add(digest)
            yield text


def compare_with_texts(
    manifest: Manifest,
    tokenizer: Tokenizer,
    documents: Iterable[str],
    *,
    sample: float,
    advance: Callable[[int], None] = lambda documents: None,
) -> Comparison:
    """Compare documents with the tokens at the place where preparation must have put them.

    Args:
        manifest: of a folder whose files are sound.
        tokenizer: of the folder.
        documents: all texts that were prepared, in their order, without the copies left out.
        sample: share of them (0-1) that is encoded again. A document's text decides, so that
            every call compares the same ones.
        advance: called with the number of documents read since the last call.
    """
    places = {name: _Place(split.reader()) for name, split in manifest.splits().items()}
    num_compared = 0
    for number, text in enumerate(documents, start=1):
        place = places[_split_of(manifest, text)]
        if place.num_documents < place.reader.num_documents and _is_sampled(text, sample):
            num_compared += 1
            _compare(place, tokenizer, text, number)
        place.num_documents += 1
        if number % DOCUMENTS_PER_STEP == 0:
            advance(DOCUMENTS_PER_STEP)
    return Comparison(num_compared, _differences(places))


def _split_of(manifest: Manifest, text: str) -> str:
    return split_of(
        text,
        held_out_fraction=manifest.recipe["held_out_fraction"],
        test_fraction=manifest.recipe["test_fraction"],
    )


def _is_sampled(text: str, sample: float) -> bool:
    # Not the hash that decides the split: a sample of it would be of one split alone.
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"sample").digest()
    return int.from_bytes(digest, "big") / 2**64 < sample


def _compare(place: _Place, tokenizer: Tokenizer, text: str, number: int) -> None:
    (expected,) = tokenizer.encode([text])
    stored = place.reader.tokens(place.num_documents)
    if np.array_equal(stored, expected):
        return
    place.num_wrong += 1
    if not place.first_wrong:
        shared = min(len(stored), len(expected))
        same = int(np.argmin(np.append(stored[:shared] == expected[:shared], False)))
        place.first_wrong = (
            f"document {place.num_documents:,} ({number:,} of the text) has {len(stored):,} tokens "
            f"and the text gives {len(expected):,}, the first {same:,} of them the same"
        )


def _differences(places: dict[str, _Place]) -> list[str]:
    fix = "Name the files in the order of preparation; if they are, prepare the text again."
    problems = []
    for place in places.values():
        path = bin_path(place.reader.prefix)
        if place.num_documents != place.reader.num_documents:
            problems.append(
                f"{path}: {place.reader.num_documents:,} documents, the text has "
                f"{place.num_documents:,}. {fix}"
            )
        if place.num_wrong:
            problems.append(
                f"{path}: {place.num_wrong:,} sampled "
                f"document{'s differ' if place.num_wrong > 1 else ' differs'} from the text; the "
                f"first: {place.first_wrong}. {fix}"
            )
    return problems


def _input_problems(manifest: Manifest, files: Sequence[Input]) -> list[str]:
    """Check that the files are those that the manifest names, by their names and sizes."""
    if ADOPTED in manifest.recipe:
        # What another tool wrote does not say of which text.
        return []
    recorded = [(entry["name"], entry["bytes"]) for entry in manifest.inputs()]
    given = [(each.name, each.num_bytes) for each in files]
    if given == recorded:
        return []
    if len(given) != len(recorded):
        return [
            f"--against: {len(given)} files, {manifest.path.parent} was made of {len(recorded)}. "
            f"Name all of them, in the order of {FILE_NAME}."
        ]
    number, (its, ours) = next(
        (number, pair)
        for number, pair in enumerate(zip(recorded, given, strict=True), start=1)
        if pair[0] != pair[1]
    )
    return [
        f"--against: file {number} is {ours[0]} of {ours[1]:,} bytes, {manifest.path.parent} was "
        f"made of {its[0]} of {its[1]:,}. Name the files in the order of {FILE_NAME}."
    ]
