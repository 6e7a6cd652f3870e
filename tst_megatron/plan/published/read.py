"""Read the data files of this folder and check that every block is what its dataclass says."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tst_megatron.plan.published.records import (
    Ablation,
    Anchor,
    Band,
    Curve,
    Gpu,
    Grid,
    Here,
    Law,
    Pair,
    Published,
    Reset,
    Run,
)
from tst_megatron.system.records import read_text
from tst_megatron.system.strict_yaml import NotYAML, read_yaml

HERE = Path(__file__).parent


@functools.cache
def published() -> Published:
    """Return the numbers that come with this package."""
    return read(HERE)


def read(folder: Path) -> Published:
    """Read a folder of data files.

    Raises:
        ValueError: a file is missing, or a block is not what it should be; names the place.
    """
    paper, hardware = _file(folder, "paper.yaml"), _file(folder, "hardware.yaml")
    laws = _file(folder, "laws.yaml")
    found = Published(
        sources=_file(folder, "sources.yaml"),
        runs=_blocks(Run, paper, "runs", "paper.yaml"),
        pairs=_list(Pair, paper, "pairs", "paper.yaml"),
        resets=_blocks(Reset, paper, "resets", "paper.yaml"),
        curves=_list(Curve, paper, "curves", "paper.yaml"),
        ablation=block(Ablation, paper.get("ablation"), "paper.yaml: ablation"),
        here=block(Here, paper.get("here"), "paper.yaml: here"),
        noise_nats=_number(paper, "noise-nats", "paper.yaml"),
        grids=_blocks(Grid, {"grids": _file(folder, "grids.yaml")}, "grids", "grids.yaml"),
        gpus=_blocks(Gpu, hardware, "gpus", "hardware.yaml"),
        prices_of=str(hardware.get("prices-of")),
        anchors=_list(Anchor, hardware, "mfu", "hardware.yaml"),
        moe_mfu=block(Band, hardware.get("moe-mfu"), "hardware.yaml: moe-mfu"),
        laws=_blocks(Law, laws, "laws", "laws.yaml"),
    )
    _check_references(found)
    return found


def _file(folder: Path, name: str) -> dict[str, Any]:
    repeated: list[str] = []
    text = read_text(folder / name)
    try:
        value = None if text is None else read_yaml(text, repeated.append)
    except NotYAML as error:
        raise ValueError(f"{folder / name}: {error}") from error
    if repeated:
        raise ValueError(f"{folder / name}: {repeated[0]}")
    if not isinstance(value, dict):
        raise ValueError(f"{folder / name}: is missing, or is no block of `key: value` lines")
    return value


def block[T](kind: type[T], value: Any, where: str) -> T:
    """Make a dataclass of a block: every field, of its type, and nothing else.

    Raises:
        ValueError: it is something else; names the place.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where}: is missing, or is no block of `key: value` lines")
    hints = typing.get_type_hints(kind)
    known = {field.name.replace("_", "-"): field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for key, item in value.items():
        if key not in known:
            raise ValueError(f"{where}: {key} is none of {', '.join(known)}")
        if not _is(item, hints[known[key].name]):
            raise ValueError(f"{where}: {key} has the value {item!r}, of the wrong type")
        values[known[key].name] = item
    for key, field in known.items():
        if field.default is dataclasses.MISSING and key not in value:
            raise ValueError(f"{where}: {key} is missing")
    return kind(**values)


def _is(value: Any, hint: Any) -> bool:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_is(value, option) for option in options)
    if origin is typing.Literal:
        return value in options
    if origin is list:
        return isinstance(value, list) and all(_is(item, options[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(
            _is(key, options[0]) and _is(item, options[1]) for key, item in value.items()
        )
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if hint is float else hint)


def _blocks[T](kind: type[T], of: Mapping[str, Any], key: str, file: str) -> dict[str, T]:
    found = of.get(key)
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{file}: {key} is missing, or is no block of blocks")
    return {name: block(kind, value, f"{file}: {key}.{name}") for name, value in found.items()}


def _list[T](kind: type[T], of: Mapping[str, Any], key: str, file: str) -> tuple[T, ...]:
    found = of.get(key)
    if not isinstance(found, list) or not found:
        raise ValueError(f"{file}: {key} is missing, or is no list")
    return tuple(block(kind, each, f"{file}: {key}, {i}") for i, each in enumerate(found, 1))


def _number(of: Mapping[str, Any], key: str, file: str) -> float:
    value = of.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{file}: {key} is no number")
    return float(value)


def _check_references(found: Published) -> None:
    """Check what one block says of another."""
    blocks: list[tuple[str, Any]] = [
        *found.runs.items(),
        *found.grids.items(),
        *found.gpus.items(),
        *found.laws.items(),
        *found.resets.items(),
        *((anchor.name, anchor) for anchor in found.anchors),
        *((curve.model, curve) for curve in found.curves),
        *(("ablation", found.ablation), ("here", found.here), ("moe-mfu", found.moe_mfu)),
    ]
    for name, each in blocks:
        if each.source not in found.sources:
            raise ValueError(f"{name}: its source {each.source} is not in sources.yaml")
    _check_runs(found)
    _check_numbers(found)


def _check_runs(found: Published) -> None:
    for pair in found.pairs:
        for name in (pair.tst, pair.baseline):
            if name not in found.runs:
                raise ValueError(f"pairs: there is no run {name}")
    for curve in found.curves:
        if (len(curve.positions), len(curve.losses)) != (2, 2):
            raise ValueError(f"curves: {curve.model} needs two positions and two losses")


def _check_numbers(found: Published) -> None:
    for name, grid in found.grids.items():
        for fraction, losses in grid.losses.items():
            if len(losses) != len(grid.bag_sizes):
                raise ValueError(
                    f"{name}: r = {fraction} has {len(losses)} losses for {len(grid.bag_sizes)} "
                    "bag sizes"
                )
    for name, law in found.laws.items():
        needed = {"few": law.epochs, "decaying": law.decay_epochs, "nothing": 1.0}[law.repeats]
        if needed is None:
            raise ValueError(f"{name}: repeats are {law.repeats}, and their constant is missing")
