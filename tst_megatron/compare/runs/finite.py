"""Keep the finite validation losses of a run, and say which are not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tst_megatron.compare.results import Curve

DIVERGED_AT = "diverged at"
"""Fact of a run whose last validation losses are no finite numbers: the first of their steps."""


def curve(values: Mapping[int, float]) -> Curve:
    """Return numbers by step as a curve; only finite ones count."""
    steps = sorted(step for step, value in values.items() if math.isfinite(value))
    return Curve(
        steps=np.array(steps, dtype=np.int64),
        values=np.array([values[step] for step in steps], dtype=np.float64),
    )


def finite_validation(
    path: Path, values: Mapping[int, float], facts: dict[str, Any], notes: list[str]
) -> Curve:
    """Return the validation losses of a run that are finite numbers.

    Args:
        path: of the run.
        values: losses by step.
        facts: is told the step from which on none is finite, if the run ends so.
        notes: is told in a sentence of losses that are left out.

    Raises:
        ValueError: none is finite.
    """
    found = curve(values)
    lost = sorted(set(values) - set(found.steps.tolist()))
    if not len(found.steps):
        raise ValueError(
            f"{path}: none of its {len(lost)} validation losses is a finite number, so there is "
            "nothing to compare"
        )
    if lost:
        notes.append(
            f"{path}: {len(lost)} of {len(values)} validation losses are no finite numbers, the "
            f"first at step {lost[0]:,}; they are left out"
        )
    at_the_end = [step for step in lost if step > found.steps[-1]]
    if at_the_end:
        facts[DIVERGED_AT] = at_the_end[0]
    return found
