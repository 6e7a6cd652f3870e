"""The tables of an audit: models, and one for each group of probes."""

from __future__ import annotations

import math

from tst_megatron.audit.report.story import SIGNS
from tst_megatron.audit.results import Answer, Audit
from tst_megatron.audit.statistics.verdict import GUESSING
from tst_megatron.compare.report.cells import Cell, Column, Sheet, count, decimal, estimate, named
from tst_megatron.compare.report.words import shown

DIGITS = 3
MOST_SHOWN = 10_000_000
"""Items that would decide: beyond, it is said that there are too many."""

COLUMNS = (
    Column(head="Probe"),
    Column(head="Verdict"),
    Column(head="Difference", unit="95% interval"),
    Column(head="Margin", unit="in its unit"),
    Column(head="Unit"),
    Column(head="Baseline", unit="in its unit"),
    Column(head="Model", unit="in its unit"),
    Column(head="Items", unit="or documents"),
    Column(head="Would decide", unit="items"),
)


def sheets(audit: Audit) -> list[Sheet]:
    """Return all tables: the models, and one for each model and group of probes."""
    groups = dict.fromkeys((answer.model, answer.group) for answer in audit.answers)
    return [_models(audit), *(_group(audit, model, group) for model, group in groups)]


def _models(audit: Audit) -> Sheet:
    return Sheet(
        name="models",
        caption="What each model is",
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


def caption(audit: Audit, model: str, group: str) -> str:
    """Return what heads a table of probes."""
    return f"{group}: {shown(model)}" if len(audit.compared) > 1 else group


def _group(audit: Audit, model: str, group: str) -> Sheet:
    answers = [each for each in audit.answers if (each.model, each.group) == (model, group)]
    return Sheet(
        name=f"{audit.compared.index(model) + 1}-{group.lower().replace(' ', '-')}",
        caption=caption(audit, model, group),
        columns=COLUMNS,
        rows=[_row(answer) for answer in answers],
    )


def _row(answer: Answer) -> list[Cell]:
    better = "higher is better" if answer.is_higher_better else "lower is better"
    verdict = f"{SIGNS[answer.verdict]} {answer.verdict}".replace(" ", "\u00a0")
    return [
        Cell(answer.probe, f"{answer.aim[:1].upper()}{answer.aim[1:]}."),
        Cell(verdict, answer.reason),
        estimate(answer.difference, DIGITS, has_sign=True),
        Cell(f"{answer.margin:g}", is_number=True),
        Cell(answer.unit, better),
        decimal(answer.baseline_value, DIGITS),
        decimal(answer.value, DIGITS),
        count(answer.num_clusters),
        Cell(needed(answer)),
    ]


def needed(answer: Answer) -> str:
    """Return how many items would decide, or what else would."""
    number = answer.num_to_decide
    if number is None:
        return ""
    if answer.reason == GUESSING:
        return "guessing"
    if math.isinf(number):
        return "more seeds"
    if number > MOST_SHOWN:
        return "too many"
    # The estimate itself is not known to more than two digits.
    return f"{float(f'{number:.2g}'):,.0f}"
