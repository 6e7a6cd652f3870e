"""Write ``facts.json``: what a comparison of runs must know of this one.

The first rank writes it at each start, before the first step. It is a record for readers: nothing
in it decides whether a run can start, and a damaged one is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from tst_megatron.data.stream.corpora import Corpus
from tst_megatron.megatron import loop, names, ranks
from tst_megatron.system.files import write_beside
from tst_megatron.system.records import Damaged, read_json

FACTS = "facts.json"
"""In a run folder; runs of earlier versions have none."""
FORMAT = 1

_KINDS = {"format": int, "stream": dict, "held-out": dict, "parameters": dict}


def read_facts(path: Path) -> dict[str, Any] | None:
    """Read a run's ``facts.json``; None if there is none.

    Raises:
        Damaged: it cannot be read, or is of a later version.
    """
    facts = read_json(path, _KINDS)
    if facts is not None and facts["format"] != FORMAT:
        raise Damaged(f"is of format {facts['format']}, and this version reads {FORMAT}")
    return facts


def write_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a run's ``facts.json``, replacing what is there.

    Raises:
        OSError: it cannot be written.
    """
    write_beside(path, json.dumps({"format": FORMAT, **facts}, indent=2) + "\n")


def facts_of_run(
    corpora: Sequence[Corpus],
    models: Sequence[Any],
    *,
    stream: Mapping[str, Any],
    device: str,
) -> dict[str, Any]:
    """Gather the facts; all ranks call this together, when the model is built.

    Args:
        corpora: of the run.
        models: this rank's chunks of the model.
        stream: what decides what a sample reads (``stream_facts``).
        device: the name of the accelerator.
    """
    args = names.get_args()
    return {
        "stream": dict(stream),
        "held-out": held_out_facts(corpora),
        "parameters": count_parameters(models),
        "FLOPs per step": loop.flops_per_step(args),
        "world size": args.world_size,
        "device": device,
    }


def held_out_facts(corpora: Sequence[Corpus]) -> dict[str, Any]:
    """Return what decides the held-out sequences of each text; nothing without evaluations."""
    args = names.get_args()
    if not args.eval_interval or not args.eval_iters:
        return {}
    return {
        name: {
            "sha256": [corpus.manifest.splits()[name].text_sha256 for corpus in corpora],
            "weights": [corpus.weight for corpus in corpora],
            "sequences": args.eval_iters * args.eval_global_batch_size,
            "latent positions": args.seq_length,
            "eod-mask-loss": bool(args.eod_mask_loss),
        }
        for name in corpora[0].manifest.splits()
        if name != "train"
    }


def count_parameters(models: Sequence[Any]) -> dict[str, int]:
    """Count the parameters of the model over all ranks, which call this together.

    Args:
        models: this rank's chunks.

    Returns:
        ``total``; ``active``, those that compute one position, among them the experts that it is
        routed to; ``embedding``, those of the tables of input and output, tied ones once.
    """
    args = names.get_args()
    share = Fraction(args.moe_router_topk, args.num_experts) if args.num_experts else Fraction(1)
    counts = {"total": Fraction(0), "active": Fraction(0), "embedding": Fraction(0)}
    for model in models:
        for name, parameter in model.named_parameters():
            own_name = _without_wrappers(name)
            is_expert = ".mlp.experts." in own_name
            num_holders = ranks.num_holders(parameter, is_expert=is_expert)
            count = Fraction(parameter.numel(), num_holders) if num_holders else Fraction(0)
            counts["total"] += count
            counts["active"] += count * (share if is_expert else 1)
            if own_name.startswith(("embedding.", "output_layer.")):
                counts["embedding"] += count
    sums = ranks.sum_over_all_ranks([float(count) for count in counts.values()])
    return {name: round(count) for name, count in zip(counts, sums, strict=True)}


def _without_wrappers(name: str) -> str:
    # One for data parallelism, and one for bf16.
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name
