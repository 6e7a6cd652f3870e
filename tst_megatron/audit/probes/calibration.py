"""Calibration: does a model know what it does not know?"""

from __future__ import annotations

import random

import numpy as np

from tst_megatron.audit.items import (
    Catalogue,
    Floats,
    Kind,
    LeftOut,
    Passage,
    Probe,
    Reduce,
    Scores,
    Statistic,
    Suite,
)
from tst_megatron.audit.probes import measures, natural
from tst_megatron.audit.probes.encoding import Encoder
from tst_megatron.audit.probes.forms import no_answer
from tst_megatron.audit.probes.natural import Labels, clusters_of
from tst_megatron.audit.statistics.bootstrap import FEWEST_CLUSTERS

SUITE = "no-answer"
GROUP = "Calibration"


def _lead_if_wrong(scores: Scores) -> Floats:
    return np.where(scores.is_top, 0.0, scores.lead)


def calibration(labels: Labels) -> Catalogue:
    """Make the probes of calibration on natural text.

    Args:
        labels: of the scored tokens of the natural suite.
    """
    clusters, unit = clusters_of(labels)
    everywhere = np.ones(len(clusters), dtype=np.bool_)
    found: list[tuple[str, str, Kind, tuple[Reduce, Statistic]]] = [
        (
            "ECE",
            "distance of the likeliest token's probability from its share of hits, in 15 bins",
            "calibration",
            measures.calibration_error(clusters),
        ),
        (
            "Brier score",
            "squared distance of all probabilities from what stands there",
            "calibration",
            measures.mean_over(clusters, measures.brier, everywhere),
        ),
        (
            "entropy against loss",
            "distance of the mean entropy from the mean loss, which are equal if calibrated",
            "entropy",
            measures.entropy_gap(clusters),
        ),
        (
            "lead where wrong",
            "by how much the likeliest token leads where it is wrong, over all tokens",
            "probability",
            measures.mean_over(clusters, _lead_if_wrong, everywhere),
        ),
    ]
    return Catalogue(
        probes=[
            Probe(
                name=name,
                suite=natural.SUITE,
                group=GROUP,
                aim=aim,
                kind=kind,
                is_higher_better=False,
                clusters=unit,
                num_clusters=len(np.unique(clusters)),
                num_tokens=len(clusters),
                reduce=parts[0],
                statistic=parts[1],
            )
            for name, aim, kind, parts in found
        ]
    )


def confidence_without_answer(encoder: Encoder, *, num_items: int, seed: int) -> Catalogue:
    """Make the probe of questions that the context does not answer."""
    generator = random.Random(f"{seed} no answer")
    drawn: dict[bytes, Passage] = {}
    for _ in range(num_items):
        if passage := no_answer(encoder, generator):
            drawn.setdefault(passage.ids.tobytes(), passage)
    name = "confidence without answer"
    if len(drawn) < FEWEST_CLUSTERS:
        reason = f"its items do not fit into {encoder.num_positions:,} positions"
        return Catalogue(left_out=[LeftOut(name=name, reason=reason)])
    reduce, statistic = measures.mean_over(np.arange(len(drawn)), lambda scores: scores.top)
    probe = Probe(
        name=name,
        suite=SUITE,
        group=GROUP,
        aim="probability of the likeliest token where the context holds no answer",
        kind="probability",
        is_higher_better=False,
        clusters="items",
        num_clusters=len(drawn),
        num_tokens=len(drawn),
        reduce=reduce,
        statistic=statistic,
    )
    suite = Suite(name=SUITE, passages=list(drawn.values()), seed=seed)
    return Catalogue(suites=[suite], probes=[probe])
