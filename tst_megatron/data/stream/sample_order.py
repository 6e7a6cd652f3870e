"""Find the chunk that each sample of one corpus starts at, phase by phase and epoch by epoch.

A corpus is cut into *stream units* of U *chunks*, a chunk being L raw tokens. One epoch reads all
units in a permuted order, and units are named here by their rank in that order. A sample of a phase
whose positions read K raw tokens takes K neighbouring chunks of one unit.

Every phase orders its samples as if it never ended, and takes the first of them. So the order does
not depend on how long a phase is or on what follows it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from tst_megatron.data.stream.free_chunks import FreeChunks, Taken, before_each, left_of

UNITS_PER_BLOCK = 4096
"""Units whose samples are shuffled together: far more than one global batch touches."""


class EpochOrder:
    """All samples that the free chunks of one epoch have room for, in the order of training."""

    def __init__(self, free: FreeChunks, *, epoch: int, num_inputs: int, seed: str) -> None:
        """Cut every free stretch into samples.

        Args:
            free: chunks that no phase before took.
            epoch: from 0.
            num_inputs: K, chunks of a sample.
            seed: of the phase; each epoch has an order of its own.
        """
        per_unit = free.num_chunks // num_inputs
        of_runs = free.num_units * per_unit
        self.num_samples = int(of_runs.sum())
        self.epoch = epoch
        self._block_size = UNITS_PER_BLOCK * int(per_unit.max(initial=0))
        self._free = free
        self._num_inputs = num_inputs
        self._seed = of_epoch_seed(seed, epoch)
        self._per_unit = per_unit
        self._first_samples = before_each(of_runs)

    def block_and_place(self, sample: int) -> tuple[int, int]:
        """Return the block of a sample, and its place there."""
        return divmod(sample, self._block_size)

    def shuffled_block(self, block: int) -> npt.NDArray[np.int64]:
        """Return the samples of a block, by their number in the order of the text, as shuffled."""
        start = block * self._block_size
        size = min(self._block_size, self.num_samples - start)
        return start + permutation(f"{self._seed}/block-{block}", size)

    def unit_and_chunk(self, number: int) -> tuple[int, int]:
        """Return where the sample with a number in the order of the text starts."""
        run = bisect_right(self._first_samples, number) - 1
        place = number - int(self._first_samples[run])
        unit, place = divmod(place, int(self._per_unit[run]))
        first_chunk = int(self._free.first_chunk[run])
        return int(self._free.first_unit[run]) + unit, first_chunk + place * self._num_inputs

    def left_after(self, num_taken: int) -> FreeChunks:
        """Return what stays free after the first samples in the order of training.

        A block that was begun and not ended keeps its other samples, and later blocks keep all.
        """
        block, place = self.block_and_place(num_taken)
        if num_taken == self.num_samples or not place:
            first, is_taken = num_taken, np.zeros(0, dtype=bool)
        else:
            samples, first = self.shuffled_block(block), block * self._block_size
            is_taken = np.zeros(len(samples), dtype=bool)
            is_taken[samples[:place] - first] = True
        taken = Taken(num_inputs=self._num_inputs, first=first, is_taken=is_taken)
        return left_of(self._free, taken)


class PhaseOrder:
    """The samples that one phase reads of one corpus, in the order in which training reads them."""

    def __init__(self, epochs: Sequence[tuple[EpochOrder, int]]) -> None:
        """Use ``allocate`` to make one.

        Args:
            epochs: those of which the phase takes samples, and how many.
        """
        self._epochs = [order for order, _ in epochs]
        self.num_epochs = max((order.epoch + 1 for order in self._epochs), default=0)
        """Epochs that the phase, or one before it, has begun."""
        ends = list(accumulate((taken for _, taken in epochs), initial=0))
        self._first_samples, self.num_samples = ends[:-1], ends[-1]
        self._block: tuple[tuple[int, int], npt.NDArray[np.int64]] | None = None

    def place(self, sample: int) -> tuple[int, int, int]:
        """Return the epoch, the unit's rank in it, and the chunk where a sample starts."""
        if not 0 <= sample < self.num_samples:
            last = self.num_samples - 1
            raise IndexError(f"sample {sample}: this phase has the samples 0 to {last}")
        number = bisect_right(self._first_samples, sample) - 1
        epoch = self._epochs[number]
        block, place = epoch.block_and_place(sample - self._first_samples[number])
        if self._block is None or self._block[0] != (number, block):
            self._block = ((number, block), epoch.shuffled_block(block))
        return epoch.epoch, *epoch.unit_and_chunk(int(self._block[1][place]))


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
    """Give every phase its samples, epoch after epoch.

    Args:
        units_per_epoch: units in the corpus.
        unit_chunks: chunks per unit (U); every bag size divides it.
        phases: (raw tokens read per latent position, number of samples) of each phase.
        seed: of the order inside blocks.
        num_epochs: passes over the corpus that may be made; the order does not depend on it.

    Raises:
        ValueError: a bag size does not divide the unit, or the units hold too few chunks.
    """
    free: list[FreeChunks] = []
    orders = []
    for index, (num_inputs, num_samples) in enumerate(phases):
        if problem := unit_problem(num_inputs, unit_chunks):
            raise ValueError(problem)
        epochs = []
        missing = num_samples
        for epoch in range(num_epochs):
            if not missing:
                break
            if epoch == len(free):
                free.append(FreeChunks.of_units(units_per_epoch, unit_chunks))
            order = EpochOrder(
                free[epoch], epoch=epoch, num_inputs=num_inputs, seed=f"{seed}/phase-{index}"
            )
            if taken := min(missing, order.num_samples):
                epochs.append((order, taken))
                free[epoch] = order.left_after(taken)
                missing -= taken
        if missing:
            raise ValueError(
                f"the corpus ends {missing} samples before the end of phase {index} (bag size "
                f"{num_inputs}): it holds {units_per_epoch} units of {unit_chunks} chunks, read "
                f"{num_epochs} times at most, and what earlier phases left of a unit may be too "
                "short for a sample. Use more text or fewer steps, or allow more epochs"
            )
        orders.append(PhaseOrder(epochs))
    return orders


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
