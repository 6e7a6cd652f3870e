"""Find schedules of the learning rate that cannot be meant, such as one that jumps."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection

from tst_megatron.recipe.learning_rate import LearningRate
from tst_megatron.schedule import Schedule

JUMP = 1.5
"""A change beyond this multiple of the largest step of the warm-up and of the decay is a jump."""


def learning_rate_problems(
    values: argparse.Namespace, given: Collection[str | None]
) -> tuple[list[str], LearningRate | None]:
    """Check the schedule: Megatron must accept it, it must not jump, and its decay must fit.

    Returns:
        (problems, the schedule; None if its numbers make none).
    """
    if not _is_complete(values):
        return [], None
    problems = _spelling_problems(values, given)
    rate = LearningRate.of(values)
    problems += _order_problems(rate, values)
    if not problems:
        problems = _length_problems(rate, values)
    if not problems:
        problems = _jump_problems(rate)
    return problems, None if problems else rate


def _is_complete(values: argparse.Namespace) -> bool:
    numbers = [
        *(values.lr, values.min_lr, values.lr_warmup_init, values.lr_warmup_iters),
        *(values.lr_warmup_fraction or 0.0, values.lr_wsd_decay_iters or 0),
    ]
    lengths = [values.train_iters, values.lr_decay_iters or values.train_iters]
    are_numbers = all(number is not None and math.isfinite(number) for number in numbers)
    return are_numbers and min(numbers) >= 0 and all(length and length > 0 for length in lengths)


def _spelling_problems(values: argparse.Namespace, given: Collection[str | None]) -> list[str]:
    problems = [
        f"{name.replace('_', '-')}: phases are counted in steps. Use "
        f"{name.replace('_samples', '_iters').replace('_', '-')}"
        for name in ("lr_warmup_samples", "lr_decay_samples", "lr_wsd_decay_samples")
        if name in given
    ]
    if values.lr_warmup_fraction is not None and values.lr_warmup_iters:
        problems.append("lr-warmup-fraction: lr-warmup-iters says the same thing. Give one of them")
    if values.lr_decay_style == "WSD" and not values.lr_wsd_decay_iters:
        problems.append(
            "lr-wsd-decay-iters: lr-decay-style WSD needs the steps of its decay. Give them, or "
            "use constant"
        )
    return problems


def _order_problems(rate: LearningRate, values: argparse.Namespace) -> list[str]:
    problems = []
    if rate.smallest > rate.largest:
        problems.append(f"min-lr: {rate.smallest:g} is above lr {rate.largest:g}. Lower it")
    if rate.first > rate.largest:
        problems.append(
            f"lr-warmup-init: {rate.first:g} is above lr {rate.largest:g}. Lower it: a warm-up "
            "rises"
        )
    if values.decoupled_min_lr is not None and values.decoupled_lr is None:
        problems.append("decoupled-min-lr: has no effect without decoupled-lr. Give both")
    elif (values.decoupled_min_lr or 0) > (values.decoupled_lr or math.inf):
        problems.append(
            f"decoupled-min-lr: {values.decoupled_min_lr:g} is above decoupled-lr "
            f"{values.decoupled_lr:g}. Lower it"
        )
    return problems


def _length_problems(rate: LearningRate, values: argparse.Namespace) -> list[str]:
    """Check that warm-up and decay fit into the run, in whatever keys their steps were given."""
    by = "lr-warmup-iters" if values.lr_warmup_fraction is None else "lr-warmup-fraction"
    warmup, end = math.ceil(rate.warmup), rate.end
    if rate.warmup >= min(end, rate.num_steps):
        steps = min(end, rate.num_steps)
        return [
            f"{by}: {warmup:,} of the schedule's {steps:,} steps leave none for the rest. Lower it"
        ]
    if rate.style == "WSD" and rate.decay > end:
        return [
            f"lr-wsd-decay-iters: {rate.decay:,} of the schedule's {end:,} steps leave none for "
            "the rest. Lower it"
        ]
    if rate.style == "WSD" and rate.warmup + rate.decay > end:
        return [
            f"lr-wsd-decay-iters: a warm-up of {warmup:,} steps and a decay of {rate.decay:,} do "
            f"not fit into {end:,}: the rate would fall from {rate.at(warmup):.2e} at step "
            f"{warmup + 1:,} to {rate.at(warmup + 1):.2e} at the next. Lower one of the two"
        ]
    if rate.style == "WSD" and rate.decay_start >= rate.num_steps:
        return [
            f"lr-decay-iters: the decay would begin after step {rate.decay_start:,}, and the run "
            f"ends at step {rate.num_steps:,}. Lower lr-decay-iters, or use lr-decay-style constant"
        ]
    if end < rate.num_steps and rate.style != "constant" and rate.smallest == 0:
        return [
            f"lr-decay-iters: the rate is 0 after step {end + 1:,} of {rate.num_steps:,}, and a "
            "step at 0 trains nothing. Raise it to train-iters, or give min-lr"
        ] * (end + 1 < rate.num_steps)
    return []


def _jump_problems(rate: LearningRate) -> list[str]:
    """Find a rate that changes more between two steps than in its warm-up and its decay.

    It can only jump where one part of the schedule follows another, or in a decay of a step or two.
    """
    warmup = (0, math.floor(rate.warmup))
    decay = (max(rate.decay_start, math.ceil(rate.warmup)), min(rate.end, rate.num_steps - 1))
    usual = max(_largest_change(rate, *warmup), _largest_change(rate, *decay))
    allowed = min(max(JUMP * usual, 0.02 * rate.largest), 0.5 * rate.largest)
    seams = {math.floor(rate.warmup), math.ceil(rate.warmup), decay[0], decay[1] - 1, rate.end}
    for step in sorted(seams):
        if not max(1, rate.warmup) <= step < rate.num_steps - 1:
            continue
        before, after = rate.at(step), rate.at(step + 1)
        if abs(after - before) > allowed:
            return [
                f"lr-decay-style: the rate would jump from {before:.2e} at step {step + 1:,} to "
                f"{after:.2e} at the next. Change lr-warmup-iters, lr-decay-iters, "
                "lr-wsd-decay-iters or min-lr, so that it changes in more steps"
            ]
    return []


def _largest_change(rate: LearningRate, first: int, last: int) -> float:
    """Return the largest change from one step to the next.

    It is at an end or in the middle, where the curves are steepest.
    """
    middle = (first + last) // 2
    pairs = [step for step in (first, middle, last - 1) if first <= step < last]
    return max((abs(rate.at(step + 1) - rate.at(step)) for step in pairs), default=0.0)


def learning_rate_warnings(rate: LearningRate, schedule: Schedule | None) -> list[str]:
    """List what is odd about a schedule and may be meant."""
    warnings = []
    last = rate.num_steps - 1
    if rate.style not in ("constant", "inverse-square-root") and rate.end > rate.num_steps:
        warnings.append(
            f"lr-decay-iters: the decay is made for {rate.end:,} steps and the run has "
            f"{rate.num_steps:,}, so it ends at {rate.at(last):.2e} instead of {rate.smallest:.2e}"
        )
    if rate.style != "constant" and rate.end + 1 < rate.num_steps:
        warnings.append(
            f"lr-decay-iters: the decay is done at step {rate.end + 1:,}, and the last "
            f"{rate.num_steps - rate.end - 1:,} steps have {rate.smallest:.2e}"
        )
    if rate.style != "constant" and rate.decay_start >= last > 0:
        warnings.append(
            "lr-decay-style: no decay is left in the run: the last step still has the largest "
            "rate. Give it steps, or use constant"
        )
    if schedule is None or not schedule.switch_step:
        return warnings
    switch = schedule.switch_step
    if switch < rate.warmup:
        warnings.append(
            f"tst: the switch comes within the warm-up of the learning rate (step {switch:,} of "
            f"{math.ceil(rate.warmup):,})"
        )
    if rate.style == "WSD" and switch > rate.decay_start:
        warnings.append(
            f"tst: the switch comes within the decay of the learning rate, at {rate.at(switch):.2e}"
        )
    return warnings
