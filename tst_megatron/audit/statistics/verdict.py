"""Say better, not worse, worse, or cannot tell, and how many items would decide.

A probe's *harm* is its difference turned so that above 0 is worse. The margin is the largest harm
that is accepted; it is stated before the models are looked at.

- *worse*: harm is above 0 by Holm's correction over all probes of the model, and the interval does
  not lie inside the margin.
- *better*: harm is below 0 by the same correction.
- *not worse*: the 95% interval of the harm ends below the margin. It may be above 0.
- *cannot tell*: none of these; or neither model does better than one that cannot do the task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tst_megatron.audit.statistics.bootstrap import FEWEST_CLUSTERS, Compared
from tst_megatron.compare.statistics.student import CONFIDENCE, t_quantile

ALPHA = 1 - CONFIDENCE
"""Rate of false alarms: the share of audits of two alike models with any better or worse."""

GUESSING = "no model here is better than guessing"

Word = Literal["better", "not worse", "worse", "cannot tell"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What is said of a model on one probe."""

    word: Word
    low: float
    high: float
    """95% interval of the difference, for this probe alone."""
    p_value: float
    """Two-sided, of no difference, corrected for all probes of the model."""
    num_to_decide: float | None
    """Clusters that would decide if the estimate stayed; infinite where no number does."""
    reason: str
    """Why it cannot be told; else empty."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    found, highest = [1.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        found[at] = highest
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One probe of one model, with what a verdict on it needs."""

    compared: Compared
    margin: float
    is_higher_better: bool
    is_possible: bool = True
    """Whether the model or the baseline does better than one that cannot do the task."""


def verdicts(questions: Mapping[str, Question]) -> dict[str, Verdict]:
    """Return a verdict for each probe of one model, corrected for their number.

    Args:
        questions: by the name of the probe.
    """
    corrected = holm([each.compared.p_value for each in questions.values()])
    return {
        name: _verdict(question, p_value)
        for (name, question), p_value in zip(questions.items(), corrected, strict=True)
    }


def _verdict(question: Question, p_value: float) -> Verdict:
    compared, margin = question.compared, question.margin
    half = t_quantile(0.5 + CONFIDENCE / 2, compared.freedom) * compared.error
    low, high = compared.difference - half, compared.difference + half
    harm = -compared.difference if question.is_higher_better else compared.difference
    reason, num_to_decide = "", None
    is_found = p_value < ALPHA
    if compared.num_clusters < FEWEST_CLUSTERS or not math.isfinite(half):
        word: Word = "cannot tell"
        reason = f"fewer than {FEWEST_CLUSTERS} items"
        num_to_decide = float(FEWEST_CLUSTERS)
    elif is_found and harm < 0:
        word = "better"
    elif is_found and harm + half >= margin:
        word = "worse"
    elif not question.is_possible:
        word, reason = "cannot tell", GUESSING
        num_to_decide = math.inf
    elif harm + half < margin:
        word = "not worse"
    else:
        word, reason = "cannot tell", "the interval holds both 0 and the margin"
        if harm - half > 0:
            reason = "above 0, but not after correction for all probes"
        num_to_decide = _num_to_decide(compared, abs(margin - harm))
        if math.isinf(num_to_decide):
            reason = "more items do not help: the noise of a training is too large. Add seeds"
    return Verdict(
        word=word,
        low=low,
        high=high,
        p_value=p_value,
        num_to_decide=num_to_decide,
        reason=reason,
    )


def is_above(floor: float | None, compared: Compared) -> bool:
    """Tell whether a model or the baseline is above a floor with 97.5% confidence."""
    if floor is None:
        return True
    quantile = t_quantile(0.5 + CONFIDENCE / 2, math.inf)
    return any(
        each.value - quantile * each.error > floor for each in (compared.one, compared.baseline)
    )


def _num_to_decide(compared: Compared, distance: float) -> float:
    """Return the clusters for which the interval no longer reaches from the estimate to the margin.

    The noise of a training does not shrink with more items.
    """
    quantile = t_quantile(0.5 + CONFIDENCE / 2, compared.freedom)
    allowed = (distance / quantile) ** 2 - compared.run_variance
    if allowed <= 0:
        return math.inf
    return math.ceil(compared.num_clusters * compared.item_variance / allowed)
