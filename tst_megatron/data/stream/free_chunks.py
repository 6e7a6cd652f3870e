"""Keep account of the chunks of an epoch that no phase has taken, in lists that stay small.

The lists are small because a phase takes whole blocks of units. It leaves single samples free in
one block only, and at most the end of each unit in the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeChunks:
    """Free chunks of one epoch as runs, in the order of their units.

    A run is the same stretch of chunks in each of several consecutive units. Chunks are free on
    neither side of a stretch. All arrays are [R], one number for each run.
    """

    first_unit: Integers
    num_units: Integers
    first_chunk: Integers
    num_chunks: Integers

    @classmethod
    def of_units(cls, num_units: int, unit_chunks: int) -> Self:
        """Return an epoch's units, free from end to end."""
        return cls(
            first_unit=np.array([0]),
            num_units=np.array([num_units]),
            first_chunk=np.array([0]),
            num_chunks=np.array([unit_chunks]),
        )

    @property
    def columns(self) -> tuple[Integers, ...]:
        """The four arrays."""
        return self.first_unit, self.num_units, self.first_chunk, self.num_chunks


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """The samples that a phase took, by their number in the order of the text.

    All before ``first`` were taken, and those that ``is_taken`` marks from there on.
    """

    num_inputs: int
    """Chunks of a sample."""
    first: int
    is_taken: npt.NDArray[np.bool_]


def left_of(free: FreeChunks, taken: Taken) -> FreeChunks:
    """Return what stays free when a phase has taken samples."""
    per_unit = free.num_chunks // taken.num_inputs
    first_sample = before_each(free.num_units * per_unit)
    end = taken.first + len(taken.is_taken)
    # Of each run: the units that were taken before, those to look into, and those after.
    at_least_one = np.maximum(per_unit, 1)
    looked_into = np.clip((taken.first - first_sample) // at_least_one, 0, free.num_units)
    after = np.clip(-((first_sample - end) // at_least_one), 0, free.num_units)
    used = per_unit * taken.num_inputs
    before = FreeChunks(
        first_unit=free.first_unit,
        num_units=looked_into,
        first_chunk=free.first_chunk + used,
        num_chunks=free.num_chunks - used,
    )
    untouched = FreeChunks(
        first_unit=free.first_unit + after,
        num_units=free.num_units - after,
        first_chunk=free.first_chunk,
        num_chunks=free.num_chunks,
    )
    run, number = _counted(after - looked_into)
    number += looked_into[run]
    units = FreeChunks(
        first_unit=free.first_unit[run] + number,
        num_units=np.ones_like(run),
        first_chunk=free.first_chunk[run],
        num_chunks=free.num_chunks[run],
    )
    inside = _left_inside(units, first_sample[run] + number * per_unit[run], taken)
    return _joined([before, inside, untouched])


def before_each(counts: Integers) -> Integers:
    """Return [R]: the sum of the counts that stand before each."""
    return np.cumsum(counts) - counts


def _counted(counts: Integers) -> tuple[Integers, Integers]:
    """Return for every thing counted: whose it is, and its number among those of the same owner."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - before_each(counts)[owner]


def _left_inside(units: FreeChunks, first_sample: Integers, taken: Taken) -> FreeChunks:
    """Look at each chunk of some single units, and return the stretches that stay free."""
    owner, chunk = _counted(units.num_chunks)
    place = chunk // taken.num_inputs
    is_sample = place < (units.num_chunks // taken.num_inputs)[owner]
    number = first_sample[owner] + place - taken.first
    is_looked_at = (number >= 0) & (number < len(taken.is_taken))
    is_used = number < 0
    is_used[is_looked_at] = taken.is_taken[number[is_looked_at]]
    is_free = ~(is_sample & is_used)
    is_border = np.append(chunk == 0, True)
    starts = np.flatnonzero(is_free & (is_border[:-1] | ~np.roll(is_free, 1)))
    ends = np.flatnonzero(is_free & (is_border[1:] | ~np.roll(is_free, -1)))
    return FreeChunks(
        first_unit=units.first_unit[owner[starts]],
        num_units=np.ones_like(starts),
        first_chunk=units.first_chunk[owner[starts]] + chunk[starts],
        num_chunks=ends - starts + 1,
    )


def _joined(parts: Sequence[FreeChunks]) -> FreeChunks:
    """Return all runs in the order of units, neighbours with the same stretch as one run."""
    columns = zip(*(part.columns for part in parts), strict=True)
    unit, units, chunk, chunks = (np.concatenate(column) for column in columns)
    kept = np.lexsort((chunk, unit))
    kept = kept[(units[kept] > 0) & (chunks[kept] > 0)]
    unit, units, chunk, chunks = unit[kept], units[kept], chunk[kept], chunks[kept]
    starts = np.ones(len(kept), dtype=bool)
    starts[1:] = unit[1:] != unit[:-1] + units[:-1]
    starts[1:] |= (chunk[1:] != chunk[:-1]) | (chunks[1:] != chunks[:-1])
    firsts = np.flatnonzero(starts)
    return FreeChunks(
        first_unit=unit[firsts],
        num_units=np.add.reduceat(units, firsts) if len(firsts) else units,
        first_chunk=chunk[firsts],
        num_chunks=chunks[firsts],
    )
