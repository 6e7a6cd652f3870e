"""Read a TensorBoard folder of Megatron-LM, stock or ours, as one run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tst_megatron.compare.results import Curve, Floats, Ints, RecordedRun
from tst_megatron.compare.runs.costs import flops_per_step, numbers_of_rows, seconds_at
from tst_megatron.compare.runs.event_files import event_files, read_events, tags_of
from tst_megatron.compare.runs.finite import curve, finite_validation
from tst_megatron.compare.runs.sampled_rows import MOST_ROWS
from tst_megatron.training.report.metrics_file import BAG_LOSS, LM_LOSS, VALIDATION_LOSS

NAMES = {
    "step seconds": ("step seconds", "iteration-time"),
    "TFLOP/s per device": ("TFLOP/s per device", "throughput"),
    "raw tokens": ("raw tokens",),
    "bag size": ("bag size",),
    "world size": ("world-size",),
    "global batch": ("batch-size",),
    "load_balancing_loss": ("load_balancing_loss",),
    "seq_load_balancing_loss": ("seq_load_balancing_loss",),
    "global_load_balancing_loss": ("global_load_balancing_loss",),
    BAG_LOSS: (BAG_LOSS,),
    LM_LOSS: (LM_LOSS,),
    VALIDATION_LOSS: (VALIDATION_LOSS,),
}
"""What is read, each with the tags under which this project and stock Megatron-LM write it."""

_WHOLE = (VALIDATION_LOSS, "bag size")


def read_tensorboard(path: Path, notes: list[str]) -> RecordedRun:
    """Return the run that a folder of event files tells of; its ``arm`` is empty.

    Megatron-LM writes its arguments as texts, which say what the run was made with.

    Args:
        path: a folder with files ``events.out.tfevents.*``.
        notes: is told in a sentence what is not known.

    Raises:
        ValueError: nothing can be compared; the message says why.
    """
    files = event_files(path)
    tags = {tag for names in NAMES.values() for tag in names}
    found = read_events(files, tags, most_values=MOST_ROWS, whole=_WHOLE)
    curves = {name: curve(_values(found.scalars, names)) for name, names in NAMES.items()}
    if VALIDATION_LOSS not in found.scalars:
        raise ValueError(
            f"{path}: has no scalar {VALIDATION_LOSS!r}, which is what is compared. Its scalars "
            f"are {', '.join(tags_of(files)) or 'none'}"
        )
    facts: dict[str, Any] = {}
    validation = finite_validation(path, found.scalars[VALIDATION_LOSS], facts, notes)
    arguments = {name.replace("_", "-"): text for name, text in found.texts.items()}
    if arguments:
        facts["recipe"] = arguments
    else:
        notes.append(
            f"{path}: does not hold Megatron's arguments, so what the run was made with is unknown"
        )
    world_size = _number(arguments, "world-size") or _first(curves["world size"])
    seconds, steps = curves["step seconds"], validation.steps
    per_step = flops_per_step(curves["TFLOP/s per device"], seconds, world_size)
    time = seconds_at(steps, seconds, is_whole=len(seconds.steps) == steps[-1])
    last_step = max(int(each.steps[-1]) for each in curves.values() if len(each.steps))
    tokens, num_steps = _raw_tokens(curves, arguments, steps), _number(arguments, "train-iters")
    phases = _phases(curves["bag size"])
    seed = _number(arguments, "seed")
    return RecordedRun(
        name=_name(path.resolve()),
        path=path,
        kind="TensorBoard",
        arm="",
        seed=None if seed is None else int(seed),
        num_steps=max(int(num_steps or 0), last_step),
        last_step=last_step,
        phases=phases or ((1, last_step),),
        trunk=None,
        training={name: curves[name] for name in (BAG_LOSS, LM_LOSS) if len(curves[name].steps)},
        validation=validation,
        block_files={},
        raw_tokens=tokens,
        flops=None if per_step is None else np.array(steps * per_step, np.float64),
        hours=None if time is None else time / 3600,
        numbers=numbers_of_rows(curves, "") | _throughput(time, tokens),
        device="unknown",
        facts=facts,
    )


def _name(path: Path) -> str:
    """Return a folder's name; that of the run around it if it only says what is inside."""
    return path.parent.name if path.name in ("tensorboard", "tb", "runs") else path.name


def _values(scalars: Mapping[str, Mapping[int, float]], tags: Sequence[str]) -> Mapping[int, float]:
    return next((scalars[tag] for tag in tags if tag in scalars), {})


def _first(curve: Curve) -> float | None:
    return float(curve.values[0]) if len(curve.values) else None


def _number(arguments: Mapping[str, Any], name: str) -> float | None:
    try:
        return float(arguments[name])
    except (KeyError, ValueError):
        return None


def _raw_tokens(
    curves: Mapping[str, Curve], arguments: Mapping[str, Any], steps: Ints
) -> Floats | None:
    recorded = curves["raw tokens"]
    if len(recorded.steps):
        return np.interp(steps, np.r_[0, recorded.steps], np.r_[0.0, recorded.values])
    length = _number(arguments, "seq-length")
    batch = _number(arguments, "global-batch-size") or _first(curves["global batch"])
    return (
        None if length is None or batch is None else np.array(steps * (batch * length), np.float64)
    )


def _throughput(time: Floats | None, tokens: Floats | None) -> dict[str, float]:
    if time is None or time[-1] <= 0:
        return {}
    rate = {} if tokens is None else {"raw tokens per second": float(tokens[-1] / time[-1])}
    return {"own hours": float(time[-1]) / 3600, **rate}


def _phases(bag_size: Curve) -> tuple[tuple[int, int], ...]:
    """Return (bag size, steps) of each phase that has been recorded."""
    pairs = zip(bag_size.steps.tolist(), bag_size.values.tolist(), strict=True)
    phases, before = [], 0
    for size, group in itertools.groupby(pairs, key=lambda pair: pair[1]):
        last = list(group)[-1][0]
        phases.append((int(size), last - before))
        before = last
    return tuple(phases)
