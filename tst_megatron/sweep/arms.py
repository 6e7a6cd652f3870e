"""List the arms that the paper compares, and others that a comparison needs, as recipe keys.

Each arm is made from one recipe with token superposition (the *given* recipe), so that everything
else stays the same. ``docs/sweeps.md`` has the table, and ``examples/MODEL/ablations/`` has the
arms of each model as recipes; ``tools/update_ablations.py`` writes both from this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from functools import partial
from typing import Any

from tst_megatron.recipe.recipe import Recipe
from tst_megatron.recipe.tst_config import TSTConfig

Keys = dict[str, Any]
"""Keys of a recipe with a dot into a block, such as ``tst.bag-size``, and their values."""

OF_SUPERPOSITION = tuple(
    f"tst.{key}"
    for key in (
        *("bag-size", "superposition-fraction", "superposition-steps", "schedule"),
        *("inputs", "targets", "slot-weights", "linear-cross-entropy"),
        *("reset-embeddings", "reset-optimizer"),
    )
)
"""Keys that mean nothing without superposition."""

_OF_TARGETS = ("tst.slot-weights", "tst.linear-cross-entropy")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One arm: its keys beside those of the given recipe, what it shows, and where it is from."""

    name: str
    meaning: str
    """The arm in one sentence."""
    source: str
    keys: Callable[[Recipe], Keys]
    """Returns the keys that differ from the given recipe."""
    own: frozenset[str] = frozenset()
    """Keys on which the arm does not depend: it sets them, or they mean nothing in it."""


def _fixed(**keys: Any) -> Callable[[Recipe], Keys]:
    found = {f"tst.{name.replace('_', '-')}": value for name, value in keys.items()}
    return lambda _: dict(found)


def without_superposition() -> Keys:
    """Return the keys that turn superposition off, each at its default."""
    defaults = TSTConfig().as_keys()
    return {key: defaults[key.removeprefix("tst.")] for key in OF_SUPERPOSITION}


def _of_length(recipe: Recipe, num_steps: int) -> Keys:
    """Return the keys of a run without superposition and of another length.

    The decay keeps its number of steps, as in the paper's figure of the 3B runs: 2,000 of 20,000,
    of 36,000 and of 50,000. It moves to the new end, and so does the end of any other decay.
    """
    keys: Keys = {**without_superposition(), "train-iters": num_steps}
    decay = recipe.megatron.get("lr-decay-iters")
    if decay is not None:
        keys["lr-decay-iters"] = int(decay) + num_steps - int(recipe.megatron["train-iters"])
    return keys


def _longer(times: str, recipe: Recipe) -> Keys:
    return _of_length(recipe, round(Fraction(times) * int(recipe.megatron["train-iters"])))


def _equal_data(recipe: Recipe) -> Keys:
    schedule = recipe.schedule()
    per_step = schedule.global_batch_size * schedule.num_latent_positions
    # Of the given schedule each step reads a whole number of ordinary steps' tokens.
    return _of_length(recipe, schedule.raw_tokens_before(schedule.num_steps) // per_step)


def _recovery_only(recipe: Recipe) -> Keys:
    schedule = recipe.schedule()
    return _of_length(recipe, schedule.num_steps - schedule.switch_step)


def _mtp(_: Recipe) -> Keys:
    return {**without_superposition(), "mtp-num-layers": 1}


_BASELINE = frozenset(OF_SUPERPOSITION)
_OF_PHASES = {"tst.superposition-fraction", "tst.superposition-steps", "tst.schedule"}
_EQUAL_LOSS = (
    "paper, tables 1 and 3 (36,000 and 50,000 steps against 20,000; 125,000 against 49,983)"
)

ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(
            name="baseline",
            meaning="Ordinary training with as many steps, and so with as many FLOPs.",
            source="paper, section 4",
            keys=lambda _: without_superposition(),
            own=_BASELINE,
        ),
        Arm(
            name="tst",
            meaning="The given recipe, with token superposition.",
            source="paper, section 3",
            keys=lambda _: {},
        ),
        Arm(
            name="input-only",
            meaning="A latent position reads a bag and predicts the one token after it.",
            source="paper, section 5.2",
            # A single target has no slots to weigh, and needs no chunks of logits.
            keys=_fixed(
                inputs="bags", targets="tokens", slot_weights="uniform", linear_cross_entropy=False
            ),
            own=frozenset(("tst.inputs", "tst.targets", *_OF_TARGETS)),
        ),
        Arm(
            name="output-only",
            meaning="A latent position reads one token and predicts the K tokens after it.",
            source="paper, section 5.2",
            keys=_fixed(inputs="tokens", targets="bags"),
            own=frozenset(("tst.inputs", "tst.targets")),
        ),
        Arm(
            name="slot-weights-1-over-i",
            meaning="Target i of a bag has the weight 1/i.",
            source="paper, appendix D",
            keys=_fixed(slot_weights="1/i"),
            own=frozenset(("tst.slot-weights",)),
        ),
        Arm(
            name="slot-weights-exp",
            meaning="Target i of a bag has the weight exp(-i).",
            source="paper, appendix D",
            keys=_fixed(slot_weights="exp(-i)"),
            own=frozenset(("tst.slot-weights",)),
        ),
        Arm(
            name="reset-embeddings",
            meaning="The input embeddings and the output layer are drawn anew at the switch.",
            source="paper, table 2",
            keys=_fixed(reset_embeddings=True),
            own=frozenset(("tst.reset-embeddings",)),
        ),
        Arm(
            name="reset-optimizer",
            meaning="The optimizer's moments and its count of steps are set to 0 at the switch.",
            source="not in the paper; hudsongouge/AOMTS",
            keys=_fixed(reset_optimizer=True),
            own=frozenset(("tst.reset-optimizer",)),
        ),
        Arm(
            name="mtp",
            meaning="The baseline with one layer of Megatron's multi-token prediction.",
            source="left to later work by the paper, section 5.1; hudsongouge/AOMTS",
            keys=_mtp,
            own=_BASELINE | {"mtp-num-layers"},
        ),
        *(
            Arm(
                name=f"longer-{times}",
                meaning=f"The baseline with {times} times the steps: when is its loss equal?",
                source="paper, tables 1 and 3",
                keys=partial(_longer, times),
                own=_BASELINE,
            )
            for times in ("1.25", "1.5", "2", "2.5")
        ),
        Arm(
            name="equal-data",
            meaning="The baseline with as many steps as read the raw tokens of the given recipe.",
            source="ours: N (1 + r (K - 1)) steps",
            keys=_equal_data,
            own=_BASELINE - _OF_PHASES - {"tst.bag-size", "tst.inputs"},
        ),
        Arm(
            name="recovery-only",
            meaning="The baseline with the steps of the recovery phase alone.",
            source="ours: N (1 - r) steps",
            keys=_recovery_only,
            own=_BASELINE - _OF_PHASES,
        ),
    )
}
"""Every arm by its name, in the order in which people read them."""


def arms_named(text: str | None) -> list[Arm]:
    """Return the arms of a list with commas, in its order; none for None.

    Raises:
        ValueError: a name is unknown, or stands twice.
    """
    if text is None:
        return []
    names = [name.strip() for name in text.split(",")]
    problems = []
    for name in dict.fromkeys(names):
        if name not in ARMS:
            near = get_close_matches(name, ARMS, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            problems.append(f"--arms: {name!r} is none of {', '.join(ARMS)}.{meant}")
        elif names.count(name) > 1:
            problems.append(f"--arms: {name} is named twice. Name it once")
    if problems:
        raise ValueError("\n".join(problems))
    return [ARMS[name] for name in names]
