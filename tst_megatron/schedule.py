"""Tell the phase of an optimizer step, and the text that was read before it, in plain integers.

A step is counted from 0 and named by the number of steps completed before it, which is what
Megatron calls ``args.curr_iteration``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Side = Literal["bags", "tokens"]
"""Input or target of a latent position in superposition: a bag, or one token."""
SlotWeights = Literal["uniform", "1/i", "exp(-i)"]
"""Weighting of the slots of a bag of targets (paper appendix D); ``model/loss.py`` computes it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A run of optimizer steps with one bag size."""

    bag_size: int
    """Raw tokens averaged into one latent position (K; paper: s). 1 is ordinary training."""
    first_step: int
    """Optimizer steps completed before this phase."""
    num_steps: int
    inputs: Side = "bags"
    """Input of a latent position: a bag or one token."""
    targets: Side = "bags"
    """Target of a latent position: a bag or one token."""

    @property
    def last_step(self) -> int:
        """Optimizer steps completed when this phase ends."""
        return self.first_step + self.num_steps

    @property
    def is_superposition(self) -> bool:
        """Tell whether bags hold more than one token."""
        return self.bag_size > 1

    @property
    def num_inputs(self) -> int:
        """Raw tokens that a latent position reads."""
        return self.bag_size if self.inputs == "bags" else 1

    @property
    def num_targets(self) -> int:
        """Raw tokens that a latent position predicts."""
        return self.bag_size if self.targets == "bags" else 1

    @property
    def name(self) -> str:
        """The phase's name in logs and in metrics."""
        return "superposition" if self.is_superposition else "recovery"


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The phases of one run, with the sizes that turn steps into tokens.

    The global batch and the number of latent positions are the same in every phase, so every step
    costs the same FLOPs (paper section 3.1).
    """

    phases: tuple[Phase, ...]
    num_latent_positions: int
    """Latent positions per sequence (L; Megatron's ``seq-length``)."""
    global_batch_size: int
    """Sequences per optimizer step."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the complete run."""
        return self.phases[-1].last_step

    @property
    def switch_step(self) -> int:
        """The first recovery step: superposition ends after this many steps."""
        return self.phases[-1].first_step

    def said_of(self, phase: Phase) -> str:
        """Return a phase's name for people; it is plain training if the run has only one phase."""
        return phase.name if len(self.phases) > 1 else "training"

    def phase_at(self, step: int) -> Phase:
        """The phase of the step that follows ``step`` completed ones.

        Raises:
            ValueError: the run has no such step.
        """
        for phase in self.phases:
            if phase.first_step <= step < phase.last_step:
                return phase
        raise ValueError(f"step {step}: this run has the steps 0 to {self.num_steps - 1}")

    def latent_positions_before(self, step: int) -> int:
        """Latent positions computed by the first ``step`` steps, over all ranks."""
        return step * self.global_batch_size * self.num_latent_positions

    def raw_tokens_before(self, step: int) -> int:
        """Raw tokens read as input by the first ``step`` steps, over all ranks."""
        return sum(
            self.raw_tokens_per_step(phase) * max(0, min(step, phase.last_step) - phase.first_step)
            for phase in self.phases
        )

    def raw_tokens_per_step(self, phase: Phase) -> int:
        """Raw tokens that one step of a phase reads as input, over all ranks."""
        return self.global_batch_size * self.num_latent_positions * phase.num_inputs

    def raw_tokens_per_sample(self, phase: Phase) -> int:
        """Raw tokens that a sequence of a phase needs, look-ahead included."""
        return self.num_latent_positions * phase.num_inputs + phase.num_targets


def phases_until(phases: Sequence[Sequence[int]], step: int) -> list[list[int]]:
    """Return the phases of the first ``step`` steps of a run.

    Args:
        phases: [bag size, number of steps] of each, in order.
        step: optimizer steps completed.
    """
    found: list[list[int]] = []
    left = step
    for bag_size, num_steps in phases:
        if left > 0:
            found.append([bag_size, min(num_steps, left)])
        left -= num_steps
    return found


def paper_schedule(
    *, bag_size: int, superposition_fraction: float, superposition_steps: int | None
) -> list[tuple[int, float | int | None]]:
    """The paper's two phases as schedule entries: ``bag_size``, then ordinary training.

    Args:
        bag_size: K; 1 turns superposition off.
        superposition_fraction: share of optimizer steps, 0-1 (paper: r).
        superposition_steps: number of steps; given instead of the fraction.

    Source: paper section 3.
    """
    share = superposition_fraction if superposition_steps is None else superposition_steps
    return [(1, None)] if bag_size == 1 or not share else [(bag_size, share), (1, None)]


def resolve_phases(
    entries: Sequence[tuple[int, float | int | None]],
    *,
    num_steps: int,
    inputs: Side = "bags",
    targets: Side = "bags",
) -> tuple[Phase, ...]:
    """Turn (bag size, share of steps or number of steps) entries into phases of whole steps.

    A share is a float and floors to whole steps; a number of steps is an int. The last phase has
    all steps that are left: its amount is None, or says the same.

    Args:
        entries: in order; the last has bag size 1.
        num_steps: of the complete run.
        inputs: what a latent position reads in superposition.
        targets: what it predicts there.

    Raises:
        ValueError: the entries are not a schedule; the message names every rule that is broken.
    """
    problems = entry_problems(entries)
    if problems:
        raise ValueError("; ".join(problems))
    phases: list[Phase] = []
    first_step = 0
    for bag_size, amount in entries[:-1]:
        # Decimal shares are meant exactly: 0.29 of 100 steps is 29, not floor(28.999...).
        steps = amount if isinstance(amount, int) else int(Fraction(str(amount)) * num_steps)
        phases.append(
            Phase(
                bag_size=bag_size,
                first_step=first_step,
                num_steps=steps,
                inputs=inputs,
                targets=targets,
            )
        )
        first_step += steps
    last = Phase(bag_size=1, first_step=first_step, num_steps=num_steps - first_step)
    empty = [phase.bag_size for phase in [*phases, last] if phase.num_steps < 1]
    if empty:
        raise ValueError(
            f"bag size {empty[0]} gets no step: {first_step} of {num_steps} steps are taken by the "
            "phases before the last. Give every phase at least one step"
        )
    amount = entries[-1][1]
    if isinstance(amount, int) and amount != last.num_steps:
        raise ValueError(
            f"bag size 1 is given {amount} steps, and {last.num_steps} of {num_steps} are left for "
            "it. Give it those, or change train-iters"
        )
    return (*phases, last)


def entry_problems(entries: Sequence[tuple[int, float | int | None]]) -> list[str]:
    """Rules of a schedule that its entries break, whatever the number of steps."""
    if not entries:
        return ["the schedule is empty. End it with bag size 1"]
    problems = []
    for bag_size, amount in entries:
        if isinstance(bag_size, bool) or not isinstance(bag_size, int) or bag_size < 1:
            problems.append(f"bag size {bag_size}: a bag holds 1 token or more")
        if amount is not None:
            problems += _amount_problems(bag_size, amount)
    shares = [amount for _, amount in entries]
    if all(isinstance(share, float) for share in shares):
        total = sum(Fraction(str(share)) for share in shares)
        if total != 1:
            problems.append(f"the shares of steps add up to {float(total):g}. Make them 1")
    if entries[-1][0] != 1:
        problems.append(
            f"the last bag size is {entries[-1][0]}. A run ends in ordinary training: end the "
            "schedule with bag size 1"
        )
    if any(bag_size == 1 for bag_size, _ in entries[:-1]):
        problems.append("bag size 1 stands before the end. Superposition comes first")
    problems += [
        f"bag size {before} stands twice in a row. Give it once, with the steps of both"
        for (before, _), (after, _) in itertools.pairwise(entries)
        if before == after != 1
    ]
    return problems


def _amount_problems(bag_size: int, amount: float | int) -> list[str]:
    if isinstance(amount, bool) or not isinstance(amount, int | float) or amount <= 0:
        return [f"{amount} steps for bag size {bag_size}: must be above 0"]
    if isinstance(amount, float) and amount > 1:
        return [f"{amount} is a share of steps and must be at most 1; steps are whole"]
    return []
