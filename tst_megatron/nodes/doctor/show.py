"""Print a diagnosis as a table for a person, or as JSON for a program."""

from __future__ import annotations

import dataclasses
import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tst_megatron.nodes.doctor.diagnose import Diagnosis
from tst_megatron.nodes.doctor.finding import Finding, Level

STYLES = {Level.OK: "green", Level.NOTE: "yellow", Level.PROBLEM: "bold red"}


def as_json(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as one JSON object, with the findings as a list."""
    facts = {"can_train": diagnosis.can_train, **dataclasses.asdict(diagnosis)}
    return json.dumps(facts, indent=2)


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print every finding in a table, then the conclusion."""
    choice = " (none was asked for; this is the one for this machine)"
    profile = f"{diagnosis.profile}{choice if diagnosis.is_default_profile else ''}"
    _line(console, f"{diagnosis.host}, profile {profile}", None)
    table = Table("level", "check", "found", box=None, padding=(0, 2, 0, 0))
    for finding in diagnosis.findings:
        level = Text(_word(finding.level), style=STYLES[finding.level])
        table.add_row(level, Text(finding.check), Text(_in_full(finding)))
    console.print(table)
    _line(console, *_summary(diagnosis))


def _word(level: Level) -> str:
    # Found by eye in a log without colours.
    return level.upper() if level is Level.PROBLEM else level.value


def _in_full(finding: Finding) -> str:
    parts = [finding.found]
    parts += [f"needed: {finding.needed}"] if finding.needed else []
    parts += [f"fix: {finding.fix}"] if finding.fix else []
    return "\n".join(parts)


def _summary(diagnosis: Diagnosis) -> tuple[str, str]:
    problems, notes = (_count(diagnosis, level) for level in (Level.PROBLEM, Level.NOTE))
    took = f"{diagnosis.seconds:.1f} s"
    if diagnosis.can_train:
        return f"No problem found, {notes}. {took}.", STYLES[Level.OK]
    cannot = f"training with profile {diagnosis.profile} cannot work, or not as meant"
    return f"{problems}, {notes}: {cannot}. {took}.", STYLES[Level.PROBLEM]


def _count(diagnosis: Diagnosis, level: Level) -> str:
    number = diagnosis.number(level)
    return f"{number} {level}{'' if number == 1 else 's'}"


def _line(console: Console, text: str, style: str | None) -> None:
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
