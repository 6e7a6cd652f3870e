"""Make the plan of a recipe, part by part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tst_megatron.plan.cost.machine import Machine, machine_for
from tst_megatron.plan.cost.model import Model, read_model, without_unknown_keys
from tst_megatron.plan.cost.table import Arm, arm, cost_section
from tst_megatron.plan.decision import advice
from tst_megatron.plan.decision.search import best
from tst_megatron.plan.decision.verdict import Verdict, decide, said_of, text_section
from tst_megatron.plan.gain.grids import Point, estimate, point_of
from tst_megatron.plan.gain.views import compare, views_section
from tst_megatron.plan.memory.table import memory_section
from tst_megatron.plan.published.read import published
from tst_megatron.plan.published.records import Published
from tst_megatron.plan.section import Section
from tst_megatron.plan.wishes import Budget, Wishes
from tst_megatron.recipe.recipe import Recipe
from tst_megatron.schedule import Schedule, paper_schedule, resolve_phases


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that a plan says. A view shows its sections in their order."""

    recipe: str
    verdict: Verdict
    sections: tuple[Section, ...]
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]
    sources: dict[int, str]
    """Number -> text, of those that are named."""

    def as_keys(self) -> dict[str, Any]:
        """Return the plan as plain values for JSON."""
        chosen = self.verdict.recommended
        return {
            "recipe": self.recipe,
            "verdict": {
                "kind": self.verdict.kind,
                "sentence": self.verdict.sentence,
                "recommended": None
                if chosen is None
                else {
                    "bag size": chosen.point.bag_size,
                    "superposition fraction": chosen.point.superposition_fraction,
                    "raw tokens": chosen.reading.raw_tokens,
                    "gain nats by law": chosen.gains,
                },
                "data-bound below tokens": self.verdict.data_bound_below,
            },
            **{section.name: dict(section.values) for section in self.sections},
            "assumptions": list(self.assumptions),
            "notes": list(self.notes),
            "sources": {str(number): text for number, text in self.sources.items()},
        }


def make_plan(recipe: Recipe, wishes: Wishes, *, baseline: Recipe | None = None) -> Plan:
    """Make the plan of a recipe.

    Args:
        recipe: with or without superposition. Without it, the plan sets the best schedule of the
            paper's grids beside it.
        wishes: of the command line.
        baseline: an ordinary run to compare with, of the same model; None is one of as many steps.

    Raises:
        RecipeError: a recipe says no model or no schedule.
        ValueError: a wish cannot be met.
    """
    known = published()
    recipe, notes = without_unknown_keys(recipe)
    model = read_model(recipe)
    machine = machine_for(known, wishes.hardware, active=model.size, is_moe=model.is_moe)
    beside = None if baseline is None else _baseline_arm(baseline, model)
    point, with_tst, was_planned = _superposition(known, model, wishes.tokens_available)
    ordinary = beside or arm("ordinary run", _ordinary(model.schedule), model)
    found = estimate(known, point)
    verdict = decide(known, point, wishes.tokens_available)
    if not was_planned:
        notes = (*notes, f"the recipe has no superposition: {said_of(point)} is set beside it")
    notes = (*notes, *_refused_epochs(recipe, wishes.tokens_available, (ordinary, with_tst)))
    sections = [
        cost_section(known, model, machine, (ordinary, with_tst), wishes.tokens_available),
        views_section(
            known,
            model,
            machine,
            point=point,
            estimate=found,
            views=compare(known, model, point, found, baseline=beside),
            baseline=beside,
        ),
        text_section(known, verdict, wishes.tokens_available),
    ]
    if wishes.has_memory:
        gpu = known.gpus[machine.name]
        sections.append(memory_section(recipe, machine, gpu, model.flops_per_position))
    if wishes.budget is not None:
        sections.append(
            _advice(known, model, machine, point, wishes.budget, wishes.tokens_available),
        )
    return Plan(
        recipe=str(recipe.path),
        verdict=verdict,
        sections=tuple(sections),
        assumptions=_assumptions(known, model, machine, wishes, found.is_extrapolated),
        notes=notes,
        sources=_sources(known, sections),
    )


def _refused_epochs(
    recipe: Recipe, available: float | None, arms: tuple[Arm, ...]
) -> tuple[str, ...]:
    """Say which runs a start would refuse, because they read the text too often."""
    most = recipe.tst.max_epochs
    return tuple(
        f"{each.name}: reads the text {each.raw_tokens / available:.2f} times, and a start refuses "
        f"more than tst.max-epochs = {most}"
        for each in arms
        if available is not None and each.raw_tokens > most * available
    )


def _ordinary(schedule: Schedule) -> Schedule:
    """Return an ordinary run of as many steps."""
    return dataclasses.replace(
        schedule, phases=resolve_phases([(1, None)], num_steps=schedule.num_steps)
    )


def _superposition(
    known: Published, model: Model, available: float | None
) -> tuple[Point, Arm, bool]:
    """Return the schedule with superposition: the recipe's, or the best of the paper's grids."""
    schedule = model.schedule
    point = point_of(
        schedule, parameters=model.size, slot_weights=model.slot_weights, resets=model.resets
    )
    if point is not None:
        return point, arm("TST", schedule, model), True
    like = Point(
        bag_size=1.0,
        superposition_fraction=0.0,
        num_steps=schedule.num_steps,
        positions_per_step=model.positions_per_step,
        parameters=model.size,
    )
    unique = math.inf if available is None else available
    chosen = best(known, like, unique) or best(known, like, math.inf)
    if chosen is None:
        # No schedule pays at this length: show the paper's own.
        chosen_point = dataclasses.replace(like, bag_size=6.0, superposition_fraction=0.3)
    else:
        chosen_point = chosen.point
    entries = paper_schedule(
        bag_size=int(chosen_point.bag_size),
        superposition_fraction=chosen_point.superposition_fraction,
        superposition_steps=None,
    )
    phases = resolve_phases(entries, num_steps=schedule.num_steps)
    with_tst = arm("TST", dataclasses.replace(schedule, phases=phases), model)
    return chosen_point, with_tst, False


def _baseline_arm(baseline: Recipe, model: Model) -> Arm:
    """Return the run of a recipe that was given as the baseline.

    Raises:
        ValueError: it is of another model, or has superposition.
    """
    theirs = read_model(without_unknown_keys(baseline)[0])
    mine = (model.parameters, model.flops_per_position)
    if (theirs.parameters, theirs.flops_per_position) != mine:
        raise ValueError(
            f"--baseline: {baseline.path} has {theirs.parameters:,} parameters and "
            f"{theirs.flops_per_position / 1e9:.4g} GFLOP a position, and the recipe "
            f"{model.parameters:,} and {model.flops_per_position / 1e9:.4g}. Give one of the same "
            "model and seq-length"
        )
    if theirs.schedule.phases[0].is_superposition:
        raise ValueError(
            f"--baseline: {baseline.path} has superposition. Give an ordinary run, or nothing for "
            "one of as many steps"
        )
    return arm("ordinary run", theirs.schedule, theirs)


def _advice(
    known: Published,
    model: Model,
    machine: Machine,
    point: Point,
    budget: Budget,
    available: float | None,
) -> Section:
    unique = math.inf if available is None else available
    num_steps, limit = advice.affordable_steps(model, machine, budget)
    most = math.inf if budget.tokens is None else budget.tokens
    found = advice.advise(known, model, point, num_steps, unique, most_tokens=most)
    return advice.advice_section(
        known, model, machine, found, limit=limit, unique=unique, most_tokens=most
    )


def _assumptions(
    known: Published, model: Model, machine: Machine, wishes: Wishes, is_extrapolated: bool
) -> tuple[str, ...]:
    """Say what was assumed, and how much each matters."""
    mfu = f"MFU {machine.mfu:.1%} of {machine.peak_flops / 1e12:,.0f} TFLOP/s, dense BF16"
    more, fewer = machine.mfu / machine.mfu_low - 1, 1 - machine.mfu / machine.mfu_high
    band = (
        f"; {machine.mfu_low:.1%} to {machine.mfu_high:.1%} change hours and price by "
        f"{more:+.0%} and −{fewer:.0%}"
        if machine.mfu_low != machine.mfu_high
        else ""
    )
    cited = known.cite(*machine.sources)
    price = f"${machine.price:g} a GPU hour ({machine.price_basis}), which cost is proportional to"
    if machine.price_low != machine.price_high:
        price += f"; ${machine.price_low:g} to ${machine.price_high:g} were seen"
    found = [f"{mfu} ({machine.mfu_basis}){band}. {cited}", f"{price}."]
    if wishes.hardware.num_gpus is None:
        found.append(f"{machine.num_gpus} GPUs (--gpus). Days and loaders are proportional.")
    if wishes.tokens_available is None:
        found.append("Text to spare (--tokens-available). It decides the verdict.")
    if is_extrapolated:
        found.append(
            "The gain carries over from the paper's small models. If it is half, so is what TST "
            "saves; run a pilot first."
        )
    return tuple(found)


def _sources(known: Published, sections: Sequence[Section]) -> dict[int, str]:
    named = {key for section in sections for key in section.sources}
    return {
        number: text for number, (key, text) in enumerate(known.sources.items(), 1) if key in named
    }
