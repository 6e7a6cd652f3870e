"""Write the README.md of an exported model: its training, as far as its checkpoint says."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from tst_megatron import __version__
from tst_megatron.checkpoint.reader.open import Checkpoint
from tst_megatron.hf.verify import VerificationReport

_PACKAGES = ("megatron-core", "torch", "transformers")


def model_card(
    opened: Checkpoint,
    config: Mapping[str, Any],
    *,
    num_parameters: int,
    verification: VerificationReport | None,
) -> str:
    """Return the text of a model card in Markdown, with the header that the hub reads.

    Args:
        opened: the checkpoint of the model.
        config: its config.json.
        num_parameters: tied tables counted once.
        verification: what was proven of the export, if anything.
    """
    versions = {"tst-megatron": __version__, **{name: version(name) for name in _PACKAGES}}
    facts = {
        "Architecture": f"{config['architectures'][0]}, {num_parameters:,} parameters",
        "Optimizer steps": f"{opened.iteration:,}",
        **_training_facts(opened),
        "Exported with": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "Proven": _proven(verification),
    }
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "---", ""]
    lines += ["# A base model trained with tst_megatron", ""]
    lines += ["| fact | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    return "\n".join(lines) + "\n"


def _training_facts(opened: Checkpoint) -> dict[str, str]:
    args = opened.args
    tst = getattr(args, "tst", None)
    if not tst or "phases" not in tst:
        return {"Training": "unknown: the checkpoint does not say (an imported model, for example)"}
    facts = {"Training": _phases(args, tst)}
    if cursor := tst.get("cursor"):
        facts["Raw tokens read"] = f"{cursor['raw tokens']:,}"
    facts |= {
        "Sequence": f"{args.seq_length:,} latent positions, global batch {args.global_batch_size}",
        "Optimizer": f"{args.optimizer}, learning rate {args.lr:g} ({args.lr_decay_style}), "
        f"weight decay {args.weight_decay:g}, beta {args.adam_beta1:g} and {args.adam_beta2:g}",
        "Trained in": str(args.params_dtype).removeprefix("torch.")
        + (f", fp8 {args.fp8} ({args.fp8_recipe})" if getattr(args, "fp8", None) else ""),
    }
    switches = {
        key: tst[key]
        for key, usual in (("inputs", "bags"), ("targets", "bags"), ("slot-weights", "uniform"))
        if tst.get(key, usual) != usual
    }
    if switches:
        facts["Ablation"] = ", ".join(f"tst.{key} {value}" for key, value in switches.items())
    return facts


def _phases(args: argparse.Namespace, tst: Mapping[str, Any]) -> str:
    """Describe all phases of the run, K and r among them."""
    parts = []
    for bag_size, num_steps in tst["phases"]:
        raw = num_steps * args.global_batch_size * args.seq_length * bag_size
        kind = "superposition" if bag_size > 1 else "next token"
        parts.append(f"{kind}, K = {bag_size}: {num_steps:,} steps, {raw:,} raw tokens")
    total = sum(num_steps for _, num_steps in tst["phases"])
    in_bags = sum(num_steps for bag_size, num_steps in tst["phases"] if bag_size > 1)
    return "; ".join(parts) + f" (r = {in_bags / total:.4g} of {total:,} steps)"


def _proven(verification: VerificationReport | None) -> str:
    if verification is None:
        return "nothing: the export was not verified"
    weights = f"{verification.num_tensors:,} tensors bit for bit those of the checkpoint"
    computed = verification.computed
    if computed is None:
        return f"{weights}; {verification.reason}"
    return (
        f"{weights}; logits within {computed.max_logit_difference:.1e} of Megatron's in float32, "
        f"{computed.num_greedy_tokens} greedy tokens the same"
    )
