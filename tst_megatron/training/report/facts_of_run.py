"""Gather the facts of a run for its ``facts.json``, from its arguments and its built model.

And make a plan of them, for a run that nobody has planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from tst_megatron.data.stream.corpora import Corpus
from tst_megatron.megatron import loop, names, ranks
from tst_megatron.plan.cost.machine import gpu_named, machine_for, peak_teraflops
from tst_megatron.plan.cost.table import machine_values, tokens_by_phase
from tst_megatron.plan.published.read import published
from tst_megatron.plan.wishes import Hardware
from tst_megatron.schedule import Schedule


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
        "peak TFLOP/s per device": peak_teraflops(device),
    }


def plan_of_facts(
    schedule: Schedule, facts: Mapping[str, Any], *, is_moe: bool
) -> dict[str, Any] | None:
    """Make the part of a plan that a run is set beside, without memory.

    Args:
        schedule: of the run.
        facts: its ``facts.json``.
        is_moe: the model is a mixture of experts.

    Returns:
        None where the GPU or its price is not known.
    """
    known, name = published(), gpu_named(facts["device"])
    if name is None or known.gpus[name].price is None:
        return None
    hardware = Hardware(gpu=name, num_gpus=facts["world size"])
    active = facts["parameters"]["active"]
    machine = machine_for(known, hardware, active=active, is_moe=is_moe)
    flops = facts["FLOPs per step"] * schedule.num_steps
    this_run = {
        "name": "this run",
        "steps": schedule.num_steps,
        "flops": flops,
        "gpu hours": machine.hours(flops),
        "raw tokens by phase": tokens_by_phase(schedule),
    }
    return {
        "made": "by the run, at its first step",
        "cost": {**machine_values(machine), "this run": this_run},
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
        ``total``, ``active`` and ``embedding``, as ``facts.py`` says them.
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
