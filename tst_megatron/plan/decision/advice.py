"""Search what a budget buys: the steps that it pays for, and the best schedules of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tst_megatron.plan.amounts import dollars, rounded, short
from tst_megatron.plan.cost.machine import Machine
from tst_megatron.plan.cost.model import RESETS, Model
from tst_megatron.plan.decision.search import Choice, best, choice, leanest
from tst_megatron.plan.gain.grids import Point, estimate
from tst_megatron.plan.gain.laws import bisect, data_term
from tst_megatron.plan.gain.views import CURVE, scaled_law
from tst_megatron.plan.published.records import Published
from tst_megatron.plan.section import Section
from tst_megatron.plan.wishes import Budget


@dataclass(frozen=True, kw_only=True, slots=True)
class Advised:
    """One row of the advice."""

    name: str
    choice: Choice | None
    """None is an ordinary run."""
    num_steps: int


def affordable_steps(model: Model, machine: Machine, budget: Budget) -> tuple[int, str]:
    """Return the steps that a budget pays for, and which limit decides.

    Raises:
        ValueError: it pays for none.
    """
    per_step = model.positions_per_step * model.flops_per_position
    # What each limit pays for, in steps, of one unit of it.
    price = machine.cost(per_step)
    steps = {
        "--max-flops": 1 / per_step,
        "--max-days": 1 / machine.days(per_step),
        "--max-dollars": 1 / price if price else math.inf,
        # An ordinary run reads as many tokens as it has positions.
        "--max-tokens": 1 / model.positions_per_step,
    }
    limits = {name: value * steps[name] for name, value in budget.limits().items()}
    limits = limits or {"the recipe's steps": float(model.schedule.num_steps)}
    name = min(limits, key=lambda key: limits[key])
    if math.isinf(limits[name]):
        raise ValueError("--max-dollars: limits nothing at --price 0. Give another limit too")
    if limits[name] < 1:
        raise ValueError(
            f"{name}: is less than one step needs, which reads {short(model.positions_per_step)} "
            f"tokens, and takes {per_step:.3g} FLOPs and {dollars(price)}. Give more"
        )
    return int(limits[name]), name


def advise(
    known: Published,
    model: Model,
    like: Point,
    num_steps: int,
    unique: float,
    *,
    most_tokens: float = math.inf,
) -> list[Advised]:
    """Return an ordinary run of some steps, and the schedules that beat it.

    Args:
        known: what is published.
        model: of the recipe.
        like: a point of the recipe, for its sizes.
        num_steps: that are paid for.
        unique: raw tokens that there are; infinite with text to spare.
        most_tokens: that a run may read.
    """
    whole = dataclasses.replace(like, num_steps=num_steps, inputs="bags", targets="bags")
    found = [Advised(name="ordinary", choice=None, num_steps=num_steps)]
    top = best(known, whole, unique, most_tokens)
    lean = leanest(known, whole, unique, most_tokens)
    if top is not None:
        found.append(Advised(name="lowest loss", choice=top, num_steps=num_steps))
    if lean is not None and lean != top:
        found.append(Advised(name="least text", choice=lean, num_steps=num_steps))
    side = dataclasses.replace(whole, inputs="tokens")
    output_only = best(known, side, unique, most_tokens)
    if output_only is not None:
        found.append(Advised(name="output only", choice=output_only, num_steps=num_steps))
    if top is not None and (fewest := _fewest_steps(known, model, top, num_steps, unique)):
        found.append(fewest)
    return found


def _fewest_steps(
    known: Published, model: Model, top: Choice, num_steps: int, unique: float
) -> Advised | None:
    """Return the shortest run with superposition that ends as low as the ordinary one."""
    law = scaled_law(known, known.laws[CURVE], model.parameters)
    wanted = data_term(law, num_steps * top.point.positions_per_step, unique)

    def gives(steps: float) -> Choice:
        point = dataclasses.replace(top.point, num_steps=max(1, math.ceil(steps)))
        return choice(known, point, unique)

    def is_enough(steps: float) -> bool:
        positions = max(1, math.ceil(steps)) * top.point.positions_per_step
        return data_term(law, positions, unique) - gives(steps).worst <= wanted

    if not is_enough(num_steps):
        return None
    steps = math.ceil(bisect(is_enough, num_steps / 10, float(num_steps)))
    return Advised(name="equal loss", choice=gives(steps), num_steps=steps)


def advice_section(
    known: Published,
    model: Model,
    machine: Machine,
    found: Sequence[Advised],
    *,
    limit: str,
    unique: float,
    most_tokens: float = math.inf,
) -> Section:
    """Make the table of the advice."""
    rows = []
    num_steps = found[0].num_steps
    for each in found:
        flops = each.num_steps * model.positions_per_step * model.flops_per_position
        rows.append(
            (
                each.name,
                "-" if each.choice is None else _schedule(each.choice.point),
                f"{each.num_steps:,}",
                short(_tokens(each, model)),
                _gain(each, num_steps),
                f"{rounded(machine.days(flops)):g}",
                dollars(machine.cost(flops)),
            )
        )
    chosen = next((each for each in found if each.name == "lowest loss"), None)
    if chosen is None or chosen.choice is None:
        reads = "" if math.isinf(most_tokens) else f" and reads at most {short(most_tokens)}"
        line = f"No schedule of bags pays by all laws{reads}: train without them (tst.bag-size=1)."
    else:
        line = f"Write it as: {overrides(chosen.choice.point)}"
    is_beyond = any(
        each.choice is not None and estimate(known, each.choice.point).beyond for each in found
    )
    note = (
        "Gains are nats below the ordinary run, by the strictest law. Least text: within noise of "
        "the lowest loss. Equal loss: as low as the ordinary run, with the least compute. Gains are"
    )
    note += " extrapolated from" if is_beyond else " interpolated in"
    note += " the paper's grids."
    text = "text to spare" if math.isinf(unique) else f"{short(unique)} unique tokens"
    if not math.isinf(most_tokens):
        text += f", of which a run may read {short(most_tokens)}"
    return Section(
        name="advice",
        title=f"Advice within {limit}; {text}",
        columns=("", "schedule", "steps", "tokens", "gain", "days", "price"),
        rows=tuple(rows),
        lines=(
            line,
            f"{note} Decay and warm-up keep their numbers of steps, as in the paper. Schedules of "
            "several bag sizes are not searched: no grid has them.",
        ),
        values=_values(found, model, machine, limit),
        sources=("paper",),
    )


def _schedule(point: Point) -> str:
    return f"K = {rounded(point.bag_size):g}, r = {rounded(point.superposition_fraction):g}"


def _gain(each: Advised, num_steps: int) -> str:
    """Say how much lower a run ends than the ordinary one of the budget."""
    if each.choice is None or each.num_steps != num_steps:
        return "0"
    return f"{each.choice.worst:.3f}"


def _tokens(each: Advised, model: Model) -> float:
    if each.choice is None:
        return float(each.num_steps * model.positions_per_step)
    return each.choice.reading.raw_tokens


def overrides(point: Point) -> str:
    """Spell a point as overrides of any recipe: whatever its ``tst:`` block says gives way."""
    words = {
        "train-iters": point.num_steps,
        # These two would win over the share of steps.
        "tst.schedule": "null",
        "tst.superposition-steps": "null",
        "tst.bag-size": f"{point.bag_size:g}",
        "tst.superposition-fraction": f"{point.superposition_fraction:g}",
        "tst.inputs": point.inputs,
        "tst.targets": point.targets,
        **{f"tst.{key}": "false" for key in RESETS},
    }
    return " ".join(f"{key}={value}" for key, value in words.items())


def _values(found: Sequence[Advised], model: Model, machine: Machine, limit: str) -> dict[str, Any]:
    schedules = []
    for each in found:
        flops = each.num_steps * model.positions_per_step * model.flops_per_position
        point = None if each.choice is None else each.choice.point
        schedules.append(
            {
                "name": each.name,
                "steps": each.num_steps,
                "bag size": 1 if point is None else point.bag_size,
                "superposition fraction": 0 if point is None else point.superposition_fraction,
                "inputs": "tokens" if point is None else point.inputs,
                "raw tokens": _tokens(each, model),
                "gain nats by law": None if each.choice is None else each.choice.gains,
                "days": machine.days(flops),
                "dollars": machine.cost(flops),
            }
        )
    return {"limit": limit, "schedules": schedules}
