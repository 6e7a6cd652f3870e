"""The tables of an audit: models, and one for each group of probes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tst_megatron.audit.report.story import SIGNS
from tst_megatron.audit.results import Answer, Audit
from tst_megatron.compare.report.cells import Cell, Column, Sheet, count, decimal, estimate, named
from tst_megatron.compare.report.words import shown

DIGITS = 3
MOST_SHOWN = 10_000_000
"""Items that would decide: beyond, it is said that there are too many."""

_FULL = ("Verdict", "Unit", "Baseline", "Model", "Difference", "Margin", "Items", "Would decide")
_SHORT = ("Verdict", "Baseline", "Model", "Difference", "Margin", "Would decide")
"""The columns of a terminal."""
_NUMBERS = {
    "Baseline": "in its unit",
    "Model": "in its unit",
    "Difference": "95% interval",
    "Margin": "in its unit",
    "Items": "or documents",
    "Would decide": "items",
}


def sheets(audit: Audit, *, is_short: bool = False) -> list[Sheet]:
    """Return all tables.

    Args:
        audit: what was found.
        is_short: for a terminal, whose lines are short.
    """
    groups = dict.fromkeys((answer.model, answer.group) for answer in audit.answers)
    return [
        _models(audit),
        *(_group(audit, model, group, is_short=is_short) for model, group in groups),
    ]


def _models(audit: Audit) -> Sheet:
    return Sheet(
        name="models",
        caption="The models",
        columns=[
            Column(head="Model"),
            Column(head="Is"),
            Column(head="Loss", unit="nats per token"),
            Column(head="Best temperature", unit="1 is as trained"),
        ],
        rows=[
            [
                named(model.name),
                Cell(_role(audit, at)),
                decimal(math.nan if model.loss is None else model.loss, DIGITS),
                decimal(model.temperature, DIGITS),
            ]
            for at, model in enumerate(audit.models)
        ],
    )


def _role(audit: Audit, number: int) -> str:
    if number == 0:
        return "the baseline"
    return "another seed of it" if number < audit.num_baseline_seeds else "compared with it"


def _group(audit: Audit, model: str, group: str, *, is_short: bool) -> Sheet:
    answers = [each for each in audit.answers if (each.model, each.group) == (model, group)]
    of_model = f": {shown(model)}" if len(audit.compared) > 1 else ""
    heads = _SHORT if is_short else _FULL
    return Sheet(
        name=f"{audit.compared.index(model) + 1}-{group.lower().replace(' ', '-')}",
        caption=f"{group}{of_model}",
        columns=[
            Column(head="Probe"),
            *(Column(head=head, unit=_NUMBERS.get(head, "")) for head in heads),
        ],
        rows=[_row(answer, heads, is_short=is_short) for answer in answers],
    )


def _row(answer: Answer, heads: Sequence[str], *, is_short: bool) -> list[Cell]:
    better = "higher is better" if answer.is_higher_better else "lower is better"
    cells = {
        "Verdict": Cell(f"{SIGNS[answer.verdict]} {answer.verdict}", answer.reason),
        "Unit": Cell(answer.unit, better),
        "Baseline": decimal(answer.baseline_value, DIGITS),
        "Model": decimal(answer.value, DIGITS),
        "Difference": estimate(answer.difference, DIGITS, has_sign=True),
        "Margin": Cell(f"{answer.margin:g}", is_number=True),
        "Items": count(answer.num_clusters),
        "Would decide": Cell(_needed(answer.num_to_decide)),
    }
    aim = "" if is_short else f"{answer.aim[:1].upper()}{answer.aim[1:]}."
    return [Cell(answer.probe, aim), *(cells[head] for head in heads)]


def _needed(number: float | None) -> str:
    if number is None:
        return ""
    if math.isinf(number):
        return "none"
    if number > MOST_SHOWN:
        return "too many"
    # The estimate itself is not known to more than two digits.
    return f"{float(f'{number:.2g}'):,.0f}"
