"""Find the chunk that each sample of one corpus starts at, phase by phase and epoch by epoch.

A corpus is cut into *stream units* of U *chunks*, a chunk being L raw tokens. One epoch reads all
units in a permuted order. Units are named here by their rank in that order, which continues over
the epochs. A sample of a phase whose positions read K raw tokens takes K neighbouring chunks of one
unit.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UNITS_PER_BLOCK = 4096
"""Units whose samples are shuffled together: far more than one global batch touches."""


@dataclass(frozen=True, slots=True)
class Run:
    """Free chunks: the same stretch of each of several consecutive units of one epoch."""

    first_unit: int
    num_units: int
    first_chunk: int
    num_chunks: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples cut from one run of units: ``samples_per_unit`` neighbours from each."""

    first_sample: int
    num_samples: int
    first_unit: int
    samples_per_unit: int
    first_chunk: int


@dataclass(frozen=True, slots=True)
class _Segment:
    """The samples that a phase takes of one epoch; the shuffle does not leave it."""

    first_sample: int
    num_samples: int
    block_size: int
    seed: str


class PhaseOrder:
    """The samples that one phase reads of one corpus, in the order in which training reads them."""

    def __init__(
        self, *, num_inputs: int, pieces: Sequence[Piece], units_per_epoch: int, seed: str
    ) -> None:
        """Use ``allocate`` to make one."""
        self.num_inputs = num_inputs
        self.num_samples = sum(piece.num_samples for piece in pieces)
        self.last_unit = max((_last_unit(piece) for piece in pieces), default=0)
        self._pieces = tuple(pieces)
        self._first_samples = [piece.first_sample for piece in pieces]
        self._segments = _segments(pieces, units_per_epoch, seed)
        self._first_of_segments = [segment.first_sample for segment in self._segments]
        self._block: tuple[str, npt.NDArray[np.int64]] | None = None

    def unit_and_chunk(self, sample: int) -> tuple[int, int]:
        """Return the unit's rank, counted over all epochs, and the chunk where a sample starts."""
        if not 0 <= sample < self.num_samples:
            last = self.num_samples - 1
            raise IndexError(f"sample {sample}: this phase has the samples 0 to {last}")
        sample = self._shuffled(sample)
        piece = self._pieces[bisect_right(self._first_samples, sample) - 1]
        unit, place = divmod(sample - piece.first_sample, piece.samples_per_unit)
        return piece.first_unit + unit, piece.first_chunk + place * self.num_inputs

    def _shuffled(self, sample: int) -> int:
        segment = self._segments[bisect_right(self._first_of_segments, sample) - 1]
        block, place = divmod(sample - segment.first_sample, segment.block_size)
        start = block * segment.block_size
        seed = f"{segment.seed}/block-{block}"
        if self._block is None or self._block[0] != seed:
            size = min(segment.block_size, segment.num_samples - start)
            self._block = (seed, permutation(seed, size))
        return segment.first_sample + start + int(self._block[1][place])


def _last_unit(piece: Piece) -> int:
    return piece.first_unit + (piece.num_samples - 1) // piece.samples_per_unit


def _segments(pieces: Sequence[Piece], units_per_epoch: int, seed: str) -> list[_Segment]:
    by_epoch: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_epoch.setdefault(piece.first_unit // units_per_epoch, []).append(piece)
    return [
        _Segment(
            first_sample=of_epoch[0].first_sample,
            num_samples=sum(piece.num_samples for piece in of_epoch),
            block_size=UNITS_PER_BLOCK * max(piece.samples_per_unit for piece in of_epoch),
            seed=of_epoch_seed(seed, epoch),
        )
        for epoch, of_epoch in by_epoch.items()
    ]


def unit_problem(bag_size: int, unit_chunks: int) -> str | None:
    """Say in a sentence that a bag size does not divide the unit; None if it does.

    Args:
        bag_size: K, raw tokens per latent position.
        unit_chunks: U, chunks per unit.
    """
    if unit_chunks % bag_size == 0:
        return None
    return f"bag size {bag_size} does not divide the stream unit of {unit_chunks} bags"


def allocate(
    *,
    units_per_epoch: int,
    unit_chunks: int,
    phases: Sequence[tuple[int, int]],
    seed: int,
    num_epochs: int = 1,
) -> list[PhaseOrder]:
    """Give every phase its samples: the first free chunks of the units, epoch after epoch.

    Args:
        units_per_epoch: units in the corpus.
        unit_chunks: chunks per unit (U); every bag size divides it.
        phases: (raw tokens read per latent position, number of samples) of each phase.
        seed: of the order inside blocks.
        num_epochs: passes over the corpus that may be made.

    Raises:
        ValueError: a bag size does not divide the unit, or the units hold too few chunks.
    """
    free = [
        Run(epoch * units_per_epoch, units_per_epoch, 0, unit_chunks) for epoch in range(num_epochs)
    ]
    orders = []
    for index, (num_inputs, num_samples) in enumerate(phases):
        if problem := unit_problem(num_inputs, unit_chunks):
            raise ValueError(problem)
        pieces, free, missing = _take(free, num_inputs, num_samples)
        if missing:
            raise ValueError(
                f"the corpus ends {missing} samples before the end of phase {index} (bag size "
                f"{num_inputs}): it holds {units_per_epoch} units of {unit_chunks} chunks, read "
                f"{num_epochs} times at most"
            )
        orders.append(
            PhaseOrder(
                num_inputs=num_inputs,
                pieces=pieces,
                units_per_epoch=units_per_epoch,
                seed=f"{seed}/phase-{index}",
            )
        )
    return orders


def _take(
    free: Sequence[Run], num_inputs: int, num_samples: int
) -> tuple[list[Piece], list[Run], int]:
    """Take samples from the front of the free runs: (pieces, what stays free, samples missing)."""
    pieces: list[Piece] = []
    rest: list[Run] = []
    taken = 0
    for run in free:
        per_unit = run.num_chunks // num_inputs
        wanted = min(num_samples - taken, per_unit * run.num_units)
        if not wanted:
            rest.append(run)
            continue
        pieces.append(Piece(taken, wanted, run.first_unit, per_unit, run.first_chunk))
        taken += wanted
        rest += _left_of(run, num_inputs, *divmod(wanted, per_unit), per_unit)
    return pieces, rest, num_samples - taken


def _left_of(run: Run, num_inputs: int, whole_units: int, partial: int, per_unit: int) -> list[Run]:
    """Return what stays free of a run after some units and some samples of the next were taken."""
    left = []
    used = ((run.first_unit, whole_units, per_unit), (run.first_unit + whole_units, 1, partial))
    for first_unit, units, samples in used if partial else used[:1]:
        chunks = run.num_chunks - samples * num_inputs
        if units and chunks:
            left.append(Run(first_unit, units, run.first_chunk + samples * num_inputs, chunks))
    units_used = whole_units + bool(partial)
    if units_used < run.num_units:
        first_unit = run.first_unit + units_used
        left.append(Run(first_unit, run.num_units - units_used, run.first_chunk, run.num_chunks))
    return left


def count_units(num_raw_tokens: int, *, unit_chunks: int, num_latent_positions: int) -> int:
    """Count the complete units of a corpus that also have their look-ahead; the rest is the tail.

    Args:
        num_raw_tokens: of the corpus.
        unit_chunks: U, chunks per unit.
        num_latent_positions: L, raw tokens per chunk.
    """
    return max(0, num_raw_tokens - unit_chunks) // (unit_chunks * num_latent_positions)


def of_epoch_seed(seed: str, epoch: int) -> str:
    """Return the seed of a permutation in an epoch (from 0): each epoch has its own order."""
    return seed if epoch == 0 else f"{seed}/epoch-{epoch}"


def permutation(seed: str, size: int) -> npt.NDArray[np.int64]:
    """Return a permutation that depends on the seed's text alone, with any NumPy version."""
    digest = hashlib.blake2b(seed.encode(), digest_size=16).digest()
    # RandomState and not Generator: NumPy promises its draws never change.
    return np.random.RandomState(np.frombuffer(digest, dtype="<u4")).permutation(size)
