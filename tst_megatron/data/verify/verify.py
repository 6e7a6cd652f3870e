"""Check finished prepared folders: the content by its hashes, and the meaning without them.

Hashes find what changed since the folder was made. That documents end as they should, that counts
are right and that nothing held out is trained on is checked on the tokens themselves, so that a
folder which was made wrongly is found too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tst_megatron.data.manifest import ADOPTED, FILE_NAME, Manifest, Split
from tst_megatron.data.tokenizer.facts import Tokenizer, TokenizerFacts
from tst_megatron.data.tokenizer.load import load_tokenizer
from tst_megatron.data.tokens.counts import entropy_nats
from tst_megatron.data.tokens.fingerprint import fingerprint
from tst_megatron.data.tokens.format import bin_path, idx_path, token_dtype
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.verify.held_out_copies import HeldOutDocuments, keeps_text
from tst_megatron.data.verify.recorded_files import differs, missing, tokenizer_problems
from tst_megatron.data.verify.split_shares import share_notes
from tst_megatron.data.verify.token_scan import TakeHashes, scan
from tst_megatron.system.files import file_sha256

AGAIN = "Prepare the text again."

Advance = Callable[[int], None]
Progress = Callable[[], AbstractContextManager[Advance]]


def _no_progress() -> AbstractContextManager[Advance]:
    return nullcontext(lambda num_bytes: None)


@dataclass(slots=True)
class Findings:
    """The findings about a folder, in words."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Facts that the owner should know and that are not faults."""


def verify_folder(
    manifest: Manifest,
    progress: Progress = _no_progress,
    *,
    others: Sequence[HeldOutDocuments] = (),
) -> Findings:
    """Read a folder once, and say everything that is wrong with it.

    Args:
        manifest: of the folder.
        others: held-out documents of other folders of the same tokenizer, among which the training
            documents of this one are looked up.
        progress: entered before the first byte of the splits is read; what it yields is called
            with the bytes that were read since the last call.
    """
    tokenizer, problems = _tokenizer(manifest)
    facts = tokenizer.facts if tokenizer else manifest.tokenizer
    findings = Findings(problems, share_notes(manifest))
    if ADOPTED not in manifest.recipe and manifest.dtype != token_dtype(facts.vocab_size).name:
        findings.problems.append(
            f"{manifest.path}: dtype {manifest.dtype}, a vocabulary of {facts.vocab_size} ids has "
            f"{token_dtype(facts.vocab_size).name}. {AGAIN}"
        )
    # Progress starts here: loading the tokenizer may take a minute, and is not reading.
    with progress() as advance:
        held_out = _read_splits(manifest, facts, findings, advance, others)
    for split_documents in held_out:
        _add_repeated(findings, split_documents, tokenizer)
    for documents in others:
        if documents.first_repeated is not None:
            findings.notes.append(
                f"{documents.num_repeated:,} of its train documents are held out in "
                f"{documents.name}, so a run of both would be evaluated on text that it trains on. "
                "Prepare both with the same fractions."
            )
    return findings


def _read_splits(
    manifest: Manifest,
    facts: TokenizerFacts,
    findings: Findings,
    advance: Advance,
    others: Sequence[HeldOutDocuments],
) -> list[HeldOutDocuments]:
    """Read every split, and add what is wrong; returns the held-out splits' documents."""
    held_out: list[HeldOutDocuments] = []
    content = _Content(advance)
    # Training last: its documents are looked up among the held-out ones.
    for name, split in reversed(manifest.splits().items()):
        found, reader = _index_problems(split, manifest.dtype, advance)
        findings.problems += found
        if reader is None:
            findings.problems += _hash_problems(split, content)
            continue
        if name == "train":
            take = _looks_up(reader, [*held_out, *others])
        else:
            held_out.append(HeldOutDocuments(name, reader))
            take = held_out[-1].take
        findings.problems += _token_problems(manifest, name, reader, facts, content, take)
    return held_out


class _Content:
    """Hashes of files; the one file that all splits of an adopted pair share is read once."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance
        self._known: dict[Path, str] = {}

    def sha256(self, path: Path) -> str:
        file = path.resolve()
        if file not in self._known:
            self._known[file] = file_sha256(file)
            self.advance(file.stat().st_size)
        return self._known[file]


def num_bytes_to_read(manifest: Manifest) -> int:
    """Return how many bytes `verify_folder` reads of a folder; missing files are not counted."""
    idx = [idx_path(split.prefix) for split in manifest.splits().values()]
    bins = {bin_path(split.prefix).resolve() for split in manifest.splits().values()}
    total = sum(path.stat().st_size for path in [*idx, *bins] if path.is_file())
    # Documents with others between them are read apart from the file's hash.
    gaps = sum(split.tokens for split in manifest.splits().values() if split.has_gaps)
    return total + gaps * (4 if manifest.dtype == "int32" else 2)


def _tokenizer(manifest: Manifest) -> tuple[Tokenizer | None, list[str]]:
    """Return the folder's tokenizer if it is the recorded one, and what is wrong with it."""
    if problems := tokenizer_problems(manifest):
        return None, problems
    try:
        tokenizer = load_tokenizer(
            manifest.tokenizer_path,
            special_tokens_in_text=manifest.tokenizer.special_tokens_in_text,
        )
    except (ValueError, OSError) as error:
        return None, [str(error)]
    recorded = asdict(manifest.tokenizer)
    differences = [
        f"{key} is {recorded[key]!r}, the tokenizer has {value!r}"
        for key, value in asdict(tokenizer.facts).items()
        if recorded[key] != value
    ]
    if not differences:
        return tokenizer, []
    return tokenizer, [f"{manifest.path}: {'; '.join(differences)}. Bring {FILE_NAME} back."]


def _index_problems(
    split: Split, dtype: str, advance: Advance
) -> tuple[list[str], IndexedReader | None]:
    """Say what is wrong with an index; return a reader too if documents can be found by it."""
    path = idx_path(split.prefix)
    problems: list[str] = []
    try:
        if file_sha256(path) != split.idx_sha256:
            problems.append(differs(path))
        elif fingerprint(path) != split.idx_fingerprint:
            problems.append(_wrong_fingerprint(path))
        advance(path.stat().st_size)
        reader = split.reader()
        reader.check()
    except FileNotFoundError:
        # A missing .bin is named where its content would be read.
        return [*problems, *([] if path.is_file() else [missing(path)])], None
    except (ValueError, OSError) as error:
        return [*problems, str(error)], None
    if (reader.num_documents, reader.num_tokens) != (split.documents, split.tokens):
        problems.append(
            f"{path}: {reader.num_documents:,} documents and {reader.num_tokens:,} tokens, "
            f"{FILE_NAME} has {split.documents:,} and {split.tokens:,}. {AGAIN}"
        )
    if reader.dtype.name != dtype:
        problems.append(f"{path}: tokens are {reader.dtype.name}, {FILE_NAME} has {dtype}. {AGAIN}")
    return problems, reader


def _token_problems(
    manifest: Manifest,
    name: str,
    reader: IndexedReader,
    facts: TokenizerFacts,
    content: _Content,
    take_hashes: TakeHashes,
) -> list[str]:
    split = manifest.splits()[name]
    try:
        found = scan(reader, facts, advance=content.advance, take_hashes=take_hashes)
        sha256 = found.sha256 or content.sha256(bin_path(split.prefix))
        problems = _content_problems(split, sha256)
    except OSError as error:
        return [f"{bin_path(split.prefix)}: cannot be read ({error})."]
    problems += found.problems
    entropy = entropy_nats(found.counts)
    # Not equal: another processor may round logarithms otherwise.
    if name == "train" and not math.isclose(
        entropy, manifest.unigram_entropy_nats, rel_tol=1e-9, abs_tol=1e-12
    ):
        problems.append(
            f"{bin_path(split.prefix)}: unigram entropy {entropy:.6f} nats, {FILE_NAME} has "
            f"{manifest.unigram_entropy_nats:.6f}. {AGAIN}"
        )
    return problems


def _hash_problems(split: Split, content: _Content) -> list[str]:
    """Say what is wrong with a .bin whose documents cannot be found."""
    path = bin_path(split.prefix)
    if not path.is_file():
        return [missing(path)]
    try:
        problems = _content_problems(split, content.sha256(path))
    except OSError as error:
        return [f"{path}: cannot be read ({error})."]
    return problems


def _content_problems(split: Split, sha256: str) -> list[str]:
    path = bin_path(split.prefix)
    if sha256 != split.bin_sha256:
        return [differs(path)]
    return [] if fingerprint(path) == split.bin_fingerprint else [_wrong_fingerprint(path)]


def _wrong_fingerprint(path: Path) -> str:
    return (
        f"{path}: is whole, but has another fingerprint in {FILE_NAME}, so training would refuse "
        f"it. Bring {FILE_NAME} back."
    )


def _looks_up(training: IndexedReader, held_out: Sequence[HeldOutDocuments]) -> TakeHashes:
    def take(first: int, hashes: npt.NDArray[np.uint64]) -> None:
        for documents in held_out:
            documents.look_up(training, first, hashes)

    return take


def _add_repeated(
    findings: Findings,
    held_out: HeldOutDocuments,
    tokenizer: Tokenizer | None,
) -> None:
    if held_out.first_repeated is None:
        return
    document, here = held_out.first_repeated
    text = (
        f"{held_out.num_repeated:,} train "
        f"document{'s are' if held_out.num_repeated > 1 else ' is'} in {held_out.name} too, the "
        f"first is document {document:,} of train and {here:,} of {held_out.name}"
    )
    if tokenizer is None or keeps_text(tokenizer):
        findings.problems.append(f"{text}. A text has one split: {AGAIN[0].lower()}{AGAIN[1:]}")
    else:
        findings.notes.append(
            f"{text}. The tokenizer gives different texts the same tokens, and the text decides "
            "the split."
        )
