"""Compare two models by the questions that one has answered right and the other has not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tst_megatron.compare.results import Interval
from tst_megatron.compare.statistics.student import CONFIDENCE, t_quantile


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """The answers of two models to the same questions."""

    num_questions: int
    num_right: tuple[int, int]
    only_right: tuple[int, int]
    """Questions that the first alone has answered right, and the second alone."""
    difference: Interval
    """Share of right answers of the first less that of the second."""
    p_value: float


def compare_answers(one: str, other: str) -> Paired:
    """Return the difference between two models, with its interval and McNemar's exact test.

    The interval is Wald's for paired shares, with half a question added to each of the four kinds
    (Agresti and Min, Statistics in Medicine 24 (2005)).

    Args:
        one: a ``0`` or ``1`` for each question.
        other: likewise, of the same questions.
    """
    pairs = list(zip(one, other, strict=True))
    first = sum(pair == ("1", "0") for pair in pairs)
    second = sum(pair == ("0", "1") for pair in pairs)
    number = len(pairs)
    more = number + 2
    middle = (first - second) / more
    variance = (first + second + 1 - (first - second) ** 2 / more) / more**2
    half = t_quantile(0.5 + CONFIDENCE / 2, math.inf) * math.sqrt(max(0.0, variance))
    value = (first - second) / number
    return Paired(
        num_questions=number,
        num_right=(one.count("1"), other.count("1")),
        only_right=(first, second),
        difference=Interval(
            value=value,
            low=max(-1.0, min(value, middle - half)),
            high=min(1.0, max(value, middle + half)),
            method=f"{number:,} questions, paired",
        ),
        p_value=mcnemar(first, second),
    )


def mcnemar(first: int, second: int) -> float:
    """Return the two-sided p of McNemar's exact test.

    Args:
        first: questions that only the first has answered right.
        second: that only the second has.
    """
    number = first + second
    logs = [
        math.lgamma(number + 1) - math.lgamma(k + 1) - math.lgamma(number - k + 1)
        for k in range(min(first, second) + 1)
    ]
    tail = math.fsum(math.exp(each - number * math.log(2)) for each in logs)
    return min(1.0, 2 * tail)
