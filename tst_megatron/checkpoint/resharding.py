"""Decide whether a run that was started in one parallel layout can resume in another.

Weights load into any layout. The optimizer's state does where it was saved in a format that can:

=================================  ==============================  ===========================
saved with                         loads into other                and not into other
=================================  ==============================  ===========================
no ``use-distributed-optimizer``   sizes of every kind             expert-parallel size 1 from
                                                                   above 1, and back
``use-distributed-optimizer``      data-parallel sizes             tensor-, pipeline-, expert-
                                                                   parallel sizes, stages and
                                                                   gradient buckets
the same, with ``dist-ckpt-        sizes of every kind
optim-fully-reshardable``
=================================  ==============================  ===========================

What counts is how the newest checkpoint was saved, which it says itself: its arguments and its
content metadata. The recipe in the run folder may be of a start that saved nothing.

Nothing here needs Megatron: the arguments are its own namespaces, read by name.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from tst_megatron.recipe.keys.kinds import SIZE_KEYS, TRANSPORT_KEYS
from tst_megatron.recipe.keys.table import destination_of

FULLY_RESHARDABLE = "fully_reshardable"
"""Megatron's name of the format that loads into any layout."""

KEY = "dist-ckpt-optim-fully-reshardable"


def layout_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the layout that validated arguments describe, as plain values by recipe key.

    Args:
        args: of a job that is to start, or of one that saved a checkpoint.
    """
    layout: dict[str, Any] = {"number of ranks": args.world_size}
    for key in (*SIZE_KEYS, *TRANSPORT_KEYS):
        value = getattr(args, destination_of(key), None)
        # A layout of stages is an object by now.
        is_plain = value is None or isinstance(value, bool | int | float | str | list | tuple)
        layout[key] = value if is_plain else str(value)
    return layout


def changes(saved: argparse.Namespace, now: argparse.Namespace) -> list[str]:
    """List what of the layout differs, ``key old -> new`` each; nothing where it is the same."""
    before, after = layout_of(saved), layout_of(now)
    return [f"{key} {before[key]} -> {after[key]}" for key in after if before[key] != after[key]]


def reshard_problems(
    saved: argparse.Namespace,
    now: argparse.Namespace,
    *,
    content: Mapping[str, Any],
    rerun: str | None = None,
) -> list[str]:
    """List why a checkpoint cannot be loaded into the layout of this start, a sentence each.

    Args:
        saved: arguments of the job that saved it.
        now: arguments of this start, validated.
        content: what the checkpoint says of its own format.
        rerun: the step that the rerun state machine is to compute again from this checkpoint, in
            words; None if there is none.
    """
    found = _vocabulary_problems(saved, now)
    found += _format_problems(saved, now, content)
    if rerun is not None and now.rerun_mode != "disabled" and changes(saved, now):
        found.append(
            f"rerun-mode: the checkpoint was saved to {rerun}, and results are only comparable in "
            f"one layout, which now has {', '.join(changes(saved, now))}. Start in the old layout "
            "first, or give the search up with rerun-mode: disabled"
        )
    return found


def reshard_notes(saved: argparse.Namespace, now: argparse.Namespace, step: int) -> list[str]:
    """List what the owner of a run should know of a start in another layout; none in the same."""
    found = changes(saved, now)
    if not found:
        return []
    notes = [
        f"the layout changes after step {step}: {', '.join(found)}. The text that is read is the "
        "same; losses agree with those of the old layout to rounding, and not bit for bit"
    ]
    if _is_cut_otherwise(saved, now) and max(now.hidden_dropout, now.attention_dropout) > 0:
        notes.append(
            "warning: hidden-dropout and attention-dropout draw from a random state that does not "
            "carry over into another tensor- or pipeline-parallel size: it starts again from seed"
        )
    if "global_aux_loss" in _as_list(now.moe_router_load_balancing_type) and (
        saved.data_parallel_size != now.data_parallel_size
    ):
        notes.append(
            "warning: moe-router-load-balancing-type global_aux_loss is taken over all "
            f"data-parallel ranks, {saved.data_parallel_size} -> {now.data_parallel_size}, so it "
            "changes by more than rounding"
        )
    if getattr(now, "moe_expert_capacity_factor", None) and _is_cut_otherwise(saved, now):
        notes.append(
            "warning: moe-expert-capacity-factor drops tokens by the share of each rank, so other "
            "tokens are dropped in another layout"
        )
    return notes


def _is_cut_otherwise(saved: argparse.Namespace, now: argparse.Namespace) -> bool:
    return any(
        getattr(saved, name) != getattr(now, name)
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size")
    )


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _vocabulary_problems(saved: argparse.Namespace, now: argparse.Namespace) -> list[str]:
    """Refuse another padded vocabulary: Megatron would fill new rows of the softmax with noise."""
    before, after = saved.padded_vocab_size, now.padded_vocab_size
    if before == after:
        return []
    tensor = now.tensor_model_parallel_size
    if before < now.vocab_size:
        return [
            f"vocab-size: {now.vocab_size} is more than the {before} rows of the checkpoint, whose "
            "model got those of the tokenizer. Go on with the version of this project that "
            "started the run, or start again in another --run-folder"
        ]
    fix = (
        f"Set make-vocab-size-divisible-by: {before // tensor}"
        if before % tensor == 0
        else f"Use a tensor-model-parallel-size that divides {before}"
    )
    return [
        f"make-vocab-size-divisible-by: {now.make_vocab_size_divisible_by} x "
        f"tensor-model-parallel-size {tensor} pads the vocabulary to {after}, and the checkpoint's "
        f"has {before} rows, over which the loss is taken. {fix}"
    ]


def _format_problems(
    saved: argparse.Namespace, now: argparse.Namespace, content: Mapping[str, Any]
) -> list[str]:
    kind = content.get("distrib_optim_sharding_type")
    if kind is None and _has_two_optimizers(saved) != _has_two_optimizers(now):
        return [
            f"expert-model-parallel-size: {_experts(saved)} -> {_experts(now)}: experts have an "
            "optimizer of their own where they are cut otherwise than the rest, and without "
            "use-distributed-optimizer the state of one does not load into two. Use "
            + (
                "an expert-parallel size above 1"
                if _has_two_optimizers(saved)
                else "expert-parallel size 1, and no other expert-tensor- than tensor-parallel size"
            )
        ]
    if kind in (None, FULLY_RESHARDABLE):
        return []
    before, after = _buckets(saved), _buckets(now)
    differing = [
        f"{key} {before[key]} -> {after[key]}" for key in after if before[key] != after[key]
    ]
    if not differing:
        return []
    return [
        f"{', '.join(differing)}: the checkpoint's optimizer state was saved without {KEY}, and "
        "loads into another number of data-parallel ranks alone. Go on in the old layout with "
        f"{KEY}: true until the run has saved a checkpoint, and change the layout then"
    ]


def _has_two_optimizers(args: argparse.Namespace) -> bool:
    """Tell whether experts have an optimizer of their own: Megatron's ``use_expert_pgs``."""
    is_cut_otherwise = _expert_tensor_size(args) != args.tensor_model_parallel_size
    return bool(args.num_experts) and (args.expert_model_parallel_size > 1 or is_cut_otherwise)


def _expert_tensor_size(args: argparse.Namespace) -> int:
    return int(args.expert_tensor_parallel_size or args.tensor_model_parallel_size)


def _experts(args: argparse.Namespace) -> str:
    size, tensor = args.expert_model_parallel_size, _expert_tensor_size(args)
    is_usual = tensor == args.tensor_model_parallel_size
    return f"{size}" if is_usual else f"{size} with expert-tensor-parallel-size {tensor}"


def _buckets(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that decide which parameters share a gradient bucket, and in which order.

    The distributed optimizer's own format stores buckets.
    """
    return {
        "tensor-model-parallel-size": args.tensor_model_parallel_size,
        "pipeline-model-parallel-size": args.pipeline_model_parallel_size,
        "virtual pipeline stages": args.virtual_pipeline_model_parallel_size,
        **{
            key: str(getattr(args, key.replace("-", "_"), None))
            for key in (
                "pipeline-model-parallel-layout",
                "decoder-first-pipeline-num-layers",
                "decoder-last-pipeline-num-layers",
                "account-for-embedding-in-pipeline-split",
                "account-for-loss-in-pipeline-split",
            )
        },
        "expert-model-parallel-size": args.expert_model_parallel_size,
        "expert-tensor-parallel-size": args.expert_tensor_parallel_size,
        "num-distributed-optimizer-instances": args.num_distributed_optimizer_instances,
        "gradient bucket of": _bucket_size(args),
    }


def _bucket_size(args: argparse.Namespace) -> str:
    """The size of a gradient bucket, as ``resolve_ddp_bucket_size`` of Megatron has it."""
    if not args.overlap_grad_reduce:
        return "all parameters"
    if args.ddp_num_buckets is not None:
        return f"1/{args.ddp_num_buckets} of the parameters"
    replicas = args.data_parallel_size * args.context_parallel_size
    size = args.ddp_bucket_size
    return f"{max(40_000_000, 1_000_000 * replicas) if size is None else size:,} parameters"
