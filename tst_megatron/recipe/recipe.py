"""Read a recipe: one short YAML file becomes Megatron's arguments and the ``tst:`` block.

A recipe's keys are Megatron's own flags without the dashes (``num-layers: 32``), and four of ours:

    base:     another recipe to build on, as a path beside this one
    profile:  settings that are left to the machine (``profiles.py``); ``cpu`` needs no GPU
    data:     folders made by ``tst-megatron data prepare``, each with its weight
    tst:      token superposition (``tst_config.py``)

Later values override earlier ones: the base, then the recipe, then ``key=value`` from the command
line, where a dot reaches into a block (``tst.bag-size=4``). A file may have a key once. An empty
``tst:`` or ``data:`` leaves that of the base unchanged. ``system/strict_yaml.py`` says what a plain
word means. ``check/plain.py`` and ``training/check/check_recipe.py`` decide whether the result
makes sense.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tst_megatron.recipe.profiles import PROFILES
from tst_megatron.recipe.tst_config import TSTConfig, read_tst_block
from tst_megatron.schedule import Schedule, resolve_phases
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
    """A recipe has problems; the message lists all of them, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        """Keep the problems, each a sentence for a person, with values that others wrote."""
        self.problems = tuple(_printable(problem) for problem in problems)
        super().__init__("\n".join(self.problems))


def _printable(problem: str) -> str:
    """Make a sentence safe for a terminal: cut long values, spell control characters out."""
    if len(problem) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        problem = f"{problem[:half]} [...] {problem[-half:]}"
    return "".join(
        letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1]
        for letter in problem
    )


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
    """Everything that could not be read. The other fields have the rest."""

    def schedule(self) -> Schedule:
        """Return the phases, each with its number of steps.

        Raises:
            ValueError: the schedule breaks rules; the message names all of them.
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
        """Return everything that decides the run, as plain values for a file or a comparison."""
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
    tst = read_tst_block(_block(merged.pop("tst", None)), problems)
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
    """Return the keys of one file."""
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
