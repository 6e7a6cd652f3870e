"""A recipe: one short YAML file, resolved into Megatron's arguments and the ``tst:`` block.

A recipe's keys are Megatron's own flags without the dashes (``num-layers: 32``), and four of ours:

    base:     another recipe to build on, as a path beside this one
    profile:  what is left to the machine (``profiles.py``); ``cpu`` needs no GPU
    data:     folders made by ``tst-megatron data prepare``, each with its weight
    tst:      token superposition, see ``TSTConfig``

Later values win: base, then the recipe, then ``key=value`` from the command line, where dots reach
into a block (``tst.bag-size=4``). A key stands once in a file; an empty ``tst:`` or ``data:``
leaves the base's as it is. Words mean what they say (``strict_yaml.py``). Whether the result makes
sense is ``check/plain.py``'s and ``check.py``'s question.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tst_megatron.recipe.keys.flags import unknown_key
from tst_megatron.recipe.profiles import PROFILES
from tst_megatron.schedule import Schedule, Side, SlotWeights, paper_schedule, resolve_phases
from tst_megatron.system.records import Damaged, read_text
from tst_megatron.system.strict_yaml import NotYAML, read_yaml

RUN_FOLDER_KEYS = (
    "save",
    "load",
    "tensorboard-dir",
    "ckpt-step",
    "finetune",
    "skip-train",
)
"""Megatron keys that the run folder decides."""

MOST_BASES = 20
_MOST_CHARACTERS = 600


class RecipeError(ValueError):
    """What is wrong with a recipe: all of it, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        """Keep the problems, each a sentence for a person, with values that others wrote."""
        self.problems = tuple(_printable(problem) for problem in problems)
        super().__init__("\n".join(self.problems))


def _printable(problem: str) -> str:
    """A sentence that a terminal can show: values are cut, and nothing in them moves the cursor."""
    if len(problem) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        problem = f"{problem[:half]} [...] {problem[-half:]}"
    return "".join(
        letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1]
        for letter in problem
    )


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
    """Draw input embeddings and output layer anew at the switch."""
    reset_optimizer: bool = False
    """Zero the optimizer's moments and count of steps at the switch."""
    max_epochs: int = 1
    """Passes over each corpus that the run may make; a run that needs more is refused."""
    keep_last_checkpoints: int | None = None
    """Newest checkpoints that are kept. Those of the last superposition step, of the start of the
    WSD decay and of every ``save-retain-interval`` steps stay too. Default: all, or 1 beside
    ``save-retain-interval``."""

    def entries(self) -> list[tuple[int, float | int | None]]:
        """The schedule as (bag size, share of steps or number of steps)."""
        if self.schedule is None:
            return paper_schedule(
                bag_size=self.bag_size,
                # A share also where YAML wrote 1, which is a number of steps in a schedule.
                superposition_fraction=float(self.superposition_fraction),
                superposition_steps=self.superposition_steps,
            )
        # YAML's 4 is a bag size even where the list also holds shares.
        return [(int(bag_size), amount) for bag_size, amount in self.schedule]

    def as_keys(self) -> dict[str, Any]:
        """The block as a recipe has it, every key."""
        return {name.replace("_", "-"): value for name, value in dataclasses.asdict(self).items()}

    def unit_chunks(self) -> int:
        """U, the chunks of a unit of the token stream."""
        return self.stream_unit_bags or max(bag_size for bag_size, _ in self.entries())


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A recipe after its bases and overrides, before any check."""

    path: Path
    megatron: Mapping[str, Any]
    """Megatron's keys and their values as YAML gave them."""
    tst: TSTConfig
    data: Mapping[Path, float]
    """Prepared folder -> weight."""
    profile: str | None
    problems: tuple[str, ...] = field(default=())
    """What could not be read; everything that could be is in the other fields."""

    def schedule(self) -> Schedule:
        """The phases in whole steps.

        Raises:
            ValueError: the schedule is none; the message names every rule that is broken.
        """
        return Schedule(
            phases=resolve_phases(
                self.tst.entries(),
                num_steps=int(self.megatron["train-iters"]),
                inputs=self.tst.inputs,
                targets=self.tst.targets,
            ),
            num_latent_positions=int(self.megatron["seq-length"]),
            global_batch_size=int(self.megatron["global-batch-size"]),
        )

    def resolved(self) -> dict[str, Any]:
        """Everything that decides the run, as plain values for a file or a comparison."""
        return {
            **dict(sorted(self.megatron.items())),
            "profile": self.profile,
            "data": {str(path): weight for path, weight in self.data.items()},
            "tst": self.tst.as_keys(),
        }


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe with its bases and apply ``key=value`` overrides.

    Problems inside the files are collected in ``Recipe.problems``, so that a check can name them
    with all others.

    Raises:
        RecipeError: a file is missing or is not YAML, or an override is not ``key=value``.
    """
    problems: list[str] = []
    merged = _read_with_bases(path, problems, seen=())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise RecipeError(
                [f"{override}: an override is key=value, such as tst.bag-size=4 or num-layers=2"]
            )
        if key == "base":
            raise RecipeError([f"{override}: a base is named in the recipe file alone"])
        try:
            value = read_yaml(text, problems.append)
        except NotYAML as error:
            raise RecipeError([f"{override}: the value is not YAML: {error}"]) from error
        _set_nested(merged, key.split("."), value)
    tst = _tst_config(_block(merged.pop("tst", None)), problems)
    data = _data(_block(merged.pop("data", None)), problems)
    profile = merged.pop("profile", None)
    if profile is not None and profile not in PROFILES:
        problems.append(f"profile: {profile} is none of {', '.join(PROFILES)}")
    return Recipe(
        path=path, megatron=merged, tst=tst, data=data, profile=profile, problems=tuple(problems)
    )


def _read_with_bases(path: Path, problems: list[str], *, seen: tuple[Path, ...]) -> dict[str, Any]:
    if len(seen) > MOST_BASES:
        raise RecipeError([f"{seen[0]}: has more than {MOST_BASES} bases, one built on the other"])
    own = _read(path, problems)
    place = path.resolve()
    if place in seen:
        raise RecipeError([f"{path}: its base leads back to itself"])
    base = own.pop("base", None)
    if base is None:
        return own
    merged = _read_with_bases(path.parent / str(base), problems, seen=(*seen, place))
    for key, value in own.items():
        if key in _BLOCKS and value is None:
            # All of its lines are comments.
            continue
        if key == "tst" and isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = {**merged[key], **value}
        else:
            merged[key] = value
    return merged


_BLOCKS = ("tst", "data")


def _read(path: Path, problems: list[str]) -> dict[str, Any]:
    """The keys of one file."""
    try:
        text = read_text(path)
        if text is None:
            raise RecipeError([f"{path}: there is no such recipe"])
        own = read_yaml(text.removeprefix("\ufeff"), lambda key: problems.append(f"{path}: {key}"))
    except Damaged as error:
        raise RecipeError([f"{path}: {error}"]) from error
    except NotYAML as error:
        raise RecipeError([f"{path}: cannot be read as YAML: {error}"]) from error
    if not isinstance(own, dict):
        raise RecipeError([f"{path}: a recipe is a list of `key: value` lines"])
    return own


def _block(value: Any) -> Any:
    return {} if value is None else value


def _set_nested(mapping: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = mapping.get(key)
        mapping[key] = inner = dict(inner) if isinstance(inner, dict) else {}
        mapping = inner
    mapping[keys[-1]] = value


def _data(block: Any, problems: list[str]) -> dict[Path, float]:
    if not isinstance(block, dict):
        problems.append(f"data: {block!r} is not a block of `prepared folder: weight` lines")
        return {}
    data = {}
    for folder, weight in block.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not 0 < weight < math.inf:
            problems.append(f"data: the weight {weight!r} of {folder} must be a number above 0")
            weight = 1.0  # so that the folder itself is still checked
        if Path(str(folder)) in data:
            problems.append(f"data: {folder} is named twice. Name it once, with one weight")
        data[Path(str(folder))] = float(weight)
    return data


def _tst_config(block: Any, problems: list[str]) -> TSTConfig:
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
    """Whether a schedule's entries are [bag size, steps]; anything but a list passes."""
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
