"""Turn recipes into flat keys and back: what differs between two of them, as words and as a file.

A flat key has a dot into the ``tst:`` block (``tst.bag-size``), as overrides on a command line.
``data`` is one key: runs either read the same text or not.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tst_megatron.recipe.recipe import Recipe
from tst_megatron.recipe.tst_config import TSTConfig
from tst_megatron.sweep.arms import Keys
from tst_megatron.system.strict_yaml import plain_value
from tst_megatron.training.run.identity import OF_THE_PHASES

PATH_KEYS = (
    *("data-cache-path", "pretrained-checkpoint", "wandb-save-dir"),
    *("heterogeneous-layers-config-path", "te-precision-config-file", "tp-comm-overlap-cfg"),
    "nccl-communicator-config-path",
)
"""Megatron's keys whose values are paths, which may be relative to the current folder."""

_SIMPLE = re.compile(r"[A-Za-z][A-Za-z0-9_./()+-]*")


def from_anywhere(recipe: Recipe) -> Recipe:
    """Return a recipe whose paths are absolute, so that it may be used from another folder."""
    megatron = {
        key: os.path.abspath(value) if key in PATH_KEYS and isinstance(value, str) else value
        for key, value in recipe.megatron.items()
    }
    data = {Path(os.path.abspath(path)): weight for path, weight in recipe.data.items()}
    return replace(recipe, megatron=megatron, data=data)


def flat_keys(recipe: Recipe) -> Keys:
    """Return every key of a recipe that decides something, with its value.

    Keys of the ``tst:`` block that have their default are left out, and so is an empty profile.
    """
    defaults = TSTConfig().as_keys()
    keys: Keys = dict(recipe.megatron)
    if recipe.profile is not None:
        keys["profile"] = recipe.profile
    keys["data"] = {str(path): weight for path, weight in recipe.data.items()}
    for key, value in recipe.tst.as_keys().items():
        if value != defaults[key]:
            keys[f"tst.{key}"] = value
    return keys


def differences(base: Mapping[str, Any], other: Mapping[str, Any]) -> Keys:
    """Return the keys that make ``other`` of ``base``; a key that is not there gets its default.

    Args:
        base: as ``flat_keys`` gives them.
        other: likewise.
    """
    defaults = {f"tst.{key}": value for key, value in TSTConfig().as_keys().items()}
    return {
        key: other.get(key, defaults.get(key))
        for key in (*base, *(key for key in other if key not in base))
        if base.get(key, defaults.get(key)) != other.get(key, defaults.get(key))
    }


def branch_differences(trunk: Recipe, own: Recipe) -> Keys:
    """Return the keys that make a branch of its trunk, for ``tst-megatron branch``.

    That command keeps a switch at its step if ``train-iters`` changes, also where the recipe gives
    a share of the steps. So all keys of the phases are named where the length or the phases differ.
    """
    keys = differences(flat_keys(trunk), flat_keys(own))
    block = {f"tst.{key}": own.tst.as_keys()[key] for key in OF_THE_PHASES}
    has_superposition = any(bag_size > 1 for bag_size, _ in own.tst.entries())
    if has_superposition and ("train-iters" in keys or keys.keys() & block.keys()):
        keys |= block
    return keys


def words_of(keys: Mapping[str, Any]) -> list[str]:
    """Return keys as words of a command line, ``key=value`` each, in YAML on one line."""
    return [f"{key}={_in_line(value)}" for key, value in keys.items()]


def file_of(keys: Mapping[str, Any], *, comment: str, base: str | None = None) -> str:
    """Return the text of a recipe file.

    Args:
        keys: flat ones; at least one if there is no base.
        comment: of one or more lines, without ``#``.
        base: the path of another recipe beside the file.
    """
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    if base is not None:
        lines.append(f"base: {base}")
    tst = {key.removeprefix("tst."): keys[key] for key in keys if key.startswith("tst.")}
    plain = {key: keys[key] for key in keys if not key.startswith("tst.") and key != "data"}
    if base is not None and keys:
        lines.append("")
    lines += [f"{key}: {_in_line(value)}" for key, value in plain.items()]
    for name, block in (("data", keys.get("data")), ("tst", tst)):
        if block:
            lines.append(f"{name}:")
            lines += [f"  {_in_line(key)}: {_in_line(value)}" for key, value in block.items()]
    return "\n".join(lines) + "\n"


def _in_line(value: Any) -> str:
    """Return a value as YAML on one line, which ``read_yaml`` reads as the same value."""
    if isinstance(value, str):
        is_plain = _SIMPLE.fullmatch(value) and plain_value(value) == value
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(_in_line, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_in_line(k)}: {_in_line(v)}' for k, v in value.items())}}}"
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: ".inf", -math.inf: "-.inf"}.get(value, ".nan")
    return json.dumps(value)
