"""Write ``versions.json``: packages, device and layouts that the numbers of a run come from."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tst_megatron import __version__
from tst_megatron.system.files import write_beside
from tst_megatron.system.machine.errors import raise_passing
from tst_megatron.system.packages import package_version
from tst_megatron.system.records import Damaged, block_of, read_json

PACKAGES = (
    "torch",
    "megatron-core",
    "transformer-engine",
    "nvidia-modelopt",
    "transformers",
    "sentencepiece",
    "numpy",
)
"""Packages whose versions decide the numbers of a run."""

_LAYOUT = {"after step": int, "layout": dict}


def read_layouts(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """Read the layouts of earlier starts, each with the step after which it came.

    Returns:
        Those that can be read, and what is wrong with the file, if anything is.

    Raises:
        OSError: that cannot be known now.
    """
    try:
        versions = read_json(path)
    except Damaged as error:
        raise_passing(error)
        return [], str(error)
    if versions is None:
        return [], None
    said = versions.get("layouts", [])
    if not isinstance(said, list):
        return [], "says no 'layouts' that fit"
    layouts = [_layout(entry) for entry in said]
    kept = [entry for entry in layouts if entry is not None]
    num_lost = len(layouts) - len(kept)
    if num_lost:
        return kept, f"says {num_lost} of {len(layouts)} layouts that are none"
    return kept, None if "tst_megatron" in versions else "says no versions"


def _layout(entry: Any) -> dict[str, Any] | None:
    try:
        return block_of(entry, _LAYOUT)
    except Damaged:
        return None


def write_versions(
    path: Path, *, device: str, world_size: int, layout: Mapping[str, Any], step: int
) -> None:
    """Record what a start's numbers are made with.

    Args:
        path: of the file.
        device: the name of the accelerator.
        world_size: ranks of this start.
        layout: how this start is cut. Those of earlier starts stay, each with the step after
            which it came, as far as their steps do.
        step: the step that this start begins after.
    """
    before, _ = read_layouts(path)
    layouts = [entry for entry in before if entry["after step"] < step]
    if not layouts or layouts[-1]["layout"] != layout:
        layouts.append({"after step": step, "layout": dict(layout)})
    versions = {
        "tst_megatron": __version__,
        "python": platform.python_version(),
        **{package: package_version(package) for package in PACKAGES},
        "device": device,
        "world size": world_size,
        "layouts": layouts,
    }
    _write(path, versions)


def write_layouts(path: Path, layouts: list[dict[str, Any]]) -> None:
    """Keep what could be read of a damaged file; the next start says the rest again."""
    _write(path, {"tst_megatron": __version__, "layouts": layouts})


def _write(path: Path, versions: Mapping[str, Any]) -> None:
    write_beside(path, json.dumps(versions, indent=2) + "\n")


def newest_layout_after(path: Path) -> int:
    """Return the step after which the newest start's ranks and layout came; 0 if nothing says."""
    try:
        layouts, _ = read_layouts(path)
    except OSError:
        return 0
    return int(layouts[-1]["after step"]) if layouts else 0
