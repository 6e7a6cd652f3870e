"""Present what lm-eval found: as one dictionary, and as a table beside the paper's numbers."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from typing import Any

from rich.table import Table

from tst_megatron import __version__
from tst_megatron.hf.evaluate.paper import RUNS, number_beside
from tst_megatron.system.packages import package_version

METRICS = ("acc", "acc_norm")
_FILTER = "none"
"""lm-eval's name for answers that were taken as they are."""
_PACKAGES = ("lm-eval", "torch", "transformers", "tokenizers", "datasets")


def aggregate_every_metric(groups: Iterable[Any]) -> None:
    """Let groups give acc_norm where all their tasks have it, weighted by size as their acc is.

    lm-eval's groups of MMLU aggregate acc alone.

    Args:
        groups: lm-eval's groups, changed in place.
    """
    from lm_eval.config.group import AggMetricConfig

    for group in groups:
        listed = group.aggregate_metric_list or []
        weights = {metric.metric: metric.weight_by_size for metric in listed}
        tasks = group.get_all_tasks()
        if "acc" in weights and "acc_norm" not in weights:
            if all("acc_norm" in task.aggregation() for task in tasks):
                listed.append(AggMetricConfig(metric="acc_norm", weight_by_size=weights["acc"]))


def summary(
    raw: Any,
    *,
    names: list[str],
    model: dict[str, Any],
    tokenizer: dict[str, Any],
    settings: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Return the content of the result file: fractions 0-1, and all that they depend on.

    Args:
        raw: what lm-eval's ``evaluate`` returned, samples included.
        names: the tasks that were asked for, in the order of the table.
        model: facts about the model.
        tokenizer: facts about its tokenizer.
        settings: how it was evaluated.
        seconds: time that it took.
    """
    packages = {name: package_version(name) for name in _PACKAGES}
    return {
        "format": 1,
        "asked_for": _expanded(names, raw),
        "tasks": {name: _task(name, found, raw) for name, found in raw["results"].items()},
        "model": model,
        "tokenizer": tokenizer,
        "settings": settings,
        "versions": {
            "tst-megatron": __version__,
            "python": platform.python_version(),
            **packages,
        },
        "seconds": round(seconds, 1),
    }


def _expanded(names: list[str], raw: Any) -> list[str]:
    """The names that have a result; a tag has none, its tasks do."""
    found = raw["results"]
    below = {child for group in raw["group_subtasks"].values() for child in group}
    others = [name for name in found if name not in below and name not in names]
    return [name for name in names if name in found] + others


def _task(name: str, found: dict[str, Any], raw: Any) -> dict[str, Any]:
    """One task's numbers; a number that lm-eval does not have is None."""
    numbers: dict[str, Any] = {}
    for key, value in found.items():
        metric, comma, filter_ = key.partition(",")
        if comma:
            label = metric if filter_ == _FILTER else key
            numbers[label] = None if value == "N/A" else value
    samples = raw["samples"].get(name)
    config = raw["configs"].get(name, {})
    return {
        **numbers,
        "num_items": found.get("sample_len"),
        "num_fewshot": _shots(name, raw),
        "version": raw["versions"].get(name),
        "hash": samples and _hash(samples),
        "subtasks": raw["group_subtasks"].get(name, []),
        "split": config.get("test_split") or config.get("validation_split"),
    }


def _shots(name: str, raw: Any) -> int | None:
    """Examples in each prompt of a task, or of all the tasks of a group; None where they differ."""
    below = raw["group_subtasks"].get(name)
    if below is None:
        return int(raw["configs"][name]["num_fewshot"])
    shots = {_shots(child, raw) for child in below}
    return shots.pop() if len(shots) == 1 else None


def _hash(samples: list[dict[str, Any]]) -> str:
    """lm-eval's hash of a task: of each item, its prompt and its target, as its own files have."""
    parts = (s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples)
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def table(found: dict[str, Any], compare: list[str]) -> Table:
    """The numbers in per cent, beside runs of the paper.

    Args:
        found: what ``summary`` returned.
        compare: keys of ``paper.RUNS``.
    """
    limit = found["settings"]["limit"]
    title = f"first {limit} items of each task: a trial, no result" if limit else None
    runs = "".join(f"\npaper {run}: {RUNS[run].description}." for run in compare)
    shown = Table(
        title=title,
        caption="Per cent, with standard error. Paper: arXiv 2605.06546, Table 1, zero-shot; "
        f"it says neither acc or acc_norm, nor which MMLU.{runs}",
        caption_justify="left",
    )
    shown.add_column("task", no_wrap=True)
    for column in (*METRICS, "items", "shots", *(f"paper {run}" for run in compare)):
        shown.add_column(column, justify="right", no_wrap=True)
    for name in found["asked_for"]:
        numbers = found["tasks"][name]
        beside = [number_beside(run, name) for run in compare]
        shown.add_row(
            name,
            *(_cell(numbers, metric) for metric in METRICS),
            str(numbers["num_items"]),
            str(numbers["num_fewshot"]),
            *("" if number is None else f"{number:.1f}" for number in beside),
        )
    return shown


def _cell(numbers: dict[str, Any], metric: str) -> str:
    if numbers.get(metric) is None:
        return ""
    error = numbers.get(f"{metric}_stderr")
    return f"{100 * numbers[metric]:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
