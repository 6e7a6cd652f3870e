"""Describe the token stream for a checkpoint, so that a resumed run can compare its own with it.

The position in the stream is arithmetic on the step, so the cursor moves nothing. It proves that a
resumed run reads the same stream as the run before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tst_megatron.data.stream.corpora import Corpus
    from tst_megatron.data.stream.plan import StreamPlan

ORDER_VERSION = 2
"""Raised by any change of this code after which a sample number means other text.

Version 1 shuffled together no more than what a phase took, so its length decided the order.
"""


def stream_facts(plan: StreamPlan, corpora: Sequence[Corpus]) -> dict[str, Any]:
    """Return everything that decides what a sample reads, as plain values."""
    schedule = plan.schedule
    facts: dict[str, Any] = {
        "order version": ORDER_VERSION,
        "seed": plan.seed,
        "seq-length": schedule.num_latent_positions,
        "tst.stream-unit-bags": plan.unit_chunks,
        "global-batch-size": schedule.global_batch_size,
        "phases": [[phase.bag_size, phase.num_steps] for phase in schedule.phases],
        "tst.inputs": schedule.phases[0].inputs,
        "tst.targets": schedule.phases[0].targets,
        "tokenizer": corpora[0].manifest.tokenizer.sha256,
        "number of corpora": len(corpora),
    }
    for number, corpus in enumerate(corpora, start=1):
        facts |= {
            f"weight of corpus {number}": corpus.weight,
            f"train.bin of corpus {number}": corpus.manifest.train.bin_fingerprint,
            f"train.idx of corpus {number}": corpus.manifest.train.idx_fingerprint,
        }
    return facts


def cursor(plan: StreamPlan, step: int) -> dict[str, Any]:
    """Return the position in the stream after ``step`` steps, as plain values."""
    schedule = plan.schedule
    phase = next(
        (number for number, phase in enumerate(schedule.phases) if step < phase.last_step),
        len(schedule.phases) - 1,
    )
    return {
        "step": step,
        "phase": phase,
        "samples": step * schedule.global_batch_size,
        "raw tokens": schedule.raw_tokens_before(step),
        "chunks of corpora": plan.chunks_before(step),
    }


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List what differs between a checkpoint's facts or cursor and this run's."""
    return [
        _other_version(saved, now)
        if key == "order version"
        else f"{key}: the checkpoint was trained with {shown(saved, key)}, and this run has "
        f"{shown(now, key)}"
        for key in dict.fromkeys([*saved, *now])
        if saved.get(key) != now.get(key)
    ]


def _other_version(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    key = "order version"
    is_later = saved.get(key, 0) > now.get(key, 0)
    return (
        f"{key}: the run was begun with {'a later' if is_later else 'an earlier'} version of "
        f"tst-megatron, which reads the text in another order ({shown(saved, key)}, and this "
        f"version has {shown(now, key)}). Finish the run with that version of tst-megatron"
    )


def shown(values: Mapping[str, Any], key: str) -> str:
    """Return a value as a message shows it, also where there is none."""
    return repr(values[key]) if key in values else "nothing"
