"""Read a run folder of ours: what the run is, its losses, and what they had cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tst_megatron.checkpoint.run_files import BRANCH, RESOLVED, places_of_tokenizers, read_branch
from tst_megatron.compare.results import Curve, RecordedRun
from tst_megatron.compare.runs.costs import (
    curve_of,
    flops_per_step,
    numbers_of_rows,
    seconds_at,
)
from tst_megatron.compare.runs.finite import finite_validation
from tst_megatron.compare.runs.sampled_rows import SampledRows, sample_rows
from tst_megatron.data.tokenizer.files import tokenizer_sha256
from tst_megatron.schedule import Schedule
from tst_megatron.system.records import Damaged, read_json
from tst_megatron.training.report.evaluations import list_evaluations
from tst_megatron.training.report.facts import FACTS, read_facts
from tst_megatron.training.report.metrics_file import (
    BAG_LOSS,
    EVALUATIONS,
    LM_LOSS,
    VALIDATION_LOSS,
)
from tst_megatron.training.report.recorded_schedule import recorded_schedule

SEED_OF_MEGATRON = 1234
"""Megatron's default of ``seed``."""

THINNED = "thinned"
"""Fact of a run of which not every step was read."""

_OF_ROWS = (
    "step seconds",
    "TFLOP/s per device",
    "peak memory bytes",
    "load_balancing_loss",
    "seq_load_balancing_loss",
    "global_load_balancing_loss",
)


def read_run_folder(path: Path, notes: list[str]) -> RecordedRun:
    """Return a run of ours; its ``name`` is the folder's and its ``arm`` is empty.

    Args:
        path: of the folder.
        notes: is told in a sentence of records that are damaged or of an earlier version.

    Raises:
        ValueError: nothing can be compared; the message says why.
    """
    schedule, recipe = recorded_schedule(path / RESOLVED)
    facts = _facts(path, recipe, notes)
    switches = [phase.last_step for phase in schedule.phases[:-1]]
    try:
        rows = sample_rows(path / "metrics.jsonl", switches=switches)
    except Damaged as error:
        raise ValueError(f"{path}: metrics.jsonl {error}") from error
    if rows is None or not (rows.steps or rows.validation):
        raise ValueError(f"{path}: has recorded nothing yet (metrics.jsonl holds no row)")
    validation = _validation(path, rows, facts, notes)
    curves = {name: curve_of(rows.steps, name) for name in _OF_ROWS}
    last_row = rows.steps[-1] if rows.steps else {}
    device = str(facts.get("device") or last_row.get("device") or "unknown")
    trunk = _trunk(path, notes)
    last_step = max(last_row.get("step", 0), int(validation.steps[-1]))
    steps, seconds = validation.steps, curves["step seconds"]
    per_step = facts.get("FLOPs per step") or flops_per_step(
        curves["TFLOP/s per device"], seconds, facts.get("world size")
    )
    hours = seconds_at(steps, seconds, is_whole=rows.is_whole)
    facts[THINNED] = not rows.is_whole
    return RecordedRun(
        name=path.resolve().name,
        path=path,
        kind="run folder",
        arm="",
        seed=int(recipe.get("seed", SEED_OF_MEGATRON)),
        num_steps=schedule.num_steps,
        last_step=last_step,
        phases=tuple((phase.bag_size, phase.num_steps) for phase in schedule.phases),
        trunk=trunk,
        training={name: curve_of(rows.steps, name) for name in (BAG_LOSS, LM_LOSS)},
        validation=validation,
        block_files=list_evaluations(path / EVALUATIONS),
        raw_tokens=np.array([schedule.raw_tokens_before(int(step)) for step in steps], np.float64),
        flops=None if per_step is None else np.array(steps * per_step, np.float64),
        hours=None if hours is None else hours / 3600,
        numbers={
            **numbers_of_rows(curves, device),
            **_throughput(schedule, seconds, trunk, last_step, is_whole=rows.is_whole),
            **_parameters(facts),
        },
        device=device,
        facts=facts,
    )


def _validation(path: Path, rows: SampledRows, facts: dict[str, Any], notes: list[str]) -> Curve:
    if rows.num_damaged:
        number = f"{rows.num_damaged}{'' if rows.is_whole else ' or more'}"
        notes.append(f"{path}: {number} damaged lines of metrics.jsonl are left out")
    if not rows.validation:
        raise ValueError(
            f"{path}: has recorded no evaluation yet, and only losses on held-out text are compared"
        )
    values = {}
    for row in rows.validation:
        loss = row.get(VALIDATION_LOSS)
        values[row["step"]] = float(loss) if isinstance(loss, int | float) else math.nan
    return finite_validation(path, values, facts, notes)


def _facts(path: Path, recipe: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return what the run was made with; the keys are those of ``facts.json``, and some more."""
    found: dict[str, Any] = {"recipe": recipe}
    kept = _read(path / FACTS, read_facts, notes)
    versions = _read(path / "versions.json", read_json, notes)
    found |= kept or {}
    if versions is not None:
        found["versions"] = {k: v for k, v in versions.items() if not isinstance(v, dict | list)}
        found.setdefault("device", versions.get("device"))
        found.setdefault("world size", versions.get("world size"))
    for name in ("world size", "FLOPs per step"):
        if not isinstance(found.get(name), int | float):
            found.pop(name, None)
    tokenizer = (found.get("stream") or {}).get("tokenizer") or _kept_tokenizer(path)
    return found | {"tokenizer": tokenizer}


def _read[T](file: Path, reader: Callable[[Path], T], notes: list[str]) -> T | None:
    try:
        return reader(file)
    except Damaged as error:
        notes.append(f"{file}: {error}; what it would say is not known")
        return None


def _kept_tokenizer(path: Path) -> str | None:
    """Return the hash of the tokenizer that a run keeps beside its checkpoints."""
    for place in places_of_tokenizers(path / "checkpoints"):
        try:
            return tokenizer_sha256(place)
        except OSError:
            continue
    return None


def _trunk(path: Path, notes: list[str]) -> tuple[str, int] | None:
    branch = _read(path / BRANCH, lambda file: read_branch(file.parent), notes)
    return None if branch is None else (branch.trunk_name, branch.step)


def _throughput(
    schedule: Schedule,
    seconds: Curve,
    trunk: tuple[str, int] | None,
    last_step: int,
    *,
    is_whole: bool,
) -> dict[str, float]:
    """Return hours and raw tokens per second of what the run did itself, without its trunk."""
    first = trunk[1] if trunk else 0
    both = seconds_at(np.array([first, last_step]), seconds, is_whole=is_whole)
    if both is None or both[1] <= both[0]:
        return {}
    own = float(both[1] - both[0])
    tokens = schedule.raw_tokens_before(last_step) - schedule.raw_tokens_before(first)
    return {"own hours": own / 3600, "raw tokens per second": tokens / own}


def _parameters(facts: Mapping[str, Any]) -> dict[str, float]:
    said = facts.get("parameters") or {}
    names = {"total": "parameters", "active": "active parameters"}
    return {names[key]: float(said[key]) for key in names if said.get(key)}
