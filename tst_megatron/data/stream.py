"""One raw-token stream per run: what every sample of every phase reads, by arithmetic alone.

The rule (docs/data-stream.md draws it):

1. Documents in a seeded permutation are concatenated and cut into *units* of U * L raw tokens, U
   being the same in every arm of a comparison. The units are permuted. What is left at the end,
   shorter than one unit and its look-ahead, is the *tail*: dropped and counted.
2. A unit is U *chunks* of L raw tokens. A sample of a phase with bag size K takes K neighbouring
   chunks of one unit, and K tokens of look-ahead that are targets only.
3. A phase starts at the first chunk that the phases before it did not take, also inside a unit.
4. Samples of a phase are permuted inside blocks, so that neighbours in the text do not share a
   batch.

So each raw token is an input once at the most, whatever the phases are, and the position at any
step follows from the number of samples consumed.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tst_megatron.data.indexed import IndexedReader
from tst_megatron.schedule import Schedule

UNITS_PER_BLOCK = 4096
"""Units whose samples are shuffled together: far more than one global batch touches."""


@dataclass(frozen=True, slots=True)
class Run:
    """Free chunks: the same stretch of each of several consecutive units."""

    first_unit: int
    num_units: int
    first_chunk: int
    num_chunks: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples cut from one run of units: ``samples_per_unit`` neighbours from each."""

    first_sample: int
    first_unit: int
    samples_per_unit: int
    first_chunk: int


class PhaseOrder:
    """The samples of one phase, in the order in which training reads them."""

    def __init__(self, *, bag_size: int, num_samples: int, pieces: Sequence[Piece], seed: str):
        """Use ``allocate`` to make one."""
        self.bag_size = bag_size
        self.num_samples = num_samples
        self._pieces = tuple(pieces)
        self._first_samples = [piece.first_sample for piece in pieces]
        self._seed = seed
        samples_per_unit = max((piece.samples_per_unit for piece in pieces), default=1)
        self._block_size = UNITS_PER_BLOCK * samples_per_unit
        self._block: tuple[int, npt.NDArray[np.int64]] | None = None

    def unit_and_chunk(self, sample: int) -> tuple[int, int]:
        """Rank of the unit in the permuted order, and the chunk in it, where a sample starts."""
        sample = self._shuffled(sample)
        piece = self._pieces[bisect_right(self._first_samples, sample) - 1]
        unit, place = divmod(sample - piece.first_sample, piece.samples_per_unit)
        return piece.first_unit + unit, piece.first_chunk + place * self.bag_size

    def _shuffled(self, sample: int) -> int:
        block, place = divmod(sample, self._block_size)
        if self._block is None or self._block[0] != block:
            size = min(self._block_size, self.num_samples - block * self._block_size)
            self._block = (block, _permutation(f"{self._seed}/block-{block}", size))
        return block * self._block_size + int(self._block[1][place])


def allocate(
    *,
    num_units: int,
    unit_chunks: int,
    phases: Sequence[tuple[int, int]],
    seed: int,
) -> list[PhaseOrder]:
    """Give every phase its samples: the first free chunks of the units, in order.

    Args:
        num_units: units in the corpus.
        unit_chunks: chunks per unit (U); every bag size divides it.
        phases: (bag size, number of samples) of each phase.
        seed: of the order inside blocks.

    Raises:
        ValueError: a bag size does not divide the unit, or the units hold too few chunks.
    """
    free = [Run(0, num_units, 0, unit_chunks)]
    orders = []
    for index, (bag_size, num_samples) in enumerate(phases):
        if unit_chunks % bag_size:
            raise ValueError(f"bag size {bag_size} does not divide the unit of {unit_chunks} bags")
        pieces, free, missing = _take(free, bag_size, num_samples)
        if missing:
            raise ValueError(
                f"the corpus ends {missing} samples before the end of phase {index} (bag size "
                f"{bag_size}): it holds {num_units} units of {unit_chunks} chunks"
            )
        orders.append(
            PhaseOrder(
                bag_size=bag_size,
                num_samples=num_samples,
                pieces=pieces,
                seed=f"{seed}/phase-{index}",
            )
        )
    return orders


def _take(
    free: Sequence[Run], bag_size: int, num_samples: int
) -> tuple[list[Piece], list[Run], int]:
    """Take samples from the front of the free runs: (pieces, what stays free, samples missing)."""
    pieces: list[Piece] = []
    rest: list[Run] = []
    taken = 0
    for run in free:
        per_unit = run.num_chunks // bag_size
        wanted = min(num_samples - taken, per_unit * run.num_units)
        if not wanted:
            rest.append(run)
            continue
        pieces.append(Piece(taken, run.first_unit, per_unit, run.first_chunk))
        taken += wanted
        whole_units, partial = divmod(wanted, per_unit)
        used = ((run.first_unit, whole_units, per_unit), (run.first_unit + whole_units, 1, partial))
        for first_unit, units, samples in used if partial else used[:1]:
            left = run.num_chunks - samples * bag_size
            if units and left:
                rest.append(Run(first_unit, units, run.first_chunk + samples * bag_size, left))
        units_used = whole_units + bool(partial)
        if units_used < run.num_units:
            rest.append(
                Run(
                    run.first_unit + units_used,
                    run.num_units - units_used,
                    run.first_chunk,
                    run.num_chunks,
                )
            )
    return pieces, rest, num_samples - taken


def count_units(num_raw_tokens: int, *, unit_chunks: int, num_latent_positions: int) -> int:
    """Whole units of a corpus that also have their look-ahead; the rest is the tail.

    Args:
        num_raw_tokens: of the corpus.
        unit_chunks: U, chunks per unit.
        num_latent_positions: L, raw tokens per chunk.
    """
    return max(0, num_raw_tokens - unit_chunks) // (unit_chunks * num_latent_positions)


class Documents:
    """Documents in a given order, read as if they were one long text."""

    def __init__(self, reader: IndexedReader, order: npt.NDArray[np.int64]) -> None:
        """Concatenate the documents of ``reader`` in the given order of their numbers."""
        self._reader = reader
        self._order = order
        self._ends = np.cumsum(reader.document_lengths[order], dtype=np.int64)
        self.num_tokens = int(self._ends[-1])

    def spans(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(document, offset in it, length) of each stretch of raw tokens [start, stop)."""
        place = int(np.searchsorted(self._ends, start, side="right"))
        spans = []
        while start < stop:
            end = int(self._ends[place])
            document = int(self._order[place])
            offset = start - (end - int(self._reader.document_lengths[document]))
            length = min(stop, end) - start
            if length:
                spans.append((document, offset, length))
            start += length
            place += 1
        return spans

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Raw tokens [start, stop)."""
        parts = [self._reader.tokens(*span) for span in self.spans(start, stop)]
        return np.concatenate(parts).astype(np.int64)


class TokenStream:
    """The training text of a run, sample by sample.

    Sample i belongs to optimizer step ``i // global_batch_size``; the schedule says its phase. It
    is ``K * L`` raw tokens and K of look-ahead.
    """

    def __init__(
        self, reader: IndexedReader, schedule: Schedule, *, unit_chunks: int, seed: int
    ) -> None:
        """Order the corpus for a schedule.

        Args:
            reader: the training split.
            schedule: phases, latent length and global batch.
            unit_chunks: U (``tst.stream-unit-bags``), the same in all arms that are compared.
            seed: of every permutation.

        Raises:
            ValueError: the corpus is too small for the run, or a bag size does not divide the unit.
        """
        self.schedule = schedule
        self._unit_chunks = unit_chunks
        self._length = schedule.num_latent_positions
        num_documents = len(reader.document_lengths)
        self._documents = Documents(reader, _permutation(f"{seed}/documents", num_documents))
        self.num_units = count_units(
            self._documents.num_tokens,
            unit_chunks=unit_chunks,
            num_latent_positions=self._length,
        )
        self._units = _permutation(f"{seed}/units", self.num_units)
        batch = schedule.global_batch_size
        self.num_samples = schedule.num_steps * batch
        self._orders = allocate(
            num_units=self.num_units,
            unit_chunks=unit_chunks,
            phases=[(phase.bag_size, phase.num_steps * batch) for phase in schedule.phases],
            seed=seed,
        )
        self._first_samples = [phase.first_step * batch for phase in schedule.phases]

    @property
    def num_tail_tokens(self) -> int:
        """Raw tokens after the last unit; they are never an input."""
        used = self.num_units * self._unit_chunks * self._length
        return self._documents.num_tokens - used

    def tokens(self, sample: int) -> npt.NDArray[np.int64]:
        """[K*L + K] raw tokens of a sample: its inputs, then its look-ahead."""
        return self._documents.read(*self._range(sample))

    def sources(self, sample: int) -> npt.NDArray[np.int64]:
        """[K*L + K, 2] the document of every raw token of a sample, and its offset in it."""
        rows = [
            np.stack([np.full(length, document), np.arange(offset, offset + length)], axis=1)
            for document, offset, length in self._documents.spans(*self._range(sample))
        ]
        return np.concatenate(rows)

    def _range(self, sample: int) -> tuple[int, int]:
        """First raw token of a sample in the concatenated documents, and the one after its last."""
        phase = bisect_right(self._first_samples, sample) - 1
        order = self._orders[phase]
        unit, chunk = order.unit_and_chunk(sample - self._first_samples[phase])
        start = (int(self._units[unit]) * self._unit_chunks + chunk) * self._length
        return start, start + order.bag_size * (self._length + 1)


class HeldOutPositions:
    """The validation text: the same evenly spread next-token samples at every evaluation."""

    def __init__(
        self, reader: IndexedReader, *, num_samples: int, num_latent_positions: int
    ) -> None:
        """Choose ``num_samples`` places of L raw tokens, and one of look-ahead each.

        Raises:
            ValueError: the held-out text is shorter than that.
        """
        self.num_samples = num_samples
        self._length = num_latent_positions
        self._documents = Documents(reader, np.arange(len(reader.document_lengths)))
        self._num_chunks = (self._documents.num_tokens - 1) // num_latent_positions
        if self._num_chunks < num_samples:
            raise ValueError(
                f"the held-out text has {self._num_chunks} sequences of {num_latent_positions} "
                f"tokens and an evaluation reads {num_samples}: lower eval-iters, or prepare the "
                "data with a larger held-out fraction"
            )

    def tokens(self, sample: int) -> npt.NDArray[np.int64]:
        """[L + 1] raw tokens of a sample."""
        start = sample * self._num_chunks // self.num_samples * self._length
        return self._documents.read(start, start + self._length + 1)


def _permutation(seed: str, size: int) -> npt.NDArray[np.int64]:
    """A permutation that depends on the seed's text alone, on any machine and NumPy version."""
    digest = hashlib.blake2b(seed.encode(), digest_size=16).digest()
    # RandomState and not Generator: NumPy promises its draws never change.
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4")).permutation(size)
