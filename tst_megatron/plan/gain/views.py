"""Compare superposition with an ordinary run at equal FLOPs, at equal loss, and on equal data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tst_megatron.plan.amounts import dollars, nats, rounded, short
from tst_megatron.plan.cost.machine import Machine
from tst_megatron.plan.cost.model import Model
from tst_megatron.plan.cost.table import Arm
from tst_megatron.plan.gain.grids import Estimate, Point, slope_price
from tst_megatron.plan.gain.laws import data_term, equal_loss_factor, slope
from tst_megatron.plan.gain.ordinary import OrdinaryRun, ordinary_curve, ordinary_run
from tst_megatron.plan.published.records import Curve, Law, Pair, Published, Run
from tst_megatron.plan.section import Section

CURVE = "unique"
"""The law whose curve the views follow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A number with its range."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """The losses of superposition against ordinary runs; below 0, superposition is lower."""

    equal_flops: Span
    equal_loss_factor: Span | None
    """Steps of the ordinary run that ends as low, over those of superposition; None if the curve
    never gets there. The high end may be infinite."""
    equal_data: Span
    beside_baseline: Span | None
    """Against the recipe that was given as the baseline."""
    slope: float
    """Nats by which the ordinary loss falls each time that the steps grow by the factor e."""
    price: float
    """Nats that the steps in superposition cost, by the rule slope ln(1 / (1 - r))."""
    ordinary: Mapping[str, OrdinaryRun]
    """The ordinary run of each comparison that has one."""
    curve: tuple[OrdinaryRun, ...]
    """Ordinary runs of many lengths, the shortest first."""


def scaled_law(known: Published, law: Law, parameters: int) -> Law:
    """Scale a law's term of the text to the paper's own curves of models of about this size."""

    def ratio(curve: Curve) -> float:
        first, last = (data_term(law, positions) for positions in curve.positions)
        return (curve.losses[0] - curve.losses[1]) / (first - last)

    found = sorted((curve.parameters, ratio(curve)) for curve in known.curves)
    factor = found[0][1]
    for (smaller, before), (larger, after) in zip(found, found[1:], strict=False):
        place = math.log(parameters / smaller) / math.log(larger / smaller)
        if place > 0:
            factor = before + min(place, 1.0) * (after - before)
    return dataclasses.replace(law, coefficient=law.coefficient * factor)


def compare(
    known: Published,
    model: Model,
    point: Point,
    estimate: Estimate,
    *,
    baseline: Arm | None = None,
) -> Views:
    """Compute the three views.

    The middle of each follows the law scaled to the paper's curves; the range also has the law as
    it was published.
    """
    law = known.laws[CURVE]
    laws = (scaled_law(known, law, model.parameters), law)
    positions = float(point.num_steps * point.positions_per_step)
    tokens = positions * point.token_factor
    gains = (estimate.gain, estimate.low, estimate.high)

    def against(other: float) -> Span:
        found = [
            data_term(curve, positions) - data_term(curve, other) - gain
            for curve in laws
            for gain in gains
        ]
        return Span(middle=found[0], low=min(found), high=max(found))

    factors = [equal_loss_factor(curve, positions, gain) for curve in laws for gain in gains]
    reached = [each if each is not None else math.inf for each in factors]
    equal_loss = None
    if factors[0] is not None:
        equal_loss = Span(middle=factors[0], low=min(reached), high=max(reached))
    lengths = {"equal flops": 1.0, "equal data": point.token_factor}
    if equal_loss is not None:
        lengths["equal loss"] = equal_loss.middle
    if baseline is not None:
        lengths["baseline"] = baseline.positions / positions
    slope_here = slope(laws[0], positions)
    return Views(
        equal_flops=against(positions),
        equal_loss_factor=equal_loss,
        equal_data=against(tokens),
        beside_baseline=None if baseline is None else against(float(baseline.positions)),
        slope=slope_here,
        price=slope_price(slope_here, point.superposition_fraction),
        ordinary={at: ordinary_run(laws, positions, factor) for at, factor in lengths.items()},
        curve=ordinary_curve(laws, positions, list(lengths.values()), reached),
    )


# --- what the paper compared ----------------------------------------------------------------------


def published_pairs(known: Published, parameters: int) -> tuple[str, list[Pair]]:
    """Return the model of the paper that is nearest in size, and its pairs."""

    def distance(pair: Pair) -> float:
        return abs(math.log(known.runs[pair.tst].parameters / parameters))

    nearest = min(known.pairs, key=distance)
    model = known.runs[nearest.tst].model
    return model, [pair for pair in known.pairs if known.runs[pair.tst].model == model]


def said_of_pair(known: Published, pair: Pair) -> str:
    """Say in a sentence what a published pair shows."""
    tst, baseline = known.runs[pair.tst], known.runs[pair.baseline]
    which = f"K = {tst.bag_size}, r = {tst.superposition_fraction:.2f}, {tst.num_steps:,} steps"
    losses = f"{_loss(baseline)} without, {_loss(tst)} with TST"
    if pair.equal == "loss":
        ratio = baseline.num_steps / tst.num_steps
        end = f"{ratio:.2f} times the steps, {baseline.hours / tst.hours:.2f} times the hours"
        return f"Paper, {tst.model}, {which}, about equal loss: {losses}; {end}."
    # The table is contradicted at equal FLOPs alone.
    gap = tst.loss - baseline.loss
    if pair.equal == "flops":
        gap = _best_loss(tst, baseline) - _best_loss(baseline, tst)
    winner = "TST" if gap < 0 else "the ordinary run"
    name = {"flops": "equal FLOPs", "data": "equal data"}[pair.equal]
    return f"Paper, {tst.model}, {which}, {name}: {losses}; {winner} wins by {abs(gap):.3f}."


def _loss(run: Run) -> str:
    if run.loss_by_figure is None:
        return f"{run.loss:.3f}"
    return f"{run.loss:.3f} (figure: {run.loss_by_figure:.3f})"


def _best_loss(run: Run, other: Run) -> float:
    """Return the figure's loss where both have one, so that both are of one kind."""
    if run.loss_by_figure is not None and other.loss_by_figure is not None:
        return run.loss_by_figure
    return run.loss


# --- the section ----------------------------------------------------------------------------------


def views_section(
    known: Published,
    model: Model,
    machine: Machine,
    *,
    point: Point,
    estimate: Estimate,
    views: Views,
    baseline: Arm | None,
) -> Section:
    """Make the table of the three views."""
    steps = point.num_steps
    hours = machine.hours(steps * point.positions_per_step * model.flops_per_position)
    cost = hours * machine.price
    more = point.token_factor
    rows = [
        ("equal FLOPs", f"{steps:,}", "1", dollars(cost), _gap(views.equal_flops)),
        _equal_loss_row(views.equal_loss_factor, steps, cost),
        (
            "equal data",
            f"{round(steps * more):,}",
            f"{rounded(more):g}",
            dollars(cost * more),
            _gap(views.equal_data),
        ),
    ]
    if baseline is not None and views.beside_baseline is not None:
        ratio = f"{baseline.num_steps / steps:.2f}"
        price = dollars(machine.cost(baseline.flops))
        gap = _gap(views.beside_baseline)
        rows.append(("--baseline", f"{baseline.num_steps:,}", ratio, price, gap))
    nearest, pairs = published_pairs(known, model.parameters)
    return Section(
        name="views",
        title=(
            f"TST (K = {rounded(point.bag_size):g}, r = {point.superposition_fraction:.3g}, "
            f"{point.num_steps:,} steps) against an ordinary run"
        ),
        columns=("at", "its steps", "times TST's", "its price", "TST's loss − its loss"),
        rows=tuple(rows),
        lines=(
            *_lines(known, point, estimate, views),
            *(f"{said_of_pair(known, pair)} {known.cite('paper')}" for pair in pairs),
        ),
        values={
            **_values(point, estimate, views),
            "ordinary runs": {
                at: run.values(steps, hours, machine) for at, run in views.ordinary.items()
            },
            "ordinary curve": [run.values(steps, hours, machine) for run in views.curve],
            "nearest published model": nearest,
        },
        sources=(
            *("paper", "paper-figures", "besiroglu", "here"),
            *(known.resets[key].source for key in point.resets),
        ),
    )


def _equal_loss_row(factor: Span | None, steps: int, cost: float) -> tuple[str, ...]:
    if factor is None:
        return ("equal loss", "no number", "", "", "0")
    times = f"{factor.middle:.1f} ({factor.low:.1f} to {_many(factor.high)})"
    middle = factor.middle
    return ("equal loss", short(steps * middle), times, dollars(cost * middle), "0")


def _gap(span: Span) -> str:
    return f"{nats(span.middle)} ({nats(span.low)} to {nats(span.high)})"


def _many(number: float) -> str:
    return "no end" if math.isinf(number) else f"{number:.1f}"


def _lines(known: Published, point: Point, estimate: Estimate, views: Views) -> list[str]:
    cited = known.cite("paper")
    kind = f"interpolated in the paper's grids, tables 4 to 7 {cited}"
    if estimate.is_extrapolated:
        kind = f"EXTRAPOLATED from the paper's grids {cited}: {'; '.join(estimate.beyond)}"
    lines = [
        f"Gain {kind}; the range has run noise of ±{known.noise_nats} and the difference "
        "between grids. Curves of ordinary runs: Chinchilla's refit, scaled to the paper's "
        f"{known.cite('besiroglu', 'paper-figures')}.",
        f"Price of r: the steps without next-token training cost about {views.price:.3f} nats "
        f"(slope {views.slope:.3f} · ln(1/(1 − r))) {known.cite('here')}.",
    ]
    if views.equal_data.middle < 0 and point.inputs == "bags":
        lines.append(
            "At equal data this estimate favours TST; the only published comparison (3B) was lost "
            f"by it {known.cite('paper')}. Do not count on it."
        )
    if point.num_steps < known.grids["270m-20k"].num_steps:
        lines.append(
            "Short run: the paper has none below 20,000 steps. Of this project's small models, "
            f"{known.here.said} {known.cite('here')}. Run a pilot."
        )
    return lines


def _values(point: Point, estimate: Estimate, views: Views) -> dict[str, Any]:
    def plain(span: Span | None) -> dict[str, float | None] | None:
        if span is None:
            return None
        high = None if math.isinf(span.high) else span.high
        return {"middle": span.middle, "low": span.low, "high": high}

    return {
        "bag size": point.bag_size,
        "superposition fraction": point.superposition_fraction,
        "raw tokens over positions": point.token_factor,
        "gain nats": estimate.gain,
        "gain range nats": [estimate.low, estimate.high],
        "is extrapolated": estimate.is_extrapolated,
        "beyond the grids": list(estimate.beyond),
        "equal flops gap nats": plain(views.equal_flops),
        "equal loss step factor": plain(views.equal_loss_factor),
        "equal data gap nats": plain(views.equal_data),
        "baseline gap nats": plain(views.beside_baseline),
        "slope nats": views.slope,
        "price nats": views.price,
    }
