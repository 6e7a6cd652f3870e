"""Find the steps that runs have in common, and which run each can branch from.

Two runs are the same until the first step in which they differ: in what a step reads and predicts,
in its learning rate, or in a reset before it. The stream of tokens deals the same samples to both
until then, whatever comes later (docs/data-stream.md). A run whose steps are the same up to a
checkpoint of another may start there, and train its own steps only.

The checkpoints that any run is sure to keep are its *forks*: the last superposition step and the
step from which the WSD decay starts (``checkpoint/retention.py``).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tst_megatron.checkpoint.retention import always_kept
from tst_megatron.recipe.check.plain import PlainCheck
from tst_megatron.recipe.learning_rate import LearningRate
from tst_megatron.recipe.tst_config import TSTConfig
from tst_megatron.schedule import Schedule

_OF_THE_RATE = (
    *("lr", "min_lr", "lr_decay_style", "lr_decay_iters", "lr_wsd_decay_iters"),
    *("lr_wsd_decay_style", "lr_warmup_iters", "lr_warmup_fraction", "lr_warmup_init"),
)
"""Megatron's attributes that act through the learning rate of each step."""

_OF_STEPS = (
    *("bag_size", "superposition_fraction", "superposition_steps", "schedule"),
    *("inputs", "targets", "slot_weights", "linear_cross_entropy"),
    *("reset_embeddings", "reset_optimizer"),
)
"""Fields of the ``tst:`` block that act on some steps only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """What each step of a run does, and where others can branch from it."""

    always: Mapping[str, Any]
    """Everything that acts on every step; runs that differ here have no step in common."""
    schedule: Schedule
    tst: TSTConfig
    rate: LearningRate
    forks: tuple[int, ...]
    """Steps whose checkpoints the run is sure to keep, in order."""

    @classmethod
    def of(cls, plain: PlainCheck) -> Course:
        """Describe the run of a recipe that passed its check."""
        values, tst = plain.values, plain.recipe.tst
        always = vars(values).copy()
        of_steps = {"train_iters", *_OF_THE_RATE}
        if (
            values.weight_decay_incr_style != "constant"
            or values.decoupled_lr is not None
            or values.use_mup
        ):
            # The length of the run acts on the decay of weights, or groups of weights have rates of
            # their own. Neither is compared here.
            of_steps = set()
        for name in of_steps:
            del always[name]
        block = tst.as_keys()
        for name in _OF_STEPS:
            del block[name.replace("_", "-")]
        block["stream-unit-bags"] = tst.unit_chunks()
        always |= {"profile": plain.recipe.profile, "data": plain.recipe.data, "tst": block}
        forks = always_kept(values, switch_step=plain.schedule.switch_step)
        return cls(
            always=always,
            schedule=plain.schedule,
            tst=tst,
            rate=plain.rate,
            forks=tuple(sorted(forks)),
        )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the complete run."""
        return self.schedule.num_steps

    def work_of(self, step: int) -> Hashable:
        """Return what the step after ``step`` completed ones does, but for its learning rate."""
        phase = self.schedule.phase_at(step)
        resets: Hashable = None
        if 0 < step == self.schedule.switch_step:
            resets = (self.tst.reset_embeddings, self.tst.reset_optimizer)
        loss: Hashable = None
        if phase.is_superposition:
            loss = (self.tst.slot_weights, self.tst.linear_cross_entropy)
        return phase.bag_size, phase.inputs, phase.targets, loss, resets


def num_common_steps(one: Course, other: Course) -> int:
    """Return how many steps at the start of two runs are the same."""
    if one.always != other.always:
        return 0
    limit = min(one.num_steps, other.num_steps)
    # What a step does changes only where a phase of one of them starts.
    starts = {phase.first_step for run in (one, other) for phase in run.schedule.phases}
    # A switch of one run alone is at such a start too, and so are its resets.
    for step in sorted(start for start in starts if start < limit):
        if one.work_of(step) != other.work_of(step):
            limit = step
            break
    return min(limit, _num_common_rates(one.rate, other.rate))


@functools.cache
def _num_common_rates(one: LearningRate, other: LearningRate) -> int:
    rates = zip(_rates(one), _rates(other), strict=False)
    different = (step for step, (a, b) in enumerate(rates) if a != b)
    return next(different, min(one.num_steps, other.num_steps))


@functools.cache
def _rates(rate: LearningRate) -> tuple[float, ...]:
    return tuple(rate.at(step) for step in range(rate.num_steps))


@dataclass(frozen=True, kw_only=True, slots=True)
class Trunk:
    """The run and the step that another run branches from."""

    name: str
    step: int


def plan_trunks(
    courses: Mapping[str, Course], known: Mapping[str, Trunk | None] | None = None
) -> dict[str, Trunk | None]:
    """Give each run the trunk with which it trains the fewest steps of its own.

    Runs come in the order of their forks. Of two runs that differ first where one of them has a
    fork, this one comes first, and the other can branch there.

    Args:
        courses: of all runs, by name.
        known: runs that have been planned before, in their order, with what they branch from.

    Returns:
        The trunk of each run, or None; a trunk comes before its branches.
    """
    found: dict[str, Trunk | None] = dict(known or {})
    new = [name for name in courses if name not in found]
    for name in sorted(new, key=lambda name: _order(courses[name])):
        found[name] = _best_trunk(name, courses, found)
    return found


def _order(course: Course) -> tuple[float, ...]:
    # A run without a further fork comes after those that have one.
    return (*course.forks, math.inf, course.num_steps)


def _best_trunk(
    name: str, courses: Mapping[str, Course], found: Mapping[str, Trunk | None]
) -> Trunk | None:
    best: Trunk | None = None
    for other, trunk in found.items():
        common = num_common_steps(courses[other], courses[name])
        # A fork that the other run has from its own trunk is that trunk's to give.
        own_start = trunk.step if trunk else 0
        forks = [step for step in courses[other].forks if own_start < step <= common]
        # A branch has at least one step of its own.
        steps = [step for step in forks if step < courses[name].num_steps]
        if steps and (best is None or max(steps) > best.step):
            best = Trunk(name=other, step=max(steps))
    return best


def num_own_steps(course: Course, trunk: Trunk | None) -> int:
    """Return the steps that a run trains itself."""
    return course.num_steps - (trunk.step if trunk else 0)


def levels(trunks: Mapping[str, Trunk | None]) -> list[list[str]]:
    """Return the runs in levels: those without a trunk, those that branch from them, and so on.

    Args:
        trunks: as ``plan_trunks`` returns them.
    """
    depth: dict[str, int] = {}
    for name, trunk in trunks.items():
        depth[name] = depth[trunk.name] + 1 if trunk else 0
    by_depth = sorted(trunks, key=lambda name: depth[name])
    return [list(names) for _, names in itertools.groupby(by_depth, key=lambda name: depth[name])]


def in_turns(names: Sequence[str], trunks: Mapping[str, Trunk | None]) -> list[str]:
    """Order runs as they are listed, but each after its trunk."""
    ordered: dict[str, None] = {}
    for name in names:
        chain = [name]
        while (trunk := trunks[chain[-1]]) is not None:
            chain.append(trunk.name)
        ordered |= dict.fromkeys(reversed(chain))
    return list(ordered)
