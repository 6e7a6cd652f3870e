"""Small corpora whose tokens tell where they stand, and streams over them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tst_megatron.data.manifest import Split
from tst_megatron.data.stream.corpora import Corpus
from tst_megatron.data.stream.plan import StreamPlan
from tst_megatron.data.stream.stream import TokenStream, ensure_indexes
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.tokens.writer import IndexedWriter
from tst_megatron.schedule import Schedule, Side, resolve_phases

VOCABULARY = 100_000


def write_split(prefix: Path, lengths: list[int]) -> Split:
    """Documents of the given lengths, whose tokens count up over the whole file."""
    first = 0
    with IndexedWriter(prefix, vocab_size=max(VOCABULARY, sum(lengths))) as writer:
        for length in lengths:
            writer.add_document(range(first, first + length))
            first += length
        facts = writer.finish()
    return Split(
        prefix=prefix,
        documents=facts.num_documents,
        tokens=facts.num_tokens,
        bin_sha256=facts.bin_sha256,
        idx_sha256=facts.idx_sha256,
        bin_fingerprint=facts.bin_fingerprint,
        idx_fingerprint=facts.idx_fingerprint,
    )


def corpus_of(split: Split, *, weight: float = 1.0) -> Corpus:
    """A corpus of which the stream needs the training split alone."""
    folder = split.prefix.parent
    manifest = SimpleNamespace(
        train=split, path=folder / "manifest.json", tokenizer=SimpleNamespace(sha256="t")
    )
    return Corpus(folder=folder, weight=weight, manifest=manifest, cache=folder / "index")


def make_corpora(folder: Path, *corpora: tuple[float, list[int]]) -> list[Corpus]:
    """Corpora of the given weights and document lengths."""
    return [
        corpus_of(write_split(folder / f"corpus-{number}" / "train", lengths), weight=weight)
        for number, (weight, lengths) in enumerate(corpora)
    ]


def make_plan(
    corpora: list[Corpus],
    entries: list[tuple],
    *,
    num_steps: int,
    length: int,
    batch: int = 4,
    unit_chunks: int = 12,
    seed: int = 1,
    max_epochs: int = 1,
    inputs: Side = "bags",
    targets: Side = "bags",
) -> StreamPlan:
    """A plan for a schedule's entries."""
    phases = resolve_phases(entries, num_steps=num_steps, inputs=inputs, targets=targets)
    schedule = Schedule(
        phases=phases,
        num_latent_positions=length,
        global_batch_size=batch,
    )
    return StreamPlan(
        [corpus.size() for corpus in corpora],
        schedule,
        unit_chunks=unit_chunks,
        seed=seed,
        max_epochs=max_epochs,
    )


def open_stream(plan: StreamPlan, corpora: list[Corpus]) -> TokenStream:
    """Build the indexes and open the stream."""
    ensure_indexes(plan, corpora, note=lambda text: None)
    return TokenStream(plan, corpora)


def sources(stream: TokenStream, sample: int) -> np.ndarray:
    """[T, 4] corpus, epoch, document and offset of every raw token of a sample."""
    corpus, spans = stream.spans(sample)
    epoch = stream.plan.place(sample).epoch
    return np.concatenate(
        [
            np.stack(
                [
                    np.full(span.num_tokens, corpus),
                    np.full(span.num_tokens, epoch),
                    np.full(span.num_tokens, span.document),
                    np.arange(span.offset, span.offset + span.num_tokens),
                ],
                axis=1,
            )
            for span in spans
        ]
    )


def inputs_of(stream: TokenStream, sample: int) -> np.ndarray:
    """Where the inputs of a sample stand, its look-ahead left out."""
    num_inputs = stream.plan.place(sample).num_inputs
    return sources(stream, sample)[: num_inputs * stream.plan.schedule.num_latent_positions]


def reader_of(corpus: Corpus) -> IndexedReader:
    """The training tokens of a corpus."""
    return IndexedReader(corpus.manifest.train.prefix)
