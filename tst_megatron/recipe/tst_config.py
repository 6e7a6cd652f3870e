"""Define the ``tst:`` block of a recipe: its keys, their types, defaults and meanings."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from tst_megatron.recipe.keys.flags import unknown_key
from tst_megatron.schedule import Side, SlotWeights, paper_schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class TSTConfig:
    """The ``tst:`` block of a recipe. Keys are written with dashes (``bag-size``)."""

    bag_size: int = 1
    """Raw tokens averaged into one latent position in superposition (paper: s). 1 turns it off."""
    superposition_fraction: float = 0.0
    """Share of optimizer steps, 0-1 and not of tokens, spent in superposition (paper: r)."""
    superposition_steps: int | None = None
    """Optimizer steps spent in superposition; given instead of the fraction."""
    schedule: list[list[float]] | None = None
    """[bag size, share of steps or number of steps] of each phase, ending in bag size 1; given
    instead of the three above."""
    stream_unit_bags: int | None = None
    """Chunks of ``seq-length`` raw tokens per unit of the token stream (U). Every bag size divides
    it; runs that are compared must have the same. Default: the largest bag size."""
    inputs: Side = "bags"
    """What a latent position reads: ``bags``, or one of the ``tokens``, as in ordinary training."""
    targets: Side = "bags"
    """What it predicts: ``bags``, or ``tokens``, the first of the next bag alone."""
    slot_weights: SlotWeights = "uniform"
    """Weight of target slot i, from 1: ``uniform``, ``1/i`` or ``exp(-i)``, divided by their
    sum."""
    linear_cross_entropy: bool = False
    """Compute the loss of bags from at most 512 MiB of logits at a time: less memory, a third more
    work in the output layer."""
    reset_embeddings: bool = False
    """Draw new input embeddings and a new output layer at the switch."""
    reset_optimizer: bool = False
    """Zero the optimizer's moments and count of steps at the switch."""
    max_epochs: int = 1
    """Passes over each corpus that the run may make; a run that needs more is refused."""
    keep_last_checkpoints: int | None = None
    """Newest checkpoints that are kept. Those of the last superposition step, of the start of the
    WSD decay and of every ``save-retain-interval`` steps stay too. Default: all, or 1 beside
    ``save-retain-interval``."""

    def entries(self) -> list[tuple[int, float | int | None]]:
        """Return the schedule as (bag size, share of steps or number of steps)."""
        if self.schedule is None:
            return paper_schedule(
                bag_size=self.bag_size,
                # YAML's 1 is a share here; in a schedule it would be one step.
                superposition_fraction=float(self.superposition_fraction),
                superposition_steps=self.superposition_steps,
            )
        # YAML's 4 is a bag size even where the list also holds shares.
        return [(int(bag_size), amount) for bag_size, amount in self.schedule]

    def as_keys(self) -> dict[str, Any]:
        """Return every key of the block, spelled as in a recipe."""
        return {name.replace("_", "-"): value for name, value in dataclasses.asdict(self).items()}

    def unit_chunks(self) -> int:
        """Return U, the chunks of a unit of the token stream."""
        return self.stream_unit_bags or max(bag_size for bag_size, _ in self.entries())


def read_tst_block(block: Any, problems: list[str]) -> TSTConfig:
    """Make a ``TSTConfig`` of the block that YAML gave; keys that are wrong keep their default.

    Args:
        block: the value of ``tst:`` in a recipe.
        problems: what is wrong with the block is added here.
    """
    if not isinstance(block, dict):
        problems.append(f"tst: {block!r} is not a block of `key: value` lines")
        return TSTConfig()
    hints = typing.get_type_hints(TSTConfig)
    known = {name.replace("_", "-"): name for name in hints}
    values: dict[str, Any] = {}
    for key, value in block.items():
        if key not in known:
            problems.append(unknown_key(f"tst.{key}", [f"tst.{name}" for name in known]))
        elif not _is_instance(value, hints[known[key]]) or not _are_pairs(value):
            wanted = _type_name(hints[known[key]])
            problems.append(f"tst.{key}: {value!r} is not {wanted}")
        else:
            values[known[key]] = value
    return TSTConfig(**values)


def _is_instance(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_is_instance(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is list:
        (item,) = typing.get_args(hint)
        return isinstance(value, list) and all(_is_instance(entry, item) for entry in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int if hint is int else (int, float) if hint is float else hint)


def _are_pairs(value: Any) -> bool:
    """Tell whether a schedule's entries are [bag size, steps]; any other value passes."""
    if not isinstance(value, list):
        return True
    return all(len(entry) == 2 and isinstance(entry[0], int) for entry in value)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(typing.get_args(hint))
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        types.NoneType: "empty",
    }
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(names.get(option, "a list of [bag size, steps]") for option in options)
