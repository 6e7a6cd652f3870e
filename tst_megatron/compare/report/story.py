"""What a comparison says in sentences: the verdicts, what is the same, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tst_megatron.compare.report.words import counted, joined, shown
from tst_megatron.compare.results import Comparison, Difference

VERDICTS = {
    "better": ("better", "▲"),
    "worse": ("worse", "▼"),
    "no difference found": ("no difference found", "="),
    "says nothing": ("says nothing yet", "?"),
}
"""What a verdict is called, and its sign, which does not need a colour."""

GRAVITIES = {
    "forbids": "forbids a comparison of losses",
    "matters": "matters for the conclusion",
    "expected": "is what is compared",
}
"""What each gravity means, the gravest first."""

_OF_SEVERAL = {
    "forbids": "forbid a comparison of losses",
    "matters": "matter for the conclusion",
    "expected": "are what is compared",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One arm's verdict as it is shown."""

    arm: str
    kind: str
    """As ``Pair.verdict``."""
    word: str
    sign: str
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """One difference as it is shown."""

    what: str
    gravity: str
    """As ``Difference.gravity``."""
    means: str
    values: Sequence[tuple[str, str]]
    """(arms, their value)."""


def title(comparison: Comparison) -> str:
    """Return the comparison in a line, such as ``tst against baseline``."""
    others = [shown(arm.name) for arm in comparison.arms if arm.name != comparison.baseline]
    if not others:
        return f"{shown(comparison.baseline)}, alone"
    if len(others) > 3:
        return f"{counted(len(others), 'arm')} against {shown(comparison.baseline)}"
    return f"{joined(others)} against {shown(comparison.baseline)}"


def verdicts(comparison: Comparison) -> list[Verdict]:
    """Return one verdict for each arm but the baseline; for one arm alone, that it is alone."""
    found = []
    for pair in comparison.pairs:
        word, sign = VERDICTS[pair.verdict]
        found.append(
            Verdict(
                arm=pair.arm,
                kind=pair.verdict,
                word=word,
                sign=sign,
                sentence=shown(pair.sentence),
            )
        )
    if found:
        return found
    word, sign = VERDICTS["says nothing"]
    said = (
        f"{shown(comparison.baseline)} is the only arm, so there is nothing to compare it with. "
        "Name a run of another arm too."
    )
    return [
        Verdict(arm=comparison.baseline, kind="says nothing", word=word, sign=sign, sentence=said)
    ]


def shared(comparison: Comparison) -> list[str]:
    """Return what the runs are shown to share, a sentence for each way in which it is known."""
    whats_of: dict[str, list[str]] = {}
    for what, how in comparison.same.items():
        whats_of.setdefault(shown(how), []).append(shown(what))
    said = [f"The same {joined(whats)}: yes ({how})." for how, whats in whats_of.items()]
    if said or num_runs(comparison) < 2:
        return said
    return ["Nothing was shown to be the same in all runs: too little is recorded."]


def differences(comparison: Comparison) -> list[Said]:
    """Return what differs, the gravest first; arms with the same value stand together."""
    order = list(GRAVITIES)
    found = sorted(comparison.differences, key=lambda each: order.index(each.gravity))
    return [_said(each) for each in found]


def _said(difference: Difference) -> Said:
    arms_of: dict[str, list[str]] = {}
    for arm, value in difference.values.items():
        arms_of.setdefault(value, []).append(shown(arm))
    return Said(
        what=shown(difference.what),
        gravity=difference.gravity,
        means=shown(difference.meaning),
        values=[(joined(arms), shown(value)) for value, arms in arms_of.items()],
    )


def difference_summary(comparison: Comparison) -> str:
    """Return in a sentence how much differs, and how grave that is."""
    found = differences(comparison)
    if not found:
        return "No difference between the arms was found."
    if len(found) == 1:
        return f"One difference: it {GRAVITIES[found[0].gravity]}."
    counts = []
    for gravity, means in GRAVITIES.items():
        if number := sum(each.gravity == gravity for each in found):
            counts.append(f"{number} {means if number == 1 else _OF_SEVERAL[gravity]}")
    return f"{len(found)} differences: {joined(counts)}."


def num_runs(comparison: Comparison) -> int:
    """Return how many runs there are in all arms."""
    return sum(len(arm.runs) for arm in comparison.arms)


def subtitle(comparison: Comparison) -> str:
    """Return how many arms and runs there are, and what they are compared with."""
    arms, runs = counted(len(comparison.arms), "arm"), counted(num_runs(comparison), "run")
    if not comparison.pairs:
        return f"{arms}, {runs}."
    return f"{arms}, {runs}; each arm is compared with {shown(comparison.baseline)}."
