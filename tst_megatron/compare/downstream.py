"""Join in the results of ``tst-megatron evaluate``, paired by question.

A run's results are the files ``*evaluation.json`` in its folder, which is where ``evaluate RUN/hf``
writes (``RUN/hf-evaluation.json``). Answers are kept beside each (``hf/evaluate/answers.py``). Of
several files that have a task, the newest counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tst_megatron.compare.results import Downstream, RecordedRun
from tst_megatron.compare.statistics.answers import compare_answers
from tst_megatron.hf.evaluate.answers import Answers, read_answers
from tst_megatron.system.records import Damaged, read_json

RESULTS = "*evaluation.json"
METRICS = ("acc", "acc_norm")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Evaluated:
    """The results of one run."""

    asked_for: Sequence[str] = ()
    """Tasks and groups, in order."""
    tasks: Mapping[str, Answers] = field(default_factory=dict)
    """Without groups."""
    subtasks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Group -> its tasks and groups."""


def find_downstream(
    arms: Mapping[str, Sequence[RecordedRun]], baseline: str, notes: list[str]
) -> list[Downstream]:
    """Return every task that the baseline and another arm have answered the same questions of.

    Of an arm with several seeds, the first run that has results counts; for the baseline it is one
    of the same seed, where there is one.

    Args:
        arms: name -> runs, the baseline's among them.
        baseline: name of an arm.
        notes: is told in a sentence of results that cannot be joined.
    """
    evaluated = {
        run.path: _read(run, notes) for runs in arms.values() for run in runs if run.path.is_dir()
    }
    with_results = {
        name: [run for run in runs if run.path in evaluated and evaluated[run.path].tasks]
        for name, runs in arms.items()
    }
    found = []
    for name, runs in with_results.items():
        others = with_results[baseline]
        if name == baseline or not runs or not others:
            continue
        seeds = {other.seed: other for other in others}
        pair = next(((run, seeds[run.seed]) for run in runs if run.seed in seeds), None)
        run, other = pair or (runs[0], others[0])
        if len(runs) > 1 or len(others) > 1:
            notes.append(
                f"downstream tasks: {run.name} stands for {name}, and {other.name} for {baseline}"
            )
        found += _joined(name, baseline, evaluated[run.path], evaluated[other.path], notes)
    return found


def _joined(
    name: str, baseline: str, ours: _Evaluated, theirs: _Evaluated, notes: list[str]
) -> list[Downstream]:
    found = []
    for task in ours.asked_for:
        leaves = _leaves(task, ours)
        if task not in theirs.asked_for or not leaves:
            continue
        pairs = [(ours.tasks.get(leaf), theirs.tasks.get(leaf)) for leaf in leaves]
        known = [(one, other) for one, other in pairs if one is not None and other is not None]
        if len(known) < len(pairs) or any(one.hash != other.hash for one, other in known):
            notes.append(
                f"{task}: {name} and {baseline} were asked other questions, so it is left out"
            )
            continue
        for metric in METRICS:
            right, other_right = (
                "".join(each.right.get(metric, "") for each in side)
                for side in zip(*known, strict=True)
            )
            if right and len(right) == len(other_right):
                found.append(_downstream(task, metric, name, baseline, right, other_right))
    return found


def _downstream(
    task: str, metric: str, arm: str, baseline: str, ours: str, theirs: str
) -> Downstream:
    paired = compare_answers(ours, theirs)
    return Downstream(
        task=task,
        metric=metric,
        arm=arm,
        baseline=baseline,
        arm_score=paired.num_right[0] / paired.num_questions,
        baseline_score=paired.num_right[1] / paired.num_questions,
        difference=paired.difference,
        num_questions=paired.num_questions,
        only_arm_right=paired.only_right[0],
        only_baseline_right=paired.only_right[1],
        p_value=paired.p_value,
    )


def _leaves(task: str, evaluated: _Evaluated) -> list[str]:
    """Return the tasks of a group; a task alone is its own."""
    below = evaluated.subtasks.get(task)
    if not below:
        return [task]
    return [leaf for child in below for leaf in _leaves(child, evaluated)]


def _read(run: RecordedRun, notes: list[str]) -> _Evaluated:
    asked_for: dict[str, None] = {}
    tasks: dict[str, Answers] = {}
    subtasks: dict[str, Sequence[str]] = {}
    files = sorted(run.path.glob(RESULTS), key=lambda file: file.stat().st_mtime)
    for file in files:
        try:
            result = read_json(file, {"asked_for": list, "tasks": dict}) or {}
            answers = read_answers(file)
        except Damaged as error:
            notes.append(f"{file}: {error}; these results are left out")
            continue
        if answers is None:
            notes.append(
                f"{file}: an earlier version wrote it and kept no answers, so it cannot be paired "
                "by question. Evaluate again"
            )
            continue
        if limit := (result.get("settings") or {}).get("limit"):
            notes.append(f"{file}: is a trial with the first {limit} questions of each task")
        asked_for |= dict.fromkeys(map(str, result["asked_for"]))
        tasks |= answers
        subtasks |= _subtasks(result["tasks"])
    return _Evaluated(asked_for=list(asked_for), tasks=tasks, subtasks=subtasks)


def _subtasks(tasks: Mapping[str, Any]) -> dict[str, list[str]]:
    return {
        name: [str(child) for child in task["subtasks"]]
        for name, task in tasks.items()
        if isinstance(task, dict) and isinstance(task.get("subtasks"), list) and task["subtasks"]
    }
