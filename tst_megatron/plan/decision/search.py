"""Search bag size and share of superposition, with the text that there is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from tst_megatron.plan.gain.grids import LONG, Point, estimate
from tst_megatron.plan.gain.laws import Reading, boundary, net_gain
from tst_megatron.plan.published.records import Published

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Shares that are searched: every cell of the grids up to 0.7 wins."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A schedule, what it reads and gains."""

    point: Point
    reading: Reading
    gains: dict[str, float]
    """By each law, with the text that there is."""

    @property
    def worst(self) -> float:
        """Return the gain by the strictest law."""
        return min(self.gains.values())

    def pays(self, known: Published) -> bool:
        """Tell whether every law gives it more than the noise of a run."""
        return self.worst >= known.noise_nats

    def against(self, known: Published) -> list[str]:
        """Return the titles of the laws by which it does not pay."""
        return [
            known.laws[key].title for key, gain in self.gains.items() if gain < known.noise_nats
        ]


def choice(known: Published, point: Point, unique: float, gain: float | None = None) -> Choice:
    """Weigh a point.

    Args:
        known: what is published.
        point: the schedule.
        unique: raw tokens that there are; infinite with text to spare.
        gain: at equal FLOPs with text to spare; None is the estimate.
    """
    positions = float(point.num_steps * point.positions_per_step)
    reading = Reading(
        positions=positions,
        raw_tokens=positions * point.token_factor,
        superposition_fraction=point.superposition_fraction,
        gain=estimate(known, point).gain if gain is None else gain,
    )
    gains = {key: net_gain(law, reading, unique) for key, law in known.laws.items()}
    return Choice(point=point, reading=reading, gains=gains)


def choices(
    known: Published, like: Point, unique: float, most_tokens: float = math.inf
) -> Iterator[Choice]:
    """Yield every bag size and share that the grids have, for a run of as many steps.

    Neighbouring bag sizes are averaged: the grids' single columns differ by noise alone.

    Args:
        known: what is published.
        like: a point of the run, for its sizes.
        unique: raw tokens that there are; infinite with text to spare.
        most_tokens: that a run may read, counting again what it reads again.
    """
    sizes = [1, *known.grids[LONG].bag_sizes]
    for r in FRACTIONS:
        points = [
            dataclasses.replace(
                like, resets=(), bag_size=float(k), superposition_fraction=r, num_bag_sizes=1
            )
            for k in sizes
        ]
        gains = [estimate(known, each).gain for each in points]
        for i in range(1, len(points)):
            near = gains[max(1, i - 1) : i + 2]
            smooth = sum(near) / len(near) if len(near) == 3 else gains[i]
            found = choice(known, points[i], unique, gain=smooth)
            if found.reading.raw_tokens <= most_tokens:
                yield found


def best(
    known: Published, like: Point, unique: float, most_tokens: float = math.inf
) -> Choice | None:
    """Return the choice with most gain by the strictest law; None if none pays by all laws."""
    every = choices(known, like, unique, most_tokens)
    found = max(every, key=lambda each: each.worst, default=None)
    return found if found is not None and found.pays(known) else None


def leanest(
    known: Published, like: Point, unique: float, most_tokens: float = math.inf
) -> Choice | None:
    """Return the choice that reads the least text of those within a run's noise of the best."""
    top = best(known, like, unique, most_tokens)
    if top is None:
        return None
    good = [
        each
        for each in choices(known, like, unique, most_tokens)
        if each.worst >= max(top.worst - known.noise_nats, known.noise_nats)
    ]
    return min(good, key=lambda each: each.reading.raw_tokens)


def boundaries(known: Published, reading: Reading) -> dict[str, float | None]:
    """By each law, return the unique tokens below which a run does not pay; None: never."""
    return {key: boundary(law, reading, known.noise_nats) for key, law in known.laws.items()}


def data_bound_below(known: Published, like: Point) -> tuple[float, Choice] | None:
    """Return the fewest unique tokens at which any choice pays by all laws, and that choice.

    Returns:
        None if none pays even with text to spare.
    """
    found: list[tuple[float, Choice]] = []
    for each in choices(known, like, math.inf):
        limits = boundaries(known, each.reading).values()
        if None not in limits:
            found.append((max(limit for limit in limits if limit is not None), each))
    return min(found, key=lambda pair: pair[0]) if found else None
