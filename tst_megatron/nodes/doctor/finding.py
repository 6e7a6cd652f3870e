"""What was looked at, how it stands, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    """Training works, and the owner should know it all the same."""
    PROBLEM = "problem"
    """Training cannot work, or not as was meant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line of the answer."""

    check: str
    """What was looked at, in a word or two."""
    level: Level
    found: str
    needed: str = ""
    fix: str = ""


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(check=check, level=Level.OK, found=found)


def note(check: str, found: str, *, needed: str = "", fix: str = "") -> Finding:
    """Something to know that keeps no run from training."""
    return Finding(check=check, level=Level.NOTE, found=found, needed=needed, fix=fix)


def problem(check: str, found: str, *, needed: str, fix: str) -> Finding:
    """Something that keeps runs from training, with what to do about it."""
    return Finding(check=check, level=Level.PROBLEM, found=found, needed=needed, fix=fix)
