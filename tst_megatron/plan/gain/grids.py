"""Estimate what superposition gains at equal FLOPs, from the paper's grids of losses.

The grids are of two sizes of model and two lengths. Inside one grid the loss is interpolated
linearly over bag size and share of steps, and at r = 0 the gain is 0. Between the grids it is
interpolated over the logarithms of size and length. The published gains of other models tell which
measure of length carries over: about 0.07 nats at 20,000 steps for 270M, 600M and 3B parameters,
although these have 165, 75 and 13 positions per parameter. So the estimate goes by steps, and its
range also has the answer by positions per parameter.

Everything beyond a grid is named as extrapolation.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tst_megatron.plan.amounts import short
from tst_megatron.plan.published.records import Grid, Published
from tst_megatron.schedule import Schedule, Side

SHORT, LONG, LARGE, POWER = "270m-20k", "270m-100k", "600m-20k", "600m-20k-power"


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A schedule, as the grids are asked about it."""

    bag_size: float
    """Mean over the steps in superposition, where these have several."""
    superposition_fraction: float
    num_steps: int
    positions_per_step: int
    parameters: int
    """That compute one position; all of a dense model."""
    slot_weights: str = "uniform"
    inputs: Side = "bags"
    targets: Side = "bags"
    num_bag_sizes: int = 1
    resets: tuple[str, ...] = ()
    """Keys of the tst block that reset something at the switch."""

    @property
    def token_factor(self) -> float:
        """Return raw tokens over latent positions: 1 + r (K - 1)."""
        read = self.bag_size if self.inputs == "bags" else 1.0
        return 1 + self.superposition_fraction * (read - 1)


def point_of(
    schedule: Schedule,
    *,
    parameters: int,
    slot_weights: str = "uniform",
    resets: tuple[str, ...] = (),
) -> Point | None:
    """Return a schedule's point; None if it has no superposition."""
    phases = [phase for phase in schedule.phases if phase.is_superposition]
    num_steps = sum(phase.num_steps for phase in phases)
    if not num_steps:
        return None
    return Point(
        bag_size=sum(phase.bag_size * phase.num_steps for phase in phases) / num_steps,
        superposition_fraction=num_steps / schedule.num_steps,
        num_steps=schedule.num_steps,
        positions_per_step=schedule.latent_positions_before(1),
        parameters=parameters,
        slot_weights=slot_weights,
        inputs=phases[0].inputs,
        targets=phases[0].targets,
        num_bag_sizes=len(phases),
        resets=resets,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """By how many nats superposition ends lower than an ordinary run of as many steps."""

    gain: float
    low: float
    high: float
    beyond: tuple[str, ...]
    """In what the point lies outside of the grids, a phrase each."""

    @property
    def is_extrapolated(self) -> bool:
        """Tell whether any of it lies outside of the grids."""
        return bool(self.beyond)


def gain_in(grid: Grid, bag_size: float, fraction: float) -> float:
    """Return the gain of one grid, in nats; its edge counts for what lies beyond it."""
    fractions = sorted(grid.losses)
    rows = [0.0, *fractions]
    columns = [1, *grid.bag_sizes]
    gains = [[0.0] * len(columns)]
    gains += [[0.0, *(grid.baseline - loss for loss in grid.losses[r])] for r in fractions]
    row, down = _place(rows, fraction)
    column, across = _place(columns, bag_size)
    above, below = (
        gains[each][column] * (1 - across) + gains[each][column + 1] * across
        for each in (row, row + 1)
    )
    return above * (1 - down) + below * down


def _place(values: Sequence[float], wanted: float) -> tuple[int, float]:
    """Return the interval that a number is in, and how far into it, 0-1."""
    number = min(max(wanted, values[0]), values[-1])
    index = min(max(bisect.bisect_right(values, number) - 1, 0), len(values) - 2)
    return index, (number - values[index]) / (values[index + 1] - values[index])


def estimate(known: Published, point: Point) -> Estimate:
    """Estimate the gain of a point, with a range and what is extrapolated."""
    if point.resets:
        return _with_reset(known, point)
    k, r = point.bag_size, point.superposition_fraction
    short_grid, long_grid, large = (known.grids[name] for name in (SHORT, LONG, LARGE))
    small_gain, large_gain = gain_in(short_grid, k, r), gain_in(large, k, r)
    # The fall for each e-fold of length, at the bag sizes that both lengths have.
    widest = min(k, long_grid.bag_sizes[-1])
    fall = (gain_in(short_grid, widest, r) - gain_in(long_grid, widest, r)) / math.log(
        long_grid.num_steps / short_grid.num_steps
    )
    size = math.log(point.parameters / short_grid.parameters) / math.log(
        large.parameters / short_grid.parameters
    )
    share = min(max(size, 0.0), 1.0)
    between = small_gain * (1 - share) + large_gain * share
    by_steps = max(0.0, math.log(point.num_steps / short_grid.num_steps))
    per_parameter = point.num_steps * point.positions_per_step / point.parameters
    by_ratio = max(0.0, math.log(per_parameter / short_grid.positions_per_parameter))
    found = [between - fall * by_steps, small_gain - fall * by_ratio]
    if size != share:
        found += [small_gain - fall * by_steps, large_gain - fall * by_steps]
    if point.num_steps < short_grid.num_steps:
        # No grid is as short, so nothing says that there is a gain.
        found.append(0.0)
    change = _slot_change(known, point)
    factor = _side_factor(known, point)
    found = [(each + change) * factor for each in found]
    noise = known.noise_nats
    return Estimate(
        gain=found[0],
        low=min(found) - noise,
        high=max(found) + noise,
        beyond=_beyond(known, point),
    )


def _with_reset(known: Published, point: Point) -> Estimate:
    """Return what the published run with a reset ended with; there is no grid.

    The range reaches to what this project's small runs gained, which is more.
    """
    found = [known.resets[key] for key in point.resets]
    gain, noise = min(reset.gain for reset in found), known.noise_nats
    high = min(reset.gain_here for reset in found)
    beyond = tuple(
        f"{key}: one published run ({reset.of}: {-reset.gain:+.3f}) {known.cite(reset.source)} and "
        f"this project's small ones ({-reset.gain_here:+.3f}) {known.cite('here')} disagree"
        for key, reset in zip(point.resets, found, strict=True)
    )
    return Estimate(gain=gain, low=gain - noise, high=high + noise, beyond=beyond)


def _slot_change(known: Published, point: Point) -> float:
    """Return what the weights 1/i add to the gain, which one size and length shows."""
    if point.slot_weights != "1/i":
        return 0.0
    k, r = point.bag_size, point.superposition_fraction
    return gain_in(known.grids[POWER], k, r) - gain_in(known.grids[LARGE], k, r)


def _side_factor(known: Published, point: Point) -> float:
    """Return the share of the gain that one side of the superposition has alone."""
    ablation = known.ablation
    full = ablation.baseline - ablation.full
    if point.inputs == "tokens" and point.targets == "bags":
        return (ablation.baseline - ablation.output_only) / full
    if point.inputs == "bags" and point.targets == "tokens":
        return (ablation.baseline - ablation.input_only) / full
    return 1.0 if point.inputs == "bags" else 0.0


def _beyond(known: Published, point: Point) -> tuple[str, ...]:
    return (*_beyond_in_size(known, point), *_beyond_in_schedule(known, point))


def _beyond_in_size(known: Published, point: Point) -> list[str]:
    """Say by how much a model or its length lies outside of the grids."""
    short_grid, long_grid, large = (known.grids[name] for name in (SHORT, LONG, LARGE))
    found = []
    if point.parameters > large.parameters:
        found.append(
            f"{point.parameters / large.parameters:.1f} times the parameters of the largest grid "
            f"({short(large.parameters)}), both tables and active experts counted"
        )
    elif point.parameters < short_grid.parameters:
        found.append(
            f"{short_grid.parameters / point.parameters:.1f} times fewer parameters than the "
            f"smallest grid ({short(short_grid.parameters)})"
        )
    if point.num_steps < short_grid.num_steps or point.num_steps > long_grid.num_steps:
        found.append(
            f"{point.num_steps:,} steps, grids have {short_grid.num_steps:,} to "
            f"{long_grid.num_steps:,}"
        )
    elif point.num_steps > short_grid.num_steps and point.parameters > short_grid.parameters:
        found.append(
            f"{point.num_steps:,} steps of {short(point.parameters)}: only the grids of "
            f"{short(short_grid.parameters)} have two lengths"
        )
    return found


def _beyond_in_schedule(known: Published, point: Point) -> list[str]:
    """Say what of a schedule the grids do not have."""
    short_grid, long_grid, large = (known.grids[name] for name in (SHORT, LONG, LARGE))
    k, r = point.bag_size, point.superposition_fraction
    fractions = sorted(short_grid.losses)
    is_of_first = point.parameters <= short_grid.parameters
    is_of_first &= point.num_steps == short_grid.num_steps
    largest = (short_grid if is_of_first else long_grid).bag_sizes[-1]
    found = []
    if k > largest:
        found.append(f"K = {k:g}, grids of this kind end at {largest}")
    if not fractions[0] <= r <= fractions[-1]:
        found.append(f"r = {r:.3g}, grids have {fractions[0]} to {fractions[-1]}")
    if point.num_bag_sizes > 1:
        found.append(f"{point.num_bag_sizes} bag sizes, taken as their mean")
    if point.slot_weights == "exp(-i)":
        found.append("slot weights exp(-i), taken as uniform")
    if point.slot_weights == "1/i" and point.parameters != large.parameters:
        found.append("slot weights 1/i, of which there is one grid")
    if point.inputs != "bags" or point.targets != "bags":
        found.append("one side alone, of which there is one ablation (K = 4, r = 0.5)")
    return found


def slope_price(slope: float, fraction: float) -> float:
    """Return what a share r of steps costs a curve that still falls: slope ln(1 / (1 - r)) nats.

    Args:
        slope: nats by which the loss falls each time that the steps grow by the factor e.
        fraction: r.
    """
    return slope * math.log(1 / (1 - fraction))
