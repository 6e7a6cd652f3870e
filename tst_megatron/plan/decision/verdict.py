"""Decide in one sentence whether compute or text is what a run lacks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tst_megatron.plan.amounts import nats, rounded, short
from tst_megatron.plan.decision.search import Choice, best, boundaries, choice, data_bound_below
from tst_megatron.plan.gain.grids import Point
from tst_megatron.plan.published.records import Published
from tst_megatron.plan.section import Section

Kind = Literal[
    "compute-bound", "data-limited", "data-bound", "depends on the text", "no gain", "too short"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The decision, and what it is based on."""

    kind: Kind
    sentence: str
    recommended: Choice | None
    """What the sentence names; None where it names nothing to use."""
    planned: Choice
    """The schedule of the plan, with the text that there is."""
    limits: dict[str, float | None]
    """By each law, the unique tokens below which the planned schedule does not pay."""
    data_bound_below: float | None
    """Unique tokens below which no schedule pays by all laws; None: none ever does."""


def decide(known: Published, point: Point, available: float | None) -> Verdict:
    """Weigh the planned schedule and every other of the grids, by all laws.

    No law was fitted to superposition, so a schedule pays only if all of them say so.

    Args:
        known: what is published.
        point: the planned schedule.
        available: unique raw tokens; None if they are not known.
    """
    unique = math.inf if available is None else available
    planned = choice(known, point, unique)
    found = best(known, point, unique)
    limit = data_bound_below(known, point)
    least = None if limit is None else limit[0]
    is_once = planned.reading.raw_tokens <= unique
    kind: Kind
    if limit is None:
        kind, sentence = "no gain", _no_gain(point)
    elif point.num_steps < known.here.wins_from_steps and found is not None:
        kind, sentence, found = "too short", _too_short(known, point), None
    elif available is None:
        assert found is not None
        kind, sentence = "depends on the text", _depends(found, limit)
    elif found is None:
        kind, sentence = "data-bound", _data_bound(known, planned, available)
    elif is_once:
        kind = "compute-bound"
        sentence, found = _compute_bound(known, planned, found, available)
    else:
        kind, sentence = "data-limited", _data_limited(known, planned, found, available)
    if point.inputs == "tokens" and kind in (
        "depends on the text",
        "compute-bound",
        "data-limited",
    ):
        sentence, found = _output_only(planned), planned
    return Verdict(
        kind=kind,
        sentence=sentence,
        recommended=found,
        planned=planned,
        limits=boundaries(known, planned.reading),
        data_bound_below=least,
    )


def said_of(point: Point) -> str:
    """Name a schedule's bag size and share."""
    more = ["output only"] if point.inputs == "tokens" else []
    more += ["input only"] if point.targets == "tokens" else []
    k, r = rounded(point.bag_size), rounded(point.superposition_fraction)
    return ", ".join([f"K = {k:g}, r = {r:g}", *more, *point.resets])


def _times(tokens: float, unique: float) -> str:
    return f"{rounded(tokens / unique):g} times"


def _read(tokens: float, unique: float) -> str:
    """Say how often text is read, and what a start must be told for that."""
    if tokens <= unique:
        return "at most once"
    return f"{_times(tokens, unique)} (tst.max-epochs={math.ceil(tokens / unique)})"


def _no_gain(point: Point) -> str:
    return (
        f"No gain: at {point.num_steps:,} steps the estimate is below the noise of a run for every "
        "K and r. Do not use TST for this run."
    )


def _too_short(known: Published, point: Point) -> str:
    shortest = min(grid.num_steps for grid in known.grids.values())
    return (
        f"Too short to say: {point.num_steps:,} steps. The paper has no run below {shortest:,}, "
        f"and of this project's small models, {known.here.said}."
    )


def _depends(found: Choice, limit: tuple[float, Choice]) -> str:
    return (
        "Depends on the text (--tokens-available). Compute-bound with "
        f"{short(found.reading.raw_tokens)} unique tokens or more: use {said_of(found.point)}. "
        "Data-limited below that: use smaller r and K. Data-bound below "
        f"{short(limit[0])}: do not use TST."
    )


def _compute_bound(
    known: Published, planned: Choice, found: Choice, available: float
) -> tuple[str, Choice]:
    """Return the sentence, and the schedule that it names."""
    ahead = found.worst - planned.worst
    used, other = planned, ""
    # Two runs are compared, and each has its noise.
    if ahead > 2 * known.noise_nats:
        used = found
        other = f", which the estimate puts {ahead:.3f} nats ahead of {said_of(planned.point)}"
    elif said_of(found.point) != said_of(planned.point):
        other = (
            f", which is within the noise of two runs of the grids' best, {said_of(found.point)}"
        )
    sentence = (
        f"Compute-bound: use TST with {said_of(used.point)}{other}. It reads "
        f"{short(used.reading.raw_tokens)} of {short(available)} unique tokens, once."
    )
    return sentence, used


def _output_only(planned: Choice) -> str:
    return (
        f"Output superposition alone ({said_of(planned.point)}) reads no more text than an "
        f"ordinary run, and gains about {planned.reading.gain:.3f} nats by one ablation. The paper "
        "proposes it where text is short, and did not test it against epochs."
    )


def _data_limited(known: Published, planned: Choice, found: Choice, available: float) -> str:
    against = planned.against(known)
    why = ""
    if said_of(planned.point) != said_of(found.point):
        read = _times(planned.reading.raw_tokens, available)
        why = f" {said_of(planned.point)} would read it {read}"
        if against:
            why += f", and does not pay by {len(against)} of {len(known.laws)} laws and bounds"
        why += "."
    return (
        f"Data-limited: use {said_of(found.point)}. It reads your {short(available)} tokens "
        f"{_read(found.reading.raw_tokens, available)} and gains {found.worst:.3f} nats by the "
        f"strictest law.{why} Output superposition alone (tst.inputs: tokens) reads no more text "
        "than an ordinary run."
    )


def _data_bound(known: Published, planned: Choice, available: float) -> str:
    reading, against = planned.reading, planned.against(known)
    new = "no" if reading.positions >= available else "almost no"
    return (
        f"Data-bound: do not use TST. The ordinary run alone reads your {short(available)} tokens "
        f"{_times(reading.positions, available)}, so bags have {new} new text to read: "
        f"{said_of(planned.point)} would read it {_times(reading.raw_tokens, available)}. That "
        f"does not pay by {len(against)} of {len(known.laws)} laws and bounds, and no K and r pays "
        "by all of them. Nobody has tested bags of repeated text. Spend the money on ordinary "
        "epochs, or test output superposition alone (tst.inputs: tokens), which reads no more text."
    )


def text_section(known: Published, verdict: Verdict, available: float | None) -> Section:
    """Make the table of the laws."""
    has_text = available is not None
    rows = []
    for key, law in known.laws.items():
        limit = verdict.limits[key]
        stops = "never pays" if limit is None else short(limit) if limit else "pays at any"
        gain = (nats(verdict.planned.gains[key]),) if has_text else ()
        rows.append((f"{law.title} {known.cite(law.source)}", *gain, stops))
    planned = verdict.planned
    heads = () if available is None else (f"gain with {short(available)}",)
    least = verdict.data_bound_below
    read = short(planned.reading.raw_tokens)
    end = "no K and r pays"
    if least is not None:
        end = f"below {short(least)} no K and r pays by all laws"
    if least == 0:
        end = "none, as it reads no more text than an ordinary run"
    return Section(
        name="text",
        title=f"Text: {said_of(planned.point)} reads {read} raw tokens",
        columns=("law or bound", *heads, "stops paying below"),
        rows=tuple(rows),
        lines=(
            f"Boundary: {end}. The last two rows have a decay of repeats that was fitted to runs "
            "that read text again, the first of them on another's curve; the other rows are "
            "bounds. All are of ordinary training, and none was fitted to TST. Paying means more "
            f"than the noise of a run, {known.noise_nats} nats.",
        ),
        values={
            "unique tokens available": available,
            "laws": {
                key: {
                    "title": law.title,
                    "gain nats": verdict.planned.gains[key],
                    "stops paying below tokens": verdict.limits[key],
                }
                for key, law in known.laws.items()
            },
            "data-bound below tokens": least,
        },
        sources=tuple(dict.fromkeys(law.source for law in known.laws.values())),
    )
