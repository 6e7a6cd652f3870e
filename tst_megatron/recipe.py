"""A recipe: one short YAML file, resolved into Megatron's arguments and the ``tst:`` block.

A recipe's keys are Megatron's own flags without the dashes (``num-layers: 32``), and four of ours:

    base:     another recipe to build on, as a path beside this one
    profile:  the host to run on; ``cpu`` needs no GPU
    data:     folders made by ``tst-megatron data prepare``, each with its weight
    tst:      token superposition, see ``TSTConfig``

Later values win: base, then the recipe, then ``key=value`` from the command line, where dots reach
into a block (``tst.bag-size=4``). Whether the result makes sense is ``check.py``'s question.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tst_megatron.schedule import Schedule, paper_schedule, resolve_phases

PROFILES = ("cpu",)

OWN_KEYS = ("base", "profile", "data", "tst")

RUN_FOLDER_KEYS = (
    "save",
    "load",
    "tensorboard-dir",
    "ckpt-step",
    "pretrained-checkpoint",
    "finetune",
    "skip-train",
)
"""Megatron keys that the run folder decides."""


class RecipeError(ValueError):
    """What is wrong with a recipe: all of it, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        """Keep the problems, each a sentence for a person."""
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


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
            phases=resolve_phases(self.tst.entries(), num_steps=int(self.megatron["train-iters"])),
            num_latent_positions=int(self.megatron["seq-length"]),
            global_batch_size=int(self.megatron["global-batch-size"]),
        )

    def resolved(self) -> dict[str, Any]:
        """Everything that decides the run, as plain values for a file or a comparison."""
        tst = {
            name.replace("_", "-"): value for name, value in dataclasses.asdict(self.tst).items()
        }
        return {
            **dict(sorted(self.megatron.items())),
            "profile": self.profile,
            "data": {str(path): weight for path, weight in self.data.items()},
            "tst": tst,
        }


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe with its bases and apply ``key=value`` overrides.

    Problems inside the files are collected in ``Recipe.problems``, so that a check can name them
    with all others.

    Raises:
        RecipeError: a file is missing or is not YAML, or an override is not ``key=value``.
    """
    merged = _read_with_bases(path, seen=())
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise RecipeError(
                [f"{override}: an override is key=value, such as tst.bag-size=4 or num-layers=2"]
            )
        if key == "base":
            raise RecipeError([f"{override}: a base is named in the recipe file alone"])
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError([f"{override}: the value is not YAML: {error}"]) from error
        _set_nested(merged, key.split("."), value)
    problems: list[str] = []
    tst = _tst_config(merged.pop("tst", None) or {}, problems)
    data = _data(merged.pop("data", None) or {}, problems)
    profile = merged.pop("profile", None)
    if profile is not None and profile not in PROFILES:
        problems.append(f"profile: {profile} is none of {', '.join(PROFILES)}")
    return Recipe(
        path=path, megatron=merged, tst=tst, data=data, profile=profile, problems=tuple(problems)
    )


def _read_with_bases(path: Path, *, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise RecipeError([f"{path}: its base leads back to itself"])
    try:
        own = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError([f"{path}: there is no such recipe"]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError([f"{path}: cannot be read as YAML: {error}"]) from error
    if not isinstance(own, dict):
        raise RecipeError([f"{path}: a recipe is a list of `key: value` lines"])
    base = own.pop("base", None)
    if base is None:
        return own
    merged = _read_with_bases(path.parent / str(base), seen=(*seen, path.resolve()))
    for key, value in own.items():
        if key == "tst" and isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = {**merged[key], **value}
        else:
            merged[key] = value
    return merged


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
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
            problems.append(f"data: the weight {weight!r} of {folder} must be a number above 0")
            continue
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
    names = {int: "a whole number", float: "a number", types.NoneType: "empty"}
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(names.get(option, "a list of [bag size, steps]") for option in options)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The sentence for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)
    return f"{key}: there is no such key" + (f". Did you mean {near[0]}?" if near else "")


class Flags:
    """Megatron's parser, asked by recipe key."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        """Index the parser's options by every name a recipe may use for them."""
        self._actions: dict[str, tuple[argparse.Action, str]] = {}
        for action in parser._actions:
            names = [option.removeprefix("--") for option in action.option_strings]
            for name, option in zip(names, action.option_strings, strict=True):
                self._actions[name] = (action, option)
            # `x: false` for a flag that exists as `--no-x` only.
            if isinstance(action, argparse._StoreFalseAction):
                for name in (action.dest.replace("_", "-"), names[0].removeprefix("no-")):
                    self._actions.setdefault(name, (action, action.option_strings[0]))
        self._actions.pop("help", None)

    def overlay(self, values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
        """``values`` with ``over`` in place of every key that means the same flag."""
        taken = {self._actions[key][0].dest for key in over}
        kept = {
            key: value
            for key, value in values.items()
            if key not in self._actions or self._actions[key][0].dest not in taken
        }
        return {**kept, **over}

    def default(self, key: str) -> Any:
        """Megatron's default of a key."""
        return self._actions[key][0].default

    def destination(self, key: str) -> str | None:
        """Megatron's attribute for a key, or None if there is no such key."""
        return self._actions[key][0].dest if key in self._actions else None

    def convert(self, values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Turn keys and values into command-line flags, and name every key or value that is wrong.

        Returns:
            (flags, problems).
        """
        flags: list[str] = []
        problems: list[str] = []
        spelling: dict[str, str] = {}
        for key, value in values.items():
            if key not in self._actions:
                problems.append(unknown_key(key, [*self._actions, *OWN_KEYS]))
                continue
            action, option = self._actions[key]
            if action.dest in spelling:
                problems.append(f"{key}: {spelling[action.dest]} means the same. Give one of them")
                continue
            spelling[action.dest] = key
            try:
                flags += _as_flags(action, option, key, value)
            except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                problems.append(f"{key}: {error}")
        return flags, problems


def _as_flags(action: argparse.Action, option: str, key: str, value: Any) -> list[str]:
    if action.nargs == 0:
        return _as_switch(action, option, key, value)
    if value is None:
        return []
    if action.nargs is None:
        if isinstance(value, list):
            raise ValueError(f"{value!r} is a list, and one value is wanted")
        _check_value(action, value)
        # In one word, since text that starts with a dash would be taken for a flag.
        return [f"{option}={_as_text(value)}"]
    entries = value if isinstance(value, list) else [value]
    if isinstance(action.nargs, int) and len(entries) != action.nargs:
        raise ValueError(f"{value!r} must be a list of {action.nargs} values")
    if action.nargs == "+" and not entries:
        raise ValueError(f"{value!r} must have one value or more")
    for entry in entries:
        _check_value(action, entry)
    return [option, *(_as_text(entry) for entry in entries)]


def _as_switch(action: argparse.Action, option: str, key: str, value: Any) -> list[str]:
    """The spelling of a flag without a value that means what ``key: value`` says."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    if isinstance(action, argparse.BooleanOptionalAction):
        on, off = action.option_strings[0], action.option_strings[-1]
        return [on if value != (option == off) else off]
    is_negation = option.removeprefix("--") != key
    return [option] if value != is_negation else []


def _check_value(action: argparse.Action, value: Any) -> None:
    wanted: Any = action.type or str
    if isinstance(value, dict | list) and wanted not in _WANTED:
        raise ValueError(f"{value!r} is a block or a list, and one value is wanted")
    if wanted is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is not true or false")
        return
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is {_WANTED.get(wanted, 'true or false, and text is wanted')}")
    if wanted is int and not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    if wanted is float:
        _check_number(value)
    parsed = value
    if wanted not in (int, float, str):
        parsed = _parse(action, value)
    if action.choices is not None and parsed not in action.choices:
        raise ValueError(f"{value!r} is none of {_choices(action)}")


_WANTED = {int: "not a whole number", float: "not a number"}


def _check_number(value: Any) -> None:
    # YAML 1.1 reads 1e-4 as text; a number was meant.
    try:
        float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a number") from None


def _parse(action: argparse.Action, value: Any) -> Any:
    """The value as a type of Megatron's own makes it; such types raise whatever they like."""
    convert: Any = action.type
    try:
        return convert(_as_text(value))
    except Exception as error:
        if action.choices is not None:
            raise ValueError(f"{value!r} is none of {_choices(action)}") from None
        raise ValueError(f"{value!r} is not accepted: {error}") from None


def _choices(action: argparse.Action) -> str:
    return ", ".join(str(getattr(choice, "name", choice)) for choice in action.choices or ())


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        # What bool() of a text reads as false is the empty one alone.
        return "True" if value else ""
    return repr(value) if isinstance(value, float) else str(value)
