"""What an audit says in sentences: first what is worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tst_megatron.audit.results import Answer, Audit
from tst_megatron.audit.statistics.verdict import ALPHA, Word
from tst_megatron.compare.report.words import counted, joined, shown

ORDER: Sequence[Word] = ("worse", "cannot tell", "not worse", "better")
"""Of the verdicts: what a sceptic asks for comes first."""
SIGNS = {"worse": "\u25bc", "cannot tell": "?", "not worse": "=", "better": "\u25b2"}
"""Of each verdict; it does not need a colour."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """One verdict, with all probes that have it."""

    model: str
    word: Word
    sign: str
    sentence: str


def title(audit: Audit) -> str:
    """Return the audit in a line."""
    return f"Audit of {joined(map(shown, audit.compared))} against {shown(audit.baseline)}"


def subtitle(audit: Audit) -> str:
    """Return what was asked, in a line."""
    text = "no held-out text" if audit.text is None else f"held-out text {shown(audit.text)}"
    seeds = counted(audit.num_baseline_seeds, "seed")
    return (
        f"{counted(len(_probes(audit)), 'probe')}, {text}, contexts of {audit.num_positions:,} "
        f"tokens, bags of {audit.bag_size} ({shown(audit.bag_size_source)}), {seeds} of the "
        "baseline"
    )


def _probes(audit: Audit) -> list[str]:
    return list(dict.fromkeys(answer.probe for answer in audit.answers))


def verdicts(audit: Audit) -> list[Said]:
    """Return the verdicts of each model, what is worse first."""
    return [
        Said(model=model, word=word, sign=SIGNS[word], sentence=_sentence(audit, model, word))
        for model in audit.compared
        for word in ORDER
        if word == "worse" or _with(audit, model, word)
    ]


def _with(audit: Audit, model: str, word: Word) -> list[Answer]:
    return [each for each in audit.answers if each.model == model and each.verdict == word]


def _sentence(audit: Audit, model: str, word: Word) -> str:
    found = _with(audit, model, word)
    total = sum(each.model == model for each in audit.answers)
    if not found:
        return f"{shown(model)} is found worse in none of {counted(total, 'probe')}."
    said = {
        "worse": f"{shown(model)} is worse in",
        "cannot tell": "It cannot be told in",
        "not worse": f"{shown(model)} is not worse, by the margin stated before, in",
        "better": f"{shown(model)} is better in",
    }[word]
    return f"{said} {len(found)} of {counted(total, 'probe')}: {_named(found)}."


def _named(answers: Sequence[Answer]) -> str:
    """Return the names of probes; parts of one task together."""
    tasks: dict[str, list[str]] = {}
    for answer in answers:
        task, _, part = answer.probe.partition(", ")
        tasks.setdefault(task, []).append(part)
    return "; ".join(
        f"{task} ({', '.join(filter(None, parts))})" if any(parts) else task
        for task, parts in tasks.items()
    )


def caution(audit: Audit) -> str:
    """Return what a reader must know first where the baseline has one seed; else nothing."""
    if audit.num_baseline_seeds > 1:
        return ""
    return (
        "One seed of the baseline: a verdict is on these models, and not on how they were trained, "
        "since two seeds of one recipe may differ by as much. Give other seeds with "
        "--baseline-seed, which measure that."
    )


def how_to_read(audit: Audit) -> list[str]:
    """Return what the words and numbers mean."""
    noise = (
        f"measured over {audit.num_baseline_seeds} seeds of the baseline"
        if audit.num_baseline_seeds > 1
        else "assumed to be a quarter of the margin, since one seed of the baseline was given"
    )
    return [
        "Worse: the difference is not chance (at most "
        f"{ALPHA:.0%} of audits of two alike models have any such verdict, by Holm's correction "
        "over all probes, if seeds measure the noise), and it is not certain to be smaller than "
        "the margin. Better: likewise to the good side.",
        "Not worse: the 95% interval of the difference ends before the margin. It may still be a "
        "little worse.",
        "Cannot tell: neither. The last column says how many items would decide if the estimate "
        "stayed as it is. Where no model is better than guessing, a probe says nothing.",
        "Differences are the model's number less the baseline's. Intervals are for one probe, "
        "from a paired bootstrap over documents or items. They hold the noise from one training "
        f"to another, which is {noise}.",
        "A slice of text is its loss less that of all other tokens. Slices, gains and windows are "
        "read at each model's own best temperature, so that poor calibration does not look like "
        "lost memory. All text and calibration are read as the model is.",
        "Positions are counted from the start of what a model reads. In such a reading a token's "
        "place in its bag is the one that training would have given it.",
    ]
