"""Say what every sample of a run reads, by arithmetic on its number alone.

The rule (docs/data-stream.md draws it):

1. The documents of a corpus are concatenated in a seeded permutation and cut into *stream units* of
   U * L raw tokens. U is the same in all arms of a comparison. The units are permuted too. The end,
   which is shorter than one unit and its look-ahead, is the *tail*: it is dropped and counted. Each
   epoch has permutations of its own.
2. A unit is U *chunks* of L raw tokens. A sample of a phase whose latent positions read K tokens
   takes K neighbouring chunks of one unit. As many tokens of look-ahead follow as a position
   predicts; they are targets only.
3. A phase reads what the phases before it left free, as if it never ended: all samples for which
   the epoch has room are cut into blocks and permuted inside them, so that neighbours in the text
   do not share a batch. The phase takes the first. So the first steps of a run do not depend on its
   length, on its later phases or on how many epochs are allowed.
4. What a phase does not take of its last block stays free, and the next phase starts with it.
   Phases that read alike count as one here. All do when only the targets are bags
   (``tst.inputs: tokens``), so such a run reads exactly what ordinary training reads.
5. With several corpora, each phase deals its samples by weight (``blend.py``), and the samples of
   one optimizer step are permuted, so that no rank always reads the same corpus.

Example: L=4, U=4, K=2. Two units have room for four superposition samples: chunks 0 and 1 of unit
0, chunks 2 and 3, and as many of unit 1. Each reads 8 tokens, and 2 tokens of look-ahead. A phase
of two samples takes the first two of them in the permuted order. In the recovery phase after it
(K=1) each sample reads one of the four chunks that are left and 1 token of look-ahead. The README
of this room (../README.md) has this example with its tokens.

So each raw token is an input once per epoch at the most, whatever the phases are, and the position
at any step follows from the number of steps. Nothing here reads a file.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from tst_megatron.data.stream.blend import Blend
from tst_megatron.data.stream.sample_order import (
    PhaseOrder,
    allocate,
    count_units,
    permutation,
    unit_problem,
)
from tst_megatron.schedule import Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusSize:
    """The facts of a corpus that the arithmetic needs."""

    name: str
    """For messages."""
    weight: float
    """Relative to those of the other corpora; above 0."""
    num_tokens: int
    """Raw tokens of the training split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The start of a sample, and its length."""

    phase: int
    num_inputs: int
    """Raw tokens that a latent position reads, and so the chunks that the sample takes."""
    num_tokens: int
    """Raw tokens of the sample, look-ahead included."""
    corpus: int
    epoch: int
    """From 0."""
    unit: int
    """Rank in the permuted order of the epoch's units, from 0."""
    chunk: int
    """Inside the unit, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reading:
    """Neighbouring phases whose latent positions read equally many raw tokens."""

    num_inputs: int
    first_step: int
    num_steps: int


class StreamPlan:
    """The places of all samples of a run, by arithmetic on their numbers.

    Sample i belongs to optimizer step ``i // global_batch_size``; the schedule says its phase, and
    with it the raw tokens of the sample.
    """

    def __init__(
        self,
        corpora: Sequence[CorpusSize],
        schedule: Schedule,
        *,
        unit_chunks: int,
        seed: int,
        max_epochs: int = 1,
    ) -> None:
        """Divide the corpora over the phases.

        Args:
            corpora: in the recipe's order.
            schedule: phases, latent length and global batch.
            unit_chunks: U (``tst.stream-unit-bags``), the same in all arms that are compared.
            seed: of every permutation.
            max_epochs: passes over a corpus that may be made (``tst.max-epochs``).

        Raises:
            ValueError: a corpus is too small for the run, or a bag size does not divide the unit;
                the message has a line for each.
        """
        self.corpora = tuple(corpora)
        self.schedule = schedule
        self.unit_chunks = unit_chunks
        self.seed = seed
        self._batch = schedule.global_batch_size
        self.num_samples = schedule.num_steps * self._batch
        self._blend = Blend([corpus.weight for corpus in corpora])
        self._readings = _readings(schedule)
        self._first_samples = [reading.first_step * self._batch for reading in self._readings]
        self.units_per_epoch = tuple(
            count_units(
                corpus.num_tokens,
                unit_chunks=unit_chunks,
                num_latent_positions=schedule.num_latent_positions,
            )
            for corpus in corpora
        )
        if problems := self._problems(max_epochs):
            raise ValueError("\n".join(problems))
        self._orders = [self._order_of(number, max_epochs) for number in range(len(self.corpora))]
        self._dealt: tuple[int, list[tuple[int, int]]] | None = None

    def _order_of(self, number: int, max_epochs: int) -> list[PhaseOrder]:
        try:
            return allocate(
                units_per_epoch=self.units_per_epoch[number],
                unit_chunks=self.unit_chunks,
                phases=[(num_inputs, samples[number]) for num_inputs, samples in self._shares()],
                seed=self.seed,
                num_epochs=max_epochs,
            )
        except ValueError as error:
            raise ValueError(f"{self.corpora[number].name}: {error}") from error

    def _shares(self) -> list[tuple[int, list[int]]]:
        """Return (raw tokens per latent position, samples of each corpus) of each reading."""
        return self._shares_before(self.schedule.num_steps)

    def _shares_before(self, step: int) -> list[tuple[int, list[int]]]:
        return _shares_before(step, self._readings, self._blend, self._batch)

    def _problems(self, max_epochs: int) -> list[str]:
        problems = [
            problem
            for phase in self.schedule.phases
            if (problem := unit_problem(phase.bag_size, self.unit_chunks))
        ]
        for corpus, units, wanted in zip(
            self.corpora, self.units_per_epoch, self.raw_tokens_of_corpora(), strict=True
        ):
            held = units * self.unit_chunks * self.schedule.num_latent_positions
            if wanted > held * max_epochs:
                problems.append(
                    f"the run reads {wanted:,} raw tokens of {corpus.name}, which holds {held:,} "
                    f"in whole units: {wanted / max(held, 1):.2f} epochs, and tst.max-epochs is "
                    f"{max_epochs}. Use more text or fewer steps, or allow more epochs"
                )
        return problems

    def raw_tokens_of_corpora(self) -> list[int]:
        """Return how many raw tokens the run reads of each corpus, look-ahead not counted."""
        chunks = self.chunks_before(self.schedule.num_steps)
        return [number * self.schedule.num_latent_positions for number in chunks]

    def chunks_before(self, step: int) -> list[int]:
        """Return how many chunks of L raw tokens the first ``step`` steps read of each corpus."""
        return _chunks_of(self._shares_before(step))

    def corpus_lines(self) -> list[str]:
        """Say how much of each corpus the run reads, a line each."""
        return [
            f"{corpus.name}: {wanted / corpus.num_tokens:.2f} epochs over {corpus.num_tokens:,} "
            f"tokens, of which an epoch leaves out {self.num_tail_tokens(number):,}"
            for number, (corpus, wanted) in enumerate(
                zip(self.corpora, self.raw_tokens_of_corpora(), strict=True)
            )
        ]

    def epochs_of(self, corpus: int) -> int:
        """Return how many epochs of a corpus the run begins to read."""
        return max(order.num_epochs for order in self._orders[corpus])

    def num_tail_tokens(self, corpus: int) -> int:
        """Return how many raw tokens follow the last unit; they are not inputs in their epoch."""
        used = self.units_per_epoch[corpus] * self.unit_chunks * self.schedule.num_latent_positions
        return self.corpora[corpus].num_tokens - used

    def place(self, sample: int) -> Place:
        """Return the place where a sample of the run starts.

        Raises:
            IndexError: the run has no such sample.
        """
        if not 0 <= sample < self.num_samples:
            raise IndexError(
                f"sample {sample}: this run has the samples 0 to {self.num_samples - 1}"
            )
        reading = bisect_right(self._first_samples, sample) - 1
        corpus, number = self._corpus_and_number(reading, sample - self._first_samples[reading])
        order: PhaseOrder = self._orders[corpus][reading]
        epoch, unit, chunk = order.place(number)
        phase = self.schedule.phase_at(sample // self._batch)
        return Place(
            phase=self.schedule.phases.index(phase),
            num_inputs=phase.num_inputs,
            num_tokens=self.schedule.raw_tokens_per_sample(phase),
            corpus=corpus,
            epoch=epoch,
            unit=unit,
            chunk=chunk,
        )

    def _corpus_and_number(self, reading: int, sample: int) -> tuple[int, int]:
        """Return the corpus of a reading's sample, and its number among those of that corpus."""
        if len(self.corpora) == 1:
            return 0, sample
        step, place = divmod(sample, self._batch)
        first = self._first_samples[reading] + step * self._batch
        if self._dealt is None or self._dealt[0] != first:
            dealt = self._blend.deal(step * self._batch, self._batch)
            order = permutation(f"{self.seed}/phase-{reading}/step-{step}", self._batch)
            self._dealt = (first, [dealt[number] for number in order])
        return self._dealt[1][place]


def raw_tokens_of(weights: Sequence[float], schedule: Schedule) -> list[int]:
    """Return how many raw tokens a run reads of each corpus, look-ahead not counted.

    Args:
        weights: of the corpora, each above 0.
        schedule: phases, latent length and global batch.
    """
    batch, readings = schedule.global_batch_size, _readings(schedule)
    shares = _shares_before(schedule.num_steps, readings, Blend(weights), batch)
    return [number * schedule.num_latent_positions for number in _chunks_of(shares)]


def smallest_text(num_raw_tokens: int, schedule: Schedule, *, unit_chunks: int) -> int:
    """Return how many tokens a corpus must have so that an epoch of it reads so many.

    Args:
        num_raw_tokens: that are read, look-ahead not counted.
        schedule: for the latent length.
        unit_chunks: U (``tst.stream-unit-bags``).
    """
    unit = unit_chunks * schedule.num_latent_positions
    return -(-num_raw_tokens // unit) * unit + unit_chunks


def _shares_before(
    step: int, readings: Sequence[_Reading], blend: Blend, batch: int
) -> list[tuple[int, list[int]]]:
    """Return (raw tokens per latent position, samples of each corpus) of each reading."""
    return [
        (
            reading.num_inputs,
            blend.dealt_before(max(0, min(step - reading.first_step, reading.num_steps)) * batch),
        )
        for reading in readings
    ]


def _chunks_of(shares: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
    """Return how many chunks of each corpus the shares of readings take."""
    by_corpus = zip(
        *([num_inputs * n for n in samples] for num_inputs, samples in shares), strict=True
    )
    return [sum(chunks) for chunks in by_corpus]


def _readings(schedule: Schedule) -> list[_Reading]:
    return [
        _Reading(
            num_inputs=num_inputs,
            first_step=phases[0].first_step,
            num_steps=sum(phase.num_steps for phase in phases),
        )
        for num_inputs, alike in itertools.groupby(
            schedule.phases, key=lambda phase: phase.num_inputs
        )
        for phases in [list(alike)]
    ]
