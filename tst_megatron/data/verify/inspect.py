"""Show a person what a prepared folder holds: lengths, frequent tokens and documents as text."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from tst_megatron.data.manifest import Manifest
from tst_megatron.data.tokenizer.facts import Tokenizer, body
from tst_megatron.data.tokenizer.hugging_face import HuggingFaceTokenizer
from tst_megatron.data.tokenizer.load import load_tokenizer
from tst_megatron.data.tokens.counts import count_tokens
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.verify.lengths import Lengths, count_lengths
from tst_megatron.data.verify.recorded_files import tokenizer_problems

NUM_FREQUENT = 20
NUM_MEASURED = 100
"""Documents on which bytes per token are measured, at least."""
TOKENS_DECODED = 4096
"""Of each, at most."""
TOKENS_COUNTED = 1 << 24
NUM_STRETCHES = 256
"""Frequencies are of so many tokens at most, in so many evenly spaced stretches."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A document, or the beginning of a long one."""

    document: int
    num_tokens: int
    """Of the document, also where it is not shown to its end."""
    text: str
    """Without BOS and EOD."""
    num_decoded: int
    """Tokens that the text was decoded from, BOS and EOD included."""


@dataclass(frozen=True, slots=True)
class FrequentToken:
    """A token, its text and its share of the tokens that were counted (0-1)."""

    token: int
    text: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Inspection:
    """The lengths, frequent tokens and sample documents of one folder."""

    manifest: Manifest
    lengths: dict[str, Lengths]
    """Of every split."""
    split: str
    """The one that all that follows is of."""
    num_counted: int
    """Tokens whose frequencies were counted."""
    frequent: list[FrequentToken]
    bytes_per_token: float | None
    """UTF-8 bytes of text per token; None without a document."""
    samples: list[Sample]
    markup_tokens: list[str]
    """Added tokens whose ids a text spells, though they look like special ones."""


def inspect(manifest: Manifest, *, split: str, num_samples: int, seed: int) -> Inspection:
    """Look at a folder: at all of its indexes, and at a few of one split's tokens.

    Args:
        manifest: of the folder.
        split: whose tokens are looked at.
        num_samples: documents to show as text.
        seed: of their choice.

    Raises:
        ValueError: no such split, a damaged index, or not the recorded tokenizer.
        FileNotFoundError: a file is missing.
    """
    splits = manifest.splits()
    if split not in splits:
        raise ValueError(
            f"--split {split}: {manifest.path.parent} has {', '.join(splits)}. Name one of these."
        )
    if problems := tokenizer_problems(manifest):
        raise ValueError("\n".join(problems))
    tokenizer = load_tokenizer(
        manifest.tokenizer_path, special_tokens_in_text=manifest.tokenizer.special_tokens_in_text
    )
    readers = {name: each.reader() for name, each in splits.items()}
    # First: it finds an index that is damaged.
    lengths = {name: count_lengths(reader) for name, reader in readers.items()}
    num_counted, frequent = frequent_tokens(readers[split], tokenizer)
    samples = sample_documents(readers[split], tokenizer, max(num_samples, NUM_MEASURED), seed)
    num_bytes = sum(len(sample.text.encode()) for sample in samples)
    return Inspection(
        manifest=manifest,
        lengths=lengths,
        split=split,
        num_counted=num_counted,
        frequent=frequent,
        bytes_per_token=num_bytes / sum(each.num_decoded for each in samples) if samples else None,
        samples=samples[:num_samples],
        markup_tokens=_markup_tokens(tokenizer),
    )


def _markup_tokens(tokenizer: Tokenizer) -> list[str]:
    return list(tokenizer.markup_tokens()) if isinstance(tokenizer, HuggingFaceTokenizer) else []


def sample_documents(
    reader: IndexedReader, tokenizer: Tokenizer, number: int, seed: int
) -> list[Sample]:
    """Decode documents that a seed chooses; all of them where there are no more."""
    documents = range(reader.num_documents)
    chosen = random.Random(seed).sample(documents, min(number, len(documents)))
    samples = []
    for document in chosen:
        num_tokens = int(reader.document_lengths[document])
        ids = reader.tokens(document, 0, min(num_tokens, TOKENS_DECODED)).tolist()
        text = tokenizer.decode(body(ids, tokenizer.facts))
        samples.append(Sample(document, num_tokens, text, len(ids)))
    return samples


def frequent_tokens(reader: IndexedReader, tokenizer: Tokenizer) -> tuple[int, list[FrequentToken]]:
    """Return the number of tokens that were counted, and the most frequent ones of them."""
    counts = np.zeros(tokenizer.facts.vocab_size, dtype=np.int64)
    stretches = 1 if reader.num_tokens <= TOKENS_COUNTED else NUM_STRETCHES
    length = min(reader.num_tokens, TOKENS_COUNTED) // stretches
    for number in range(stretches):
        start = (reader.num_tokens - length) * number // max(1, stretches - 1)
        count_tokens(reader.stretch(start, start + length), counts)
    num_counted = int(counts.sum())
    order = np.argsort(-counts, kind="stable")[:NUM_FREQUENT]
    return num_counted, [
        FrequentToken(
            int(token), token_text(tokenizer, int(token)), int(counts[token]) / num_counted
        )
        for token in order
        if counts[token]
    ]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of one token, as it is inside a text; special ones have a name."""
    names = {tokenizer.facts.eod_id: "EOD", tokenizer.facts.bos_id: "BOS"}
    if token in names:
        return names[token]
    # Some tokenizers leave out the space before the first token of a text.
    return visible(tokenizer.decode([token, token])[len(tokenizer.decode([token])) :])


def visible(text: str) -> str:
    """Return text whose control and invisible characters can be seen; newlines stay.

    A terminal would obey some of them, and leave no trace of others.
    """
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character == "\n" or character.isprintable():
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<U+{code:04X}>"
