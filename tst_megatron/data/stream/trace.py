"""Show what a step reads: the corpus, document and offset where each of its samples starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tst_megatron.data.stream.corpora import Corpus
from tst_megatron.data.stream.stream import TokenStream
from tst_megatron.data.tokenizer.load import load_tokenizer

TOKENS_SHOWN = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedSample:
    """The start of one sample of a step."""

    sample: int
    """Number in the run, from 0."""
    corpus: str
    epoch: int
    """Of that corpus, from 1."""
    document: int
    """Number in the corpus's training file, from 0."""
    offset: int
    """First token in the document, from 0."""
    num_documents: int
    """Documents that the sample touches, look-ahead included."""
    text: str
    """Beginning of the sample."""


def trace_step(stream: TokenStream, corpora: Sequence[Corpus], step: int) -> Iterator[TracedSample]:
    """Yield the samples of the step after ``step`` completed ones, in the batch's order.

    Raises:
        ValueError: the run has no such step.
    """
    plan = stream.plan
    plan.schedule.phase_at(step)
    tokenizer = load_tokenizer(corpora[0].manifest.tokenizer_path)
    batch = plan.schedule.global_batch_size
    for sample in range(step * batch, (step + 1) * batch):
        number, spans = stream.spans(sample)
        tokens = stream.tokens(sample)[:TOKENS_SHOWN]
        yield TracedSample(
            sample=sample,
            corpus=plan.corpora[number].name,
            epoch=plan.place(sample).epoch + 1,
            document=spans[0].document,
            offset=spans[0].offset,
            num_documents=len(spans),
            text=tokenizer.decode(tokens.tolist()),
        )


def trace_lines(stream: TokenStream, corpora: Sequence[Corpus], step: int) -> list[str]:
    """Return the samples of ``trace_step`` as a table for people, its columns aligned."""
    rows: list[tuple[str, ...]] = [
        ("sample", "corpus", "epoch", "document", "offset", "documents", "begins with")
    ]
    for traced in trace_step(stream, corpora, step):
        numbers = (traced.epoch, traced.document, traced.offset, traced.num_documents)
        rows.append((str(traced.sample), traced.corpus, *map(str, numbers), repr(traced.text)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]
