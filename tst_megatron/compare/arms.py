"""Put runs together into arms, name the arms, and choose the baseline.

Runs that differ in nothing but their seed are one arm. What a run was made with is in its facts;
where these say nothing, as for CSV files, the name decides: ``tst-seed1`` and ``tst-seed2``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tst_megatron.compare.comparability.settings import deciding_values, weights_of_texts
from tst_megatron.compare.results import RecordedRun
from tst_megatron.recipe.recipe import RecipeError

BASELINE_OPTION = "--baseline"


def with_arms(runs: Sequence[RecordedRun]) -> dict[str, list[RecordedRun]]:
    """Return name -> runs of each arm, in the order in which the first runs of them were given.

    The runs of an arm are in the order of their seeds, and know its name.
    """
    groups: dict[str, list[RecordedRun]] = {}
    for run in runs:
        groups.setdefault(_kind_of(run), []).append(run)
    split = [part for group in groups.values() for part in _of_different_seeds(group)]
    arms = {}
    for name, group in zip(_names(split), split, strict=True):
        ordered = sorted(group, key=lambda run: (run.seed is None, run.seed or 0))
        arms[name] = [dataclasses.replace(run, arm=name) for run in ordered]
    return arms


def without_seed(run: RecordedRun) -> str:
    """Return a run's name without its seed; the whole name if nothing else is in it."""
    name = re.sub(r"(?i)[-_. /]*seed[-_ =]?\d+", "", run.name)
    # Where the name says "seed", another number at its end is no seed: longer-2_seed-2.
    if run.seed is not None and name == run.name:
        name = re.sub(rf"(?i)[-_. /]+{run.seed}$", "", name)
    return name.strip("-_. /") or run.name


def _kind_of(run: RecordedRun) -> str:
    """Return a text that is the same for runs that differ in their seed alone."""
    if "recipe" not in run.facts:
        return json.dumps([run.kind, without_seed(run)])
    stream = run.facts.get("stream")
    order = dict(stream) if isinstance(stream, Mapping) else {}
    order.pop("seed", None)
    # A branch is, bit for bit, the run that it would be without a trunk.
    said = [run.kind, run.phases, deciding_values(run), order]
    text = [weights_of_texts(run.facts["recipe"]), run.facts.get("tokenizer")]
    return json.dumps([*said, *text, run.facts.get("held-out")], sort_keys=True, default=str)


def _of_different_seeds(group: Sequence[RecordedRun]) -> list[list[RecordedRun]]:
    """Return a group whose seeds differ as one arm; otherwise names decide, or nothing does."""
    if _have_own_seeds(group):
        return [list(group)]
    by_name: dict[str, list[RecordedRun]] = {}
    for run in group:
        by_name.setdefault(without_seed(run), []).append(run)
    return [
        part
        for runs in by_name.values()
        for part in ([runs] if _have_own_seeds(runs) else [[run] for run in runs])
    ]


def _have_own_seeds(runs: Sequence[RecordedRun]) -> bool:
    return len(runs) == 1 or len({run.seed for run in runs} - {None}) == len(runs)


# --- names ---------------------------------------------------------------------------------------


def _names(groups: Sequence[Sequence[RecordedRun]]) -> list[str]:
    """Name each arm by the name that its runs share without their seeds, else by its phases."""
    names = []
    for group in groups:
        shared = {without_seed(run) for run in group}
        names.append(shared.pop() if len(shared) == 1 else _common_start(shared) or _said(group[0]))
    counted = Counter(names)
    names = [
        f"{name} ({_said(group[0])})" if counted[name] > 1 else name
        for name, group in zip(names, groups, strict=True)
    ]
    counted = Counter(names)
    return [
        group[0].name if counted[name] > 1 else name
        for name, group in zip(names, groups, strict=True)
    ]


def _common_start(names: Iterable[str]) -> str:
    """Return the words with which all names start."""
    split = [re.split(r"(?<=[-_. /])", name) for name in names]
    start = ""
    for words in zip(*split, strict=False):
        if len({word.strip("-_. /") for word in words}) > 1:
            break
        start += words[0]
    return start.strip("-_. /")


def _said(run: RecordedRun) -> str:
    """Say what distinguishes a run's schedule, such as ``K=4, r=0.3``."""
    bags = [(size, steps) for size, steps in run.phases if size > 1]
    total = sum(steps for _, steps in run.phases)
    if not bags:
        return f"no superposition, {run.num_steps:,} steps"
    sizes = "-".join(str(size) for size, _ in bags)
    return f"K={sizes}, r={sum(steps for _, steps in bags) / total:.3g}, {run.num_steps:,} steps"


# --- the baseline --------------------------------------------------------------------------------


def choose_baseline(arms: Mapping[str, Sequence[RecordedRun]], named: str | None) -> str:
    """Return the name of the arm that the others are compared with.

    It is the arm that was named, or has a run of that name. Otherwise it is the only arm without
    superposition; of several, the only one that has as many steps as all arms with superposition.
    Where no arm has superposition, or every one has, it is the first.

    Raises:
        RecipeError: there is no such arm, or several could be meant.
    """
    listed = ", ".join(arms)
    if named is not None:
        if named in arms:
            return named
        found = [name for name, runs in arms.items() if any(run.name == named for run in runs)]
        if not found:
            raise RecipeError([f"{BASELINE_OPTION} {named}: is no arm. The arms are {listed}"])
        return found[0]
    plain = [name for name, runs in arms.items() if not has_superposition(runs[0])]
    bags = [name for name in arms if name not in plain]
    if not plain or not bags:
        return next(iter(arms))
    lengths = {arms[name][0].num_steps for name in bags}
    alike = [name for name in plain if {arms[name][0].num_steps} == lengths]
    for candidates in (plain, alike):
        if len(candidates) == 1:
            return candidates[0]
    raise RecipeError(
        [
            f"{' and '.join(plain)}: are several arms without superposition, so the baseline could "
            f"be any of them. Name one with {BASELINE_OPTION} NAME; the arms are {listed}"
        ]
    )


def has_superposition(run: RecordedRun) -> bool:
    """Tell whether a run has read bags of more than one token."""
    return any(bag_size > 1 for bag_size, _ in run.phases)
