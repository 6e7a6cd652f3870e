"""Say what an ordinary run and one with superposition take: steps, text, GPU hours, money."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tst_megatron.plan.amounts import dollars, num_bytes, power, rounded, short
from tst_megatron.plan.cost.machine import Machine
from tst_megatron.plan.cost.model import Model
from tst_megatron.plan.published.records import Published
from tst_megatron.plan.section import Section
from tst_megatron.schedule import Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One run of a plan."""

    name: str
    schedule: Schedule
    flops: float

    @property
    def num_steps(self) -> int:
        """Optimizer steps."""
        return self.schedule.num_steps

    @property
    def positions(self) -> int:
        """Latent positions of all steps."""
        return self.schedule.latent_positions_before(self.num_steps)

    @property
    def raw_tokens(self) -> int:
        """Raw tokens that it reads."""
        return self.schedule.raw_tokens_before(self.num_steps)

    @property
    def superposition_tokens(self) -> int:
        """Raw tokens that it reads in superposition."""
        return self.schedule.raw_tokens_before(self.schedule.switch_step)

    @property
    def most_tokens_per_position(self) -> int:
        """Raw tokens that a position of its most demanding phase reads."""
        return max(phase.num_inputs for phase in self.schedule.phases)


def arm(name: str, schedule: Schedule, model: Model) -> Arm:
    """Make an arm of a schedule. All phases cost the same FLOPs a position."""
    positions = schedule.latent_positions_before(schedule.num_steps)
    return Arm(name=name, schedule=schedule, flops=positions * model.flops_per_position)


def loader_bytes_per_second(arm: Arm, model: Model, machine: Machine) -> float:
    """Return what all loaders together must read in the most demanding phase."""
    positions = machine.num_gpus * machine.peak_flops * machine.mfu / model.flops_per_position
    return positions * arm.most_tokens_per_position * model.token_bytes


def cost_section(
    known: Published,
    model: Model,
    machine: Machine,
    arms: tuple[Arm, ...],
    available: float | None,
) -> Section:
    """Make the table of costs.

    Args:
        known: what is published.
        model: of the recipe.
        machine: that it runs on.
        arms: the ordinary run, and the one with superposition if there is one.
        available: unique raw tokens; None if they are not known.
    """
    rows = [
        ("optimizer steps", *(f"{each.num_steps:,}" for each in arms)),
        ("latent positions", *(short(each.positions) for each in arms)),
        ("raw tokens", *(_tokens(each) for each in arms)),
        ("  on disk", *(num_bytes(each.raw_tokens * model.token_bytes) for each in arms)),
    ]
    if available is not None:
        rows.append((f"epochs of {short(available)}", *(_epochs(a, available) for a in arms)))
    bands = [_band(machine, each.flops) for each in arms]
    rows += [
        ("FLOPs", *(power(each.flops) for each in arms)),
        (f"{machine.name} hours", *(_with_band(short, *band) for band in bands)),
        (f"days on {machine.num_gpus:,} GPUs", *(_days(machine, *band) for band in bands)),
        ("price", *(_with_band(dollars, *(h * machine.price for h in band)) for band in bands)),
        (
            "loaders must read",
            *(f"{num_bytes(loader_bytes_per_second(a, model, machine))}/s" for a in arms),
        ),
    ]
    formula = model.flops_by_formula
    per_position = f"{model.flops_per_position / 1e9:.4g} GFLOP a position {known.cite('megatron')}"
    if formula is not None:
        per_position += f"; 6 N + causal attention gives {formula / 1e9:.4g}"
        if formula > model.flops_per_position * 1.0005:
            per_position += ", as it counts norms and routers too"
    return Section(
        name="cost",
        title=f"Cost: {model.parameters:,} parameters, {short(model.active, 4)} active",
        columns=("", *(each.name for each in arms)),
        rows=tuple(rows),
        lines=(
            f"{per_position}. A checkpoint has {num_bytes(model.checkpoint_bytes)}. Not counted: "
            f"evaluations (+{model.evaluation_share:.1%}), saves, restarts.",
        ),
        values=_values(model, machine, arms, available),
        sources=("megatron", *machine.sources),
    )


def _tokens(arm: Arm) -> str:
    if not arm.superposition_tokens:
        return short(arm.raw_tokens)
    left = arm.raw_tokens - arm.superposition_tokens
    parts = f"{short(arm.superposition_tokens)} + {short(left)}"
    return f"{short(arm.raw_tokens)} ({parts})"


def _epochs(arm: Arm, available: float) -> str:
    return f"{rounded(arm.raw_tokens / available):g}"


def _band(machine: Machine, flops: float) -> tuple[float, float, float]:
    """Return GPU hours: expected, fewest, most."""
    return (
        machine.hours(flops),
        machine.hours(flops, machine.mfu_high),
        machine.hours(flops, machine.mfu_low),
    )


def _with_band(write: Any, middle: float, low: float, high: float) -> str:
    said = str(write(middle))
    return said if low == high else f"{said} ({write(low)} to {write(high)})"


def _days(machine: Machine, *hours: float) -> str:
    return _with_band(lambda each: f"{rounded(each / machine.num_gpus / 24):g}", *hours)


def _values(
    model: Model, machine: Machine, arms: tuple[Arm, ...], available: float | None
) -> dict[str, Any]:
    own = arm("this run", model.schedule, model)
    return {
        "parameters": model.parameters,
        "active parameters": model.active,
        "flops per position": model.flops_per_position,
        "flops per position by 6N and causal attention": model.flops_by_formula,
        "checkpoint bytes": model.checkpoint_bytes,
        **machine_values(machine),
        "unique tokens available": available,
        "this run": _arm_values(own, model, machine, available),
        "arms": [_arm_values(each, model, machine, available) for each in arms],
    }


def _arm_values(
    arm: Arm, model: Model, machine: Machine, available: float | None
) -> dict[str, Any]:
    hours, low, high = _band(machine, arm.flops)
    return {
        "name": arm.name,
        "steps": arm.num_steps,
        "latent positions": arm.positions,
        "raw tokens": arm.raw_tokens,
        "raw tokens by phase": tokens_by_phase(arm.schedule),
        "epochs": None if available is None else arm.raw_tokens / available,
        "flops": arm.flops,
        "gpu hours": hours,
        "gpu hours range": [low, high],
        "days": hours / machine.num_gpus / 24,
        "dollars": hours * machine.price,
        "loader bytes per second": loader_bytes_per_second(arm, model, machine),
    }


def tokens_by_phase(schedule: Schedule) -> list[dict[str, int]]:
    """Return bag size, steps and raw tokens of each phase, by the names that JSON has."""
    return [
        {
            "bag size": phase.bag_size,
            "steps": phase.num_steps,
            "raw tokens": schedule.raw_tokens_per_step(phase) * phase.num_steps,
        }
        for phase in schedule.phases
    ]


def machine_values(machine: Machine) -> dict[str, Any]:
    """Return what a plan assumes of its GPUs, by the names that JSON has."""
    return {
        "gpu": machine.name,
        "gpus": machine.num_gpus,
        "peak flops per gpu": machine.peak_flops,
        "mfu": machine.mfu,
        "mfu range": [machine.mfu_low, machine.mfu_high],
        "dollars per gpu hour": machine.price,
    }
