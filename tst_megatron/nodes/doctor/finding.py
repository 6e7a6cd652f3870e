"""Define a finding: one thing that was checked, its state, and the fix."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """Weight of a finding."""

    OK = "ok"
    NOTE = "note"
    """Training works, but the owner should know it."""
    PROBLEM = "problem"
    """Training cannot work, or would not do what was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the answer."""

    check: str
    """Name of the thing that was checked, in a word or two."""
    level: Level
    found: str
    needed: str = ""
    fix: str = ""


def ok(check: str, found: str) -> Finding:
    """Return a finding that nothing is wrong."""
    return Finding(check=check, level=Level.OK, found=found)


def note(check: str, found: str, *, needed: str = "", fix: str = "") -> Finding:
    """Return a finding that stops no run."""
    return Finding(check=check, level=Level.NOTE, found=found, needed=needed, fix=fix)


def problem(check: str, found: str, *, needed: str, fix: str) -> Finding:
    """Return a finding that stops runs from training, with the fix."""
    return Finding(check=check, level=Level.PROBLEM, found=found, needed=needed, fix=fix)
