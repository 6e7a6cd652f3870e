"""Prepare one unit of a text in a worker: read, split, encode, and leave a part on disk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tst_megatron.data.prepare.parts import counts_path, hashes_path, write_part
from tst_megatron.data.prepare.settings import Settings
from tst_megatron.data.text.documents import Documents, Rejected, read_unit, text_hash
from tst_megatron.data.text.inputs import check_unchanged
from tst_megatron.data.text.split import SPLITS, split_of
from tst_megatron.data.text.units import Unit
from tst_megatron.data.tokenizer.facts import Tokenizer
from tst_megatron.data.tokenizer.round_trip import Sample
from tst_megatron.data.tokens.writer import IndexedWriter
from tst_megatron.system.files import folder_appearing_whole

MOST_REJECTED = 10_000
"""So many lines of a unit may be rejected in any case; more mean that the file is no text."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """The tokenizer and the rules by which a worker prepares units."""

    tokenizer: Tokenizer
    settings: Settings
    max_rejected_fraction: float

    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits that are made."""
        return SPLITS if self.settings.test_fraction else SPLITS[:2]


def encode_unit(encoder: Encoder, task: tuple[Unit, Path], advance: Callable[[int], None]) -> None:
    """Make the part of one unit.

    Args:
        encoder: tokenizer and rules.
        task: what to read, and the folder that the part becomes.
        advance: called with the bytes of input that were read since the last call.

    Raises:
        ValueError: the unit cannot be read, holds hardly any document, or its file was changed.
    """
    unit, part = task
    if part.is_dir():
        return  # Made from another file with the same content.
    check_unchanged([unit.file])
    rejected: list[Rejected] = []
    sample = Sample(unit.is_sampled)
    num_lines = num_empty = 0
    vocab_size = encoder.tokenizer.facts.vocab_size
    counts = np.zeros(vocab_size, dtype=np.int64)
    with folder_appearing_whole(part) as folder, ExitStack() as stack:
        writers = {
            name: stack.enter_context(IndexedWriter(folder / name, vocab_size=vocab_size))
            for name in encoder.splits()
        }
        for documents in read_unit(unit, encoder.settings.text_key, advance):
            num_empty += documents.num_empty
            rejected += documents.rejected
            num_lines += documents.num_lines()
            allowed = max(MOST_REJECTED, encoder.max_rejected_fraction * num_lines)
            if len(rejected) > allowed:
                raise ValueError(
                    f"{unit.path}: {len(rejected):,} of {num_lines:,} lines hold no document. The "
                    f"first: {rejected[0]}"
                )
            _add(documents, encoder, writers, counts, sample)
        facts = {name: writer.finish(allow_empty=True) for name, writer in writers.items()}
        np.save(counts_path(folder), counts)
        # The part's name promises the content of the file, so it must not have changed meanwhile.
        check_unchanged([unit.file])
        write_part(folder, facts, num_empty=num_empty, rejected=rejected, round_trip=sample.found)


def _add(
    documents: Documents,
    encoder: Encoder,
    writers: dict[str, IndexedWriter],
    counts: npt.NDArray[np.int64],
    sample: Sample,
) -> None:
    texts: dict[str, list[str]] = {name: [] for name in writers}
    for text in documents.texts:
        split = split_of(
            text,
            held_out_fraction=encoder.settings.held_out_fraction,
            test_fraction=encoder.settings.test_fraction,
        )
        texts[split].append(text)
    for name, writer in writers.items():
        encoded = encoder.tokenizer.encode(texts[name])
        sample.offer(encoder.tokenizer, texts[name], encoded)
        if encoded:
            lengths = np.array([len(ids) for ids in encoded], dtype=np.int32)
            tokens = np.concatenate(encoded)
            writer.add_documents(tokens, lengths)
            if name == "train":
                # Here and not where parts are joined, which one process does for all workers.
                counts += np.bincount(tokens, minlength=len(counts))
        if encoder.settings.deduplicate:
            with hashes_path(writer.prefix).open("ab") as file:
                for text in texts[name]:
                    file.write(text_hash(text))
