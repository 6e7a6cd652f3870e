"""Decide what a branch may change of its trunk, and say what it may not, with the reason.

Keys that decide no number may differ between any two starts of a run (``recipe/keys/kinds.py``),
so they may in a branch too. Of the others, ``MAY_CHANGE`` lists those that a branch may change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tst_megatron.recipe.keys.kinds import EVALUATES, KINDS
from tst_megatron.recipe.keys.run_keys import COMPUTING_KEYS, MODEL_KEYS
from tst_megatron.recipe.learning_rate import LearningRate
from tst_megatron.schedule import phases_until
from tst_megatron.training.run.identity import (
    OF_THE_PHASES,
    TEXT,
    Difference,
    notes,
    values_of,
    what_differs,
)

if TYPE_CHECKING:
    # Imports torch, which takes longer than most refusals.
    from tst_megatron.recipe.check.checked import CheckedRecipe

Phases = Sequence[Sequence[int]]
"""[bag size, number of steps] of each phase, in order."""

_RATE = "The rate of every step is computed from the recipe's keys"
_DECAY = "Weight decay is set again at every step, from the recipe's keys"
WARMUP = ("lr-warmup-iters", "lr-warmup-fraction", "lr-warmup-init")

MAY_CHANGE: Mapping[str, str] = {
    "train-iters": "The loop ends where the recipe says, and the rates follow from it",
    **dict.fromkeys(("lr", "min-lr", "lr-decay-style", "lr-decay-iters"), _RATE),
    **dict.fromkeys(("lr-wsd-decay-iters", "lr-wsd-decay-style", *WARMUP), _RATE),
    **dict.fromkeys(("weight-decay", "start-weight-decay", "end-weight-decay"), _DECAY),
    "weight-decay-incr-style": _DECAY,
    "clip-grad": "Gradients are clipped to what the recipe says, which no checkpoint keeps",
}
"""Key -> why a changed value takes effect from the branch's first step."""

_RESETS = ("tst.reset-embeddings", "tst.reset-optimizer")
_OF_THE_BAG_LOSS = ("tst.slot-weights", "tst.linear-cross-entropy")

_OF_THE_MODEL = "The weights in the checkpoint are of the trunk's model"
_OF_THE_ARITHMETIC = (
    "It changes how the model is computed, and nobody has shown that the trunk's state fits that"
)
_OF_THE_STREAM = "It decides which text a step reads, and what the trunk has read would change"
_OF_THE_OPTIMIZER = "Megatron takes it from the checkpoint, so a new value would not be used"
_UNKNOWN = "Nobody has shown that a new value takes effect after a load"

_REASONS: Mapping[str, str] = {
    **dict.fromkeys(COMPUTING_KEYS, _OF_THE_ARITHMETIC),
    **dict.fromkeys(MODEL_KEYS, _OF_THE_MODEL),
    **dict.fromkeys(("seed", "seq-length", "global-batch-size", "data", TEXT), _OF_THE_STREAM),
    **dict.fromkeys(("tst.inputs", "tst.targets", "tst.stream-unit-bags"), _OF_THE_STREAM),
    **dict.fromkeys(("adam-beta1", "adam-beta2", "adam-eps", "optimizer"), _OF_THE_OPTIMIZER),
    **dict.fromkeys(
        ("sgd-momentum", "muon-momentum", "lion-beta1", "lion-beta2"), _OF_THE_OPTIMIZER
    ),
    "micro-batch-size": "An auxiliary loss is taken over a micro-batch",
    "profile": "It decides layers and arithmetic, and the trunk's state is of those",
    "verify-integrity": "Checkpoints of the trunk and of the branch must be checked in one way",
}
"""Key -> why a branch may not change it."""

_OF_EVALUATION = "Evaluation leaves a trace in the training of this run (docs/going-on.md)"


def problems(before: Mapping[str, Any], checked: CheckedRecipe, step: int) -> list[str]:
    """List what a branch may not change, a sentence each.

    Args:
        before: the identity of the trunk.
        checked: the recipe of the branch.
        step: of the trunk, at which the branch begins.
    """
    found = [
        problem
        for difference in what_differs(before, checked)
        if difference.key not in {f"tst.{key}" for key in OF_THE_PHASES}
        and (problem := _problem(difference, before, checked, step))
    ]
    return found


def _problem(
    difference: Difference, before: Mapping[str, Any], checked: CheckedRecipe, step: int
) -> str | None:
    key = difference.key
    if key == "phases":
        return _phase_problem(difference.was, difference.is_now, step)
    if key in _RESETS:
        return _reset_problem(difference, checked.schedule.switch_step, step)
    if key in _OF_THE_BAG_LOSS and step < checked.schedule.switch_step:
        return None
    if key in MAY_CHANGE:
        return _group_problem(difference, checked)
    return _refusal(difference, _reason(key, step))


def _reason(key: str, step: int) -> str:
    if key in _OF_THE_BAG_LOSS:
        return f"It is of steps with bags, and none follows step {step}"
    if KINDS.get(key) == EVALUATES:
        return _OF_EVALUATION
    return _REASONS.get(key, _UNKNOWN)


def _refusal(difference: Difference, reason: str) -> str:
    was, is_now = difference.was, difference.is_now
    had = "without this key" if was is None else f"with {was!r}"
    wants = "leave it out" if is_now is None else f"change that to {is_now!r}"
    return f"{difference.key}: the trunk was trained {had}, and a branch cannot {wants}. {reason}"


def _phase_problem(was: Phases, is_now: Phases, step: int) -> str | None:
    then, now = phases_until(was, step), phases_until(is_now, step)
    if then == now:
        return None
    return (
        f"phases: the trunk has read {_in_words(then)}, and with these changes its first {step} "
        f"steps would have been {_in_words(now)}. What was read stays read: change phases after "
        f"step {step} only, or branch at an earlier step"
    )


def _in_words(phases: Phases) -> str:
    return " and ".join(
        f"{num_steps} {'step' if num_steps == 1 else 'steps'} "
        + (f"with bags of {bag_size}" if bag_size > 1 else "of single tokens")
        for bag_size, num_steps in phases
    )


def _reset_problem(difference: Difference, switch: int, step: int) -> str | None:
    if switch >= step:
        return None
    when = f"The switch came after step {switch}, and the branch begins at step {step}. "
    if difference.is_now:
        return (
            f"{difference.key}: a reset is made at the switch. {when}Branch at {switch} or before"
        )
    return (
        f"{difference.key}: the trunk has made this reset. {when}Leave it true, or branch at "
        f"{switch} or before"
    )


def _group_problem(difference: Difference, checked: CheckedRecipe) -> str | None:
    """Refuse other rates for groups of parameters that Megatron finds again by their rates."""
    if difference.key not in ("lr", "min-lr"):
        return None
    values = checked.known.parse(checked.recipe.megatron)
    if values.decoupled_lr is None and not values.use_mup:
        return None
    beside = "use-mup" if values.use_mup else "decoupled-lr"
    return _refusal(
        difference,
        f"Beside {beside} some parameters have a rate of their own, by which Megatron finds their "
        "state in the checkpoint",
    )


# --- what the owner should know -------------------------------------------------------------------


def remarks(before: Mapping[str, Any], checked: CheckedRecipe, step: int) -> list[str]:
    """List what the owner of a branch should know of its changes, a sentence each.

    Args:
        before: as for ``problems``, like the rest; there are no problems.
        checked: likewise.
        step: likewise.
    """
    was, is_now = LearningRate.of(values_of(before, checked.known)), checked.rate
    found = notes(before, checked)
    if was.at(step) != is_now.at(step):
        found.append(
            f"the learning rate of step {step + 1:,} is {is_now.at(step):.3e}, where the trunk's "
            f"was {was.at(step):.3e}"
        )
    changed = {each.key for each in what_differs(before, checked)}
    idle = [key for key in WARMUP if key in changed]
    if idle and not _differs_with_old_warmup(was, is_now, step):
        found.append(
            f"{' and '.join(idle)}: the warm-up is over at step {step}, so this changes nothing"
        )
    return found


def _differs_with_old_warmup(was: LearningRate, is_now: LearningRate, step: int) -> bool:
    """Tell whether the branch's warm-up gives a step after it another rate than the trunk's."""
    with_old = replace(is_now, warmup=was.warmup, first=was.first)
    steps = range(step, is_now.num_steps)
    return any(with_old.at(each) != is_now.at(each) for each in steps)
