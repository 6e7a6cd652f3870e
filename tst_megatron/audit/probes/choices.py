"""Collect items with one right and one wrong token, and make probes of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tst_megatron.audit.items import Catalogue, Flags, Ints, LeftOut, Passage, Probe, Suite
from tst_megatron.audit.probes import measures
from tst_megatron.audit.probes.encoding import Encoder, Placement
from tst_megatron.audit.statistics.bootstrap import FEWEST_CLUSTERS

SUITE = "choices"
CHANCE = 0.5
TRIES = 20
"""Items that are drawn for each that is wanted, at most: some cannot be placed."""
PLACEMENTS: tuple[Placement, ...] = ("inside", "across")

Names = npt.NDArray[np.str_]
Draw = Callable[[Encoder, random.Random, Placement | None], Passage | None]
"""Draws an item; None where this draw gives none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A kind of items."""

    name: str
    group: str
    aim: str
    draw: Draw
    is_placed: bool = False
    """Whether it is asked inside a bag, across an edge, and one against the other."""


@dataclass(slots=True)
class _Made:
    passages: list[Passage] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


def choices(tasks: Sequence[Task], encoder: Encoder, *, num_items: int, seed: int) -> Catalogue:
    """Draw items of all tasks, and make a probe of each.

    Args:
        tasks: kinds of items.
        encoder: of the models' tokenizer.
        num_items: of each task and placement.
        seed: of the drawings.
    """
    made, catalogue = _Made(), Catalogue()
    for task in tasks:
        for placement in PLACEMENTS if task.is_placed else (None,):
            name = f"{task.name}, {placement}" if placement else task.name
            # Of its own, so that another task changes nothing here.
            generator = random.Random(f"{seed} {name}")
            found = draw_items(task.draw, encoder, generator, placement, num_items)
            if len(found) < FEWEST_CLUSTERS:
                catalogue.left_out.append(LeftOut(name=name, reason=_why_not(encoder, placement)))
                continue
            made.passages += found
            made.labels += [name] * len(found)
    labels = np.array(made.labels)
    if len(labels):
        catalogue.suites.append(Suite(name=SUITE, passages=made.passages, seed=seed))
    for task in tasks:
        catalogue.probes += probes_of(task, labels)
    return catalogue


def draw_items(
    draw: Draw,
    encoder: Encoder,
    generator: random.Random,
    placement: Placement | None,
    num_items: int,
) -> list[Passage]:
    """Return different items, fewer than wanted where not so many can be drawn."""
    found: dict[bytes, Passage] = {}
    for _ in range(TRIES * num_items):
        if len(found) == num_items:
            break
        passage = draw(encoder, generator, placement)
        if passage is not None:
            found.setdefault(passage.ids.tobytes() + passage.foils.tobytes(), passage)
    return list(found.values())


def _why_not(encoder: Encoder, placement: Placement | None) -> str:
    if placement is None:
        return f"its items do not fit into {encoder.num_positions:,} positions"
    return (
        f"its two parts are never two tokens of one bag of {encoder.bag_size} with this "
        f"tokenizer, or its items do not fit into {encoder.num_positions:,} positions"
    )


def probes_of(task: Task, labels: Names) -> list[Probe]:
    """Return the probes of a task: one, or inside, across and one against the other.

    Args:
        task: a kind of items.
        labels: of all items, the task and placement of each.
    """
    if not task.is_placed:
        among = labels == task.name
        return [_accuracy(task, task.name, among, task.aim)] if among.any() else []
    inside, across = (labels == f"{task.name}, {placement}" for placement in PLACEMENTS)
    if not (inside.any() and across.any()):
        return []
    return [
        _accuracy(task, f"{task.name}, inside", inside, f"{task.aim}; both parts in one bag"),
        _accuracy(task, f"{task.name}, across", across, f"{task.aim}; an edge between them"),
        _edge_effect(task, inside, across),
    ]


def numbered(among: Flags) -> Ints:
    """Return a cluster for each item that counts, and -1 for the others."""
    return np.where(among, np.cumsum(among) - 1, -1).astype(np.int64)


def _accuracy(task: Task, name: str, among: Flags, aim: str) -> Probe:
    reduce, statistic = measures.mean_over(numbered(among), measures.is_right, among)
    return Probe(
        name=name,
        suite=SUITE,
        group=task.group,
        aim=aim,
        kind="accuracy",
        is_higher_better=True,
        clusters="items",
        num_clusters=int(among.sum()),
        num_tokens=int(among.sum()),
        reduce=reduce,
        statistic=statistic,
        floor=CHANCE,
    )


def _edge_effect(task: Task, inside: Flags, across: Flags) -> Probe:
    either = inside | across
    reduce, statistic = measures.contrast_of(numbered(either), measures.is_right, across, inside)
    return Probe(
        name=f"{task.name}, edge effect",
        suite=SUITE,
        group=task.group,
        aim="right answers across an edge less those inside a bag",
        kind="accuracy",
        is_higher_better=False,
        clusters="items",
        num_clusters=int(either.sum()),
        num_tokens=int(either.sum()),
        reduce=reduce,
        statistic=statistic,
        rests_on=(f"{task.name}, inside", f"{task.name}, across"),
    )
