"""Check the ``tst:`` block, beyond the types of its values."""

from __future__ import annotations

import argparse

from tst_megatron.data.stream.sample_order import unit_problem
from tst_megatron.recipe.tst_config import TSTConfig
from tst_megatron.schedule import Schedule

MOST_EPOCHS = 10_000
"""The plan of a run takes time and memory for each epoch."""


def tst_problems(tst: TSTConfig) -> list[str]:
    """List values of the ``tst:`` block that contradict each other or would have no effect."""
    shares = [tst.superposition_fraction or None, tst.superposition_steps]
    ways = [way for way in (*shares, tst.schedule) if way is not None]
    problems = []
    if len(ways) > 1:
        problems.append(
            "tst: superposition-fraction, superposition-steps and schedule say the same thing. "
            "Give one of them"
        )
    if tst.schedule is not None and tst.bag_size != 1:
        problems.append(f"tst.bag-size: {tst.bag_size} beside schedule, which has its own")
    if tst.bag_size != 1 and not ways:
        problems.append(
            f"tst.bag-size: {tst.bag_size} without superposition-fraction or superposition-steps, "
            "so no step would have it. Give one of them, or bag-size 1"
        )
    problems += _switch_problems(tst)
    if not 0 <= tst.superposition_fraction <= 1:
        problems.append(
            f"tst.superposition-fraction: {tst.superposition_fraction} is a share of steps, 0-1"
        )
    if tst.stream_unit_bags is not None and tst.stream_unit_bags < 1:
        problems.append(f"tst.stream-unit-bags: {tst.stream_unit_bags} is below 1")
    if not 1 <= tst.max_epochs <= MOST_EPOCHS:
        problems.append(f"tst.max-epochs: {tst.max_epochs} is not from 1 to {MOST_EPOCHS:,}")
    if tst.keep_last_checkpoints is not None and tst.keep_last_checkpoints < 1:
        problems.append(
            f"tst.keep-last-checkpoints: {tst.keep_last_checkpoints} is below 1, and a run goes on "
            "from its last. Remove the key to keep all"
        )
    return problems


def _switch_problems(tst: TSTConfig) -> list[str]:
    """List ablation switches that would change no step."""
    changed = {
        "inputs": tst.inputs != "bags",
        "targets": tst.targets != "bags",
        "slot-weights": tst.slot_weights != "uniform",
        "linear-cross-entropy": tst.linear_cross_entropy,
        "reset-embeddings": tst.reset_embeddings,
        "reset-optimizer": tst.reset_optimizer,
    }
    has_superposition = any(bag_size > 1 for bag_size, _ in tst.entries())
    problems = [
        f"tst.{key}: without superposition it changes nothing. Remove it, or set bag-size and "
        "superposition-fraction or superposition-steps"
        for key, is_changed in changed.items()
        if is_changed and not has_superposition
    ]
    if changed["inputs"] and changed["targets"]:
        problems.append(
            "tst.inputs: tokens with targets: tokens is ordinary training. Use bags on one side, "
            "or bag-size 1"
        )
    for key, value in (
        ("slot-weights", tst.slot_weights),
        ("linear-cross-entropy", tst.linear_cross_entropy),
    ):
        if changed[key] and changed["targets"]:
            problems.append(
                f"tst.{key}: {value} with targets: tokens, which has one slot. Remove one of the "
                "two"
            )
    return problems


def reset_problems(tst: TSTConfig, values: argparse.Namespace) -> list[str]:
    """Refuse optimizers that keep parameters or moments in a form that a reset cannot change."""
    resets = [
        f"tst.{name}"
        for name, is_wanted in (
            ("reset-embeddings", tst.reset_embeddings),
            ("reset-optimizer", tst.reset_optimizer),
        )
        if is_wanted
    ]
    unknown = {
        f"optimizer: {values.optimizer}": values.optimizer != "adam",
        "optimizer-cpu-offload": values.optimizer_cpu_offload,
        # Its fp32 copies of bf16 parameters are remainders, and its moments may have scales.
        "use-precision-aware-optimizer": values.use_precision_aware_optimizer,
        "use-megatron-fsdp": values.use_megatron_fsdp,
        "use-torch-fsdp2": values.use_torch_fsdp2,
    }
    return [
        f"{key}: {' and '.join(resets)} can only reset Adam's fp32 state on the device. Remove one "
        "of the two"
        for key, is_set in unknown.items()
        if is_set and resets
    ]


def linear_loss_problems(tst: TSTConfig, values: argparse.Namespace) -> list[str]:
    """Refuse output layers that do more than multiply by a weight of this rank."""
    unknown = {
        "defer-embedding-wgrad-compute": values.defer_embedding_wgrad_compute,
        "use-mup": values.use_mup,
        "fp8-output-proj": values.fp8_output_proj,
        "use-megatron-fsdp": values.use_megatron_fsdp,
        "use-torch-fsdp2": values.use_torch_fsdp2,
        "tensor-parallel-num-weight-shards": (values.tensor_parallel_num_weight_shards or 1) > 1,
    }
    return [
        f"{key}: tst.linear-cross-entropy computes the output layer itself, without it. Remove one "
        "of the two"
        for key, is_set in unknown.items()
        if is_set and tst.linear_cross_entropy
    ]


def schedule_problems(tst: TSTConfig, values: argparse.Namespace, schedule: Schedule) -> list[str]:
    """List phases that do not fit the token stream, or Megatron's log."""
    problems = []
    unit = tst.unit_chunks()
    for phase in schedule.phases:
        if problem := unit_problem(phase.bag_size, unit):
            problems.append(
                f"tst.stream-unit-bags: {problem}. Set tst.stream-unit-bags to a multiple of every "
                "bag size"
            )
        if phase.last_step != schedule.num_steps and phase.last_step % max(1, values.log_interval):
            problems.append(
                f"log-interval: {values.log_interval} does not divide step {phase.last_step}, "
                "where the bag size changes: a line of Megatron's log would mix two losses. Use 1"
            )
    return problems
