"""Compare a model's scores with the baseline's, probe by probe."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tst_megatron.audit.items import Floats, Probe, Scores
from tst_megatron.audit.margins import NOISE_OF_A_MARGIN, UNITS, Margins
from tst_megatron.audit.results import Answer, Audited, Pairing
from tst_megatron.audit.statistics.bootstrap import Compared, compare
from tst_megatron.audit.statistics.verdict import Question, Verdict, is_above, verdicts
from tst_megatron.compare.results import Interval

ScoresOf = Mapping[str, Scores]
"""Suite -> scores of one model."""


def answers_of(
    model: str,
    scores: ScoresOf,
    baselines: Sequence[ScoresOf],
    probes: Sequence[Probe],
    margins: Margins,
    *,
    seed: int,
) -> list[Answer]:
    """Return what is found of one model on every probe.

    Args:
        model: its name.
        scores: of the model.
        baselines: of each seed of the baseline.
        probes: all of them, since the verdicts are corrected for their number.
        margins: stated before.
        seed: of the bootstrap.
    """
    found = {
        probe.name: compare(
            _sums(probe, scores),
            [_sums(probe, each) for each in baselines],
            probe.statistic,
            # Of its own, so that another probe changes nothing here.
            seed=zlib.crc32(f"{seed} {probe.name}".encode()),
            assumed_noise=NOISE_OF_A_MARGIN * margins.of(probe),
        )
        for probe in probes
    }
    is_able = {
        probe.name: is_above(probe.floor, found[probe.name])
        for probe in probes
        if probe.floor is not None
    }
    questions = {
        probe.name: Question(
            compared=found[probe.name],
            margin=margins.of(probe),
            is_higher_better=probe.is_higher_better,
            is_possible=_is_possible(probe, is_able),
        )
        for probe in probes
    }
    said = _without_empty_praise(verdicts(questions), probes, found)
    num_seeds = len(baselines)
    return [
        _answer(model, probe, found[probe.name], said[probe.name], margins.of(probe), num_seeds)
        for probe in probes
    ]


def _without_empty_praise(
    said: Mapping[str, Verdict], probes: Sequence[Probe], found: Mapping[str, Compared]
) -> dict[str, Verdict]:
    """Call a difference of two parts *not worse* instead of *better* where the other part lost.

    A slice is less the loss of all other tokens, and an edge effect is right answers across an edge
    less those inside a bag. Both look better where the other part alone has become worse.
    """
    is_behind = any(probe.kind == "loss" and found[probe.name].difference > 0 for probe in probes)
    slices = {probe.name for probe in probes if probe.kind == "slice"}
    effects = {probe.name: probe.rests_on[-1] for probe in probes if probe.rests_on}
    result = dict(said)
    for name, verdict in said.items():
        if verdict.word != "better":
            continue
        if is_behind and name in slices:
            result[name] = replace(verdict, word="not worse", reason="other tokens have lost more")
        elif name in effects and found[effects[name]].difference < 0:
            result[name] = replace(
                verdict, word="not worse", reason=f"{effects[name]} has become worse"
            )
    return result


def _sums(probe: Probe, scores: ScoresOf) -> Floats:
    return probe.reduce(scores[probe.suite])


def _is_possible(probe: Probe, is_able: Mapping[str, bool]) -> bool:
    if probe.rests_on:
        return any(is_able[name] for name in probe.rests_on)
    return is_able.get(probe.name, True)


def _answer(
    model: str,
    probe: Probe,
    compared: Compared,
    verdict: Verdict,
    margin: float,
    num_seeds: int,
) -> Answer:
    noise = f"measured over {num_seeds} seeds" if num_seeds > 1 else "assumed; one seed"
    return Answer(
        model=model,
        probe=probe.name,
        group=probe.group,
        aim=probe.aim,
        kind=probe.kind,
        unit=UNITS[probe.kind],
        is_higher_better=probe.is_higher_better,
        margin=margin,
        value=compared.one.value,
        baseline_value=compared.baseline.value,
        difference=Interval(
            value=compared.difference,
            low=verdict.low,
            high=verdict.high,
            method=f"paired bootstrap over {compared.num_clusters:,} {probe.clusters}, and noise "
            f"of a training ({noise})",
        ),
        p_value=verdict.p_value,
        run_noise=math.sqrt(compared.run_variance),
        verdict=verdict.word,
        reason=verdict.reason,
        clusters=probe.clusters,
        num_clusters=probe.num_clusters,
        num_tokens=probe.num_tokens,
        num_to_decide=verdict.num_to_decide,
    )


def pairing_of(baseline: Audited, model: Audited, most: float) -> Pairing:
    """Say whether two models are at equal loss, and what it means if they are not.

    Args:
        baseline: of the audit.
        model: that is compared with it.
        most: nats by which two models at equal loss may differ.
    """
    if baseline.loss is None or model.loss is None:
        sentence = (
            f"It is not known whether {model.name} and {baseline.name} are at equal loss. The "
            "better model wins most probes, and that hides what averaging cost. Give --text, or "
            "their losses (--loss)."
        )
        return Pairing(model=model.name, gap=None, is_equal=False, sentence=sentence)
    gap = model.loss - baseline.loss
    how = "on this text" if model.is_loss_measured else "as given"
    losses = f"{model.loss:.3f} against {baseline.loss:.3f} nats per token {how}"
    if abs(gap) <= most:
        sentence = (
            f"{model.name} and {baseline.name} are at equal loss: {losses}, which is within "
            f"{most:g} nats. A probe in which they differ shows where one of them has paid."
        )
        return Pairing(model=model.name, gap=gap, is_equal=True, sentence=sentence)
    better, worse = (baseline, model) if gap > 0 else (model, baseline)
    sentence = (
        f"{model.name} and {baseline.name} are not at equal loss: {losses}, more than {most:g} "
        f"nats apart. {better.name} is the better model and wins many probes for that alone, so a "
        f"verdict here does not show what averaging cost, or hides it. Compare {worse.name} with "
        "a model of its own loss: a longer or a shorter baseline."
    )
    return Pairing(model=model.name, gap=gap, is_equal=False, sentence=sentence)
