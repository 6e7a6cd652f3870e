"""Find baselines that differ from the baseline in their length alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from tst_megatron.compare.arms import has_superposition
from tst_megatron.compare.comparability.settings import LENGTH, about, deciding_values
from tst_megatron.compare.pairs.ends import Runs, final_step, is_finished, knows_its_end
from tst_megatron.compare.results import RecordedRun

_FOLLOWS_LENGTH = re.compile(r"lr-.*(iters|samples|fraction)")
"""Keys of the learning rate that say how long its parts are."""
_SAME = ("stream", "held-out", "tokenizer")


def other_lengths(arms: Mapping[str, Runs], baseline: str) -> list[str]:
    """Return the arms that are the baseline at several lengths, shortest first, itself among them.

    Args:
        arms: name -> runs.
        baseline: name of an arm.

    Returns:
        Nothing, unless there are two lengths or more, all finished.
    """
    meant = _but_for_length(arms[baseline][0])
    alike = [
        name
        for name, runs in arms.items()
        if not has_superposition(runs[0])
        and all(knows_its_end(run) and is_finished(run) for run in runs)
        and final_step(runs) is not None
        and _but_for_length(runs[0]) == meant
    ]
    if baseline not in alike:
        return []
    by_length = {arms[name][0].num_steps: name for name in [*alike, baseline]}
    if len(by_length) < 2:
        return []
    return [by_length[steps] for steps in sorted(by_length)]


def _but_for_length(run: RecordedRun) -> list[object]:
    values = {
        key: value
        for key, value in deciding_values(run).items()
        if about(key) != LENGTH and not _FOLLOWS_LENGTH.fullmatch(key)
    }
    facts = [run.facts.get(name) for name in _SAME]
    stream = facts[0]
    if isinstance(stream, Mapping):
        facts[0] = {k: v for k, v in stream.items() if k not in ("phases", "seed")}
    return [values, *facts]


def mean_at_end(runs: Runs) -> tuple[int, float]:
    """Return the last common evaluation of an arm's runs and their mean loss there."""
    step = final_step(runs)
    assert step is not None, "arms without a common evaluation are no length"
    losses = [run.validation.values[run.validation.steps == step][0] for run in runs]
    return step, float(np.mean(losses))
