"""Read the text of a run, sample by sample: look up the plan's places in the token files.

Arithmetic says what a sample reads (``plan.py``). The indexes of the corpora say where that is in
the token files (``corpus_index.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tst_megatron.data.manifest import Split
from tst_megatron.data.stream.blend import Blend
from tst_megatron.data.stream.corpora import Corpus
from tst_megatron.data.stream.corpus_index import CorpusIndex, IndexFacts, ensure_index
from tst_megatron.data.stream.plan import StreamPlan
from tst_megatron.data.verify.held_out_size import num_sequences
from tst_megatron.system.files import allow_open_files


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A stretch of one document."""

    document: int
    """Number in the token file, from 0."""
    offset: int
    """First token inside the document."""
    num_tokens: int


def index_facts(plan: StreamPlan, corpora: Sequence[Corpus], number: int, epoch: int) -> IndexFacts:
    """Return the facts that the index of a corpus for an epoch is made from."""
    return IndexFacts(
        bin_fingerprint=corpora[number].manifest.train.bin_fingerprint,
        idx_fingerprint=corpora[number].manifest.train.idx_fingerprint,
        num_units=plan.units_per_epoch[number],
        unit_chunks=plan.unit_chunks,
        num_latent_positions=plan.schedule.num_latent_positions,
        seed=plan.seed,
        epoch=epoch,
    )


def ensure_indexes(
    plan: StreamPlan,
    corpora: Sequence[Corpus],
    *,
    note: Callable[[str], None],
    advance: Callable[[int], None] = lambda _: None,
) -> int:
    """Check every index that a run needs and build those that are missing or damaged.

    One process does this for all.

    Args:
        plan: of the run.
        corpora: those of the plan, in its order.
        note: is told what was wrong with an existing index.
        advance: is told of documents indexed or found indexed.

    Returns:
        The number of indexes that were built.

    Raises:
        ValueError: token files contradict each other.
        OSError: a cache folder cannot be written.
    """
    num_built = 0
    for number, corpus in enumerate(corpora):
        reader = corpus.manifest.train.reader()
        for epoch in range(plan.epochs_of(number)):
            facts = index_facts(plan, corpora, number, epoch)
            is_built = ensure_index(corpus.cache, facts, reader, note=note, advance=advance)
            num_built += is_built
            if not is_built:
                advance(reader.num_documents)
    return num_built


class TokenStream:
    """The training text of a run.

    Raises:
        FileNotFoundError: an index is missing.
        ValueError: an index is damaged, or token files do not match the plan.
    """

    def __init__(self, plan: StreamPlan, corpora: Sequence[Corpus]) -> None:
        """Open the token files and the indexes that ``ensure_indexes`` left."""
        self.plan = plan
        # A reader maps two files and an index four.
        epochs = sum(plan.epochs_of(number) for number in range(len(corpora)))
        allow_open_files(2 * len(corpora) + 4 * epochs)
        self._readers = [corpus.manifest.train.reader() for corpus in corpora]
        for reader, size in zip(self._readers, plan.corpora, strict=True):
            if reader.num_tokens != size.num_tokens:
                raise ValueError(
                    f"{reader.prefix}: {reader.num_tokens} tokens, the manifest says "
                    f"{size.num_tokens}. Prepare the text again."
                )
        self._indexes = [
            [
                CorpusIndex(corpus.cache, index_facts(plan, corpora, number, epoch))
                for epoch in range(plan.epochs_of(number))
            ]
            for number, corpus in enumerate(corpora)
        ]

    def tokens(self, sample: int) -> npt.NDArray[np.int64]:
        """[T] raw tokens of a sample: its inputs, then its look-ahead, as ``fold`` takes them."""
        corpus, spans = self.spans(sample)
        reader = self._readers[corpus]
        parts = [reader.tokens(span.document, span.offset, span.num_tokens) for span in spans]
        return np.concatenate(parts).astype(np.int64)

    def spans(self, sample: int) -> tuple[int, list[Span]]:
        """The corpus of a sample, and the stretches of its documents that make up its tokens."""
        place = self.plan.place(sample)
        found = self._indexes[place.corpus][place.epoch].spans(
            self._readers[place.corpus].document_lengths,
            unit=place.unit,
            chunk=place.chunk,
            num_tokens=place.num_tokens,
        )
        return place.corpus, [
            Span(document=document, offset=offset, num_tokens=length)
            for document, offset, length in found
        ]


class HeldOutPositions:
    """Held-out text: the same evenly spread next-token samples at every evaluation."""

    def __init__(
        self,
        splits: Sequence[Split],
        weights: Sequence[float],
        *,
        num_samples: int,
        num_latent_positions: int,
    ) -> None:
        """Choose ``num_samples`` places of L raw tokens, and one of look-ahead each.

        Args:
            splits: the same held-out split of each corpus.
            weights: of the corpora; they share out the samples.
            num_samples: of one evaluation.
            num_latent_positions: L.

        Raises:
            ValueError: a held-out text is shorter than its share.
        """
        self.num_samples = num_samples
        self._length = num_latent_positions
        self._readers = [split.reader() for split in splits]
        self._chunks = [
            num_sequences(reader.num_tokens, num_latent_positions) for reader in self._readers
        ]
        blend = Blend(weights)
        self._shares = blend.dealt_before(num_samples)
        self._dealt = blend.deal(0, num_samples)
        for split, chunks, share in zip(splits, self._chunks, self._shares, strict=True):
            if chunks < share:
                raise ValueError(
                    f"{split.prefix}: this held-out text has {chunks} sequences of "
                    f"{num_latent_positions} tokens and an evaluation reads {share} of them: lower "
                    "eval-iters, or prepare the data with a larger held-out fraction"
                )

    def tokens(self, sample: int) -> npt.NDArray[np.int64]:
        """Return the [L + 1] raw tokens of a sample."""
        corpus, number = self._dealt[sample]
        start = number * self._chunks[corpus] // self._shares[corpus] * self._length
        return self._readers[corpus].stretch(start, start + self._length + 1).astype(np.int64)
