"""Name the runs that a row of ``refusals.py`` is for, and the values that it refuses."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run as far as the table asks."""

    values: argparse.Namespace
    """What the recipe's keys came to."""
    is_on_cpu: bool
    """The CPU host runs it, because the recipe has ``profile: cpu``."""
    has_bags: bool
    """A phase of it has bags of more than one token."""


# --- runs -----------------------------------------------------------------------------------------


def every_run(run: Run) -> bool:
    """Hold for every run."""
    return True


def in_superposition(run: Run) -> bool:
    """Hold for a run with a phase of superposition."""
    return run.has_bags


def on_cpu(run: Run) -> bool:
    """Hold for a run on the CPU host."""
    return run.is_on_cpu


def on_cpu_with_heads(run: Run) -> bool:
    """Hold for a run on the CPU host whose model has heads of multi-token prediction."""
    return run.is_on_cpu and bool(run.values.mtp_num_layers)


# --- values ---------------------------------------------------------------------------------------


def is_off(value: Any) -> bool:
    """Refuse a switch that was turned off."""
    return not value


def is_above_zero(value: float) -> bool:
    """Refuse a share of something."""
    return value > 0


def equals(refused: str) -> Callable[[Any], bool]:
    """Refuse one value."""
    return lambda value: bool(value == refused)


def differs_from(*accepted: Any) -> Callable[[Any], bool]:
    """Refuse all values but these."""
    return lambda value: value not in accepted


def has_early_heads(layout: Any) -> bool:
    """Refuse a layout of stages that puts multi-token prediction before the last stage.

    Example: in ``Et*2m|tL`` the head ``m`` is on the first of two stages.
    """
    return "m" in str(layout or "").rpartition("|")[0]
