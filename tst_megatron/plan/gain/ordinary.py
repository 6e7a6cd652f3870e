"""Say where ordinary runs of other lengths end, beside the one of as many steps.

The curve is that of a law of new text, so it holds where there is text to spare.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tst_megatron.plan.cost.machine import Machine
from tst_megatron.plan.gain.laws import data_term
from tst_megatron.plan.published.records import Law

_POINTS = 48
_SHORTEST, _LONGEST = 0.5, 4.0
"""Step factors that a curve shows at least."""
_END = 100.0
"""The step factor beyond which no curve is followed for the sake of a range."""
_MARGIN = 1.25


@dataclass(frozen=True, kw_only=True, slots=True)
class OrdinaryRun:
    """The end of an ordinary run."""

    step_factor: float
    """Its steps, over those of superposition."""
    gap: float
    """Its loss minus that of the ordinary run of as many steps, in nats."""
    gap_as_published: float
    """The same by the law as it was published, which was not scaled to the paper's curves."""

    def values(self, num_steps: int, hours: float, machine: Machine) -> dict[str, Any]:
        """Return it for JSON.

        Args:
            num_steps: of the run with superposition.
            hours: that it takes on one GPU.
            machine: that it runs on.
        """
        return {
            "steps": round(num_steps * self.step_factor),
            "gpu hours": hours * self.step_factor,
            "dollars": hours * self.step_factor * machine.price,
            "gap nats": self.gap,
            "gap nats by the law as published": self.gap_as_published,
        }


def ordinary_run(laws: tuple[Law, Law], positions: float, step_factor: float) -> OrdinaryRun:
    """Return the end of an ordinary run.

    Args:
        laws: the scaled one, and the one as published.
        positions: of the run of as many steps as superposition has.
        step_factor: its steps, over those.
    """
    scaled, published = (
        data_term(law, positions * step_factor) - data_term(law, positions) for law in laws
    )
    return OrdinaryRun(step_factor=step_factor, gap=scaled, gap_as_published=published)


def ordinary_curve(
    laws: tuple[Law, Law], positions: float, middles: Sequence[float], ends: Iterable[float]
) -> tuple[OrdinaryRun, ...]:
    """Return ordinary runs of many lengths, evenly spaced by ratio, the shortest first.

    Args:
        laws: the scaled one, and the one as published.
        positions: of the run of as many steps as superposition has.
        middles: step factors that the curve must hold.
        ends: step factors that it holds if they are no more than 100, such as those of ranges.
    """
    within = [*middles, *(end for end in ends if end <= _END)]
    first = min(_SHORTEST, *(factor / _MARGIN for factor in within))
    last = max(_LONGEST, *(factor * _MARGIN for factor in within))
    ratio = (last / first) ** (1 / (_POINTS - 1))
    return tuple(ordinary_run(laws, positions, first * ratio**at) for at in range(_POINTS))
