"""Collects the facts: metadata, folders, limits, and what processes of their own import."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import site
import sys
import tomllib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tst_megatron
from tst_megatron.cluster import node, nvidia_smi
from tst_megatron.doctor.facts import Copy, Facts, GPUs, Image, Packages
from tst_megatron.doctor.gather_machine import machine
from tst_megatron.doctor.packages import OURS
from tst_megatron.doctor.probe import DEEP_EP, MODULES, SECONDS, WGRAD, ask

IMAGE = Path("/opt/tst_megatron/image.json")
"""What an image was built with: {"versions": {distribution: version}, "apex": bool}."""

QUESTIONS = {
    MODULES["torch"]: "torch",
    MODULES["megatron-core"]: "helpers",
    MODULES["transformer-engine"]: "transformer engine",
    WGRAD: "wgrad",
    DEEP_EP: "deep_ep",
}
"""What is asked of a module that is there."""


def gather(
    *,
    folder: Path | None,
    with_imports: bool = False,
    image: Path = IMAGE,
    seconds: float = SECONDS,
) -> Facts:
    """Everything that is to be known.

    Args:
        folder: that of the run, whose disk is looked at; it need not be there yet.
        with_imports: also import Megatron, which takes longer than all else together.
        image: the file in which an image says what it was built with.
        seconds: after which a process that imports something hangs.
    """
    modules = ask("modules", seconds=seconds)
    wanted = [question for module, question in QUESTIONS.items() if module in modules.answers]
    has_both = {"torch", "helpers"} <= set(wanted)
    # The longest first.
    wanted = [*(["megatron"] if has_both and with_imports else []), *wanted]
    with ThreadPoolExecutor(max_workers=len(QUESTIONS) + 1) as pool:
        probes = pool.map(partial(ask, seconds=seconds), wanted)
        # While they are at it.
        packages, gpus = _packages(image), _gpus()
        here = machine(folder, Path(tst_megatron.__file__))
        answers = dict(zip(wanted, probes, strict=True))
    return Facts(packages=packages, probes={"modules": modules, **answers}, gpus=gpus, machine=here)


def _gpus() -> GPUs:
    return GPUs(driver=node.driver_version(), health=nvidia_smi.ask("gpu", nvidia_smi.FIELDS))


# --- packages -------------------------------------------------------------------------------------


def _packages(image: Path) -> Packages:
    requires_python, required = _required(Path(tst_megatron.__file__).parents[1] / "pyproject.toml")
    distributions = list(importlib.metadata.distributions())
    user_site = site.getusersitepackages() if site.ENABLE_USER_SITE else None
    return Packages(
        python=platform.python_version(),
        requires_python=requires_python,
        required=required,
        copies=_copies(distributions),
        requires=_requires(distributions),
        user_site=user_site if user_site in sys.path else None,
        image=read_image(image),
    )


def _required(project: Path) -> tuple[str, dict[str, tuple[str, ...]]]:
    """What this project requires: by its checkout if it runs in one, else by its metadata."""
    if project.exists():
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        texts = {"": table["dependencies"], **table["optional-dependencies"]}
        return table["requires-python"], {
            extra: _applicable(each, extra) for extra, each in texts.items()
        }
    try:
        metadata = importlib.metadata.metadata(OURS)
    except importlib.metadata.PackageNotFoundError:
        return "", {}
    lines = metadata.get_all("Requires-Dist") or []
    always = _applicable(lines, "")
    required = {"": always}
    for extra in metadata.get_all("Provides-Extra") or []:
        required[extra] = tuple(t for t in _applicable(lines, extra) if t not in always)
    return metadata.get("Requires-Python") or "", required


def _applicable(texts: list[str], extra: str) -> tuple[str, ...]:
    """Requirements whose markers hold here, without their markers."""
    found = []
    for requirement in map(Requirement, texts):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            requirement.marker = None
            found.append(str(requirement))
    return tuple(found)


def _requires(distributions: list[Distribution]) -> dict[str, tuple[str, ...]]:
    """What each distribution that is used requires."""
    found: dict[str, tuple[str, ...]] = {}
    for distribution in distributions:
        name = canonicalize_name(distribution.metadata.get("Name") or "")
        if name not in found:
            found[name] = _applicable(distribution.requires or [], "")
    return found


def _copies(distributions: list[Distribution]) -> dict[str, tuple[Copy, ...]]:
    """Every distribution on Python's path, in its order."""
    copies: dict[str, list[Copy]] = {}
    for distribution in distributions:
        name = distribution.metadata.get("Name")
        if not name:
            continue
        version = distribution.metadata.get("Version")
        copy = Copy(version=version, folder=_folder(distribution))
        known = copies.setdefault(canonicalize_name(name), [])
        # A folder may be on the path twice.
        if copy not in known:
            known.append(copy)
    return {name: tuple(each) for name, each in copies.items()}


def _folder(distribution: Distribution) -> str:
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return unquote(urlsplit(origin["url"]).path)
    return str(distribution.locate_file(""))


def read_image(file: Path) -> Image | None:
    """What an image says that it was built with; None outside of one."""
    if not file.exists():
        return None
    try:
        said: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        versions = {str(name): str(version) for name, version in said["versions"].items()}
        return Image(versions=versions, has_apex=said.get("apex"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return Image(problem=f"{file}: {type(error).__name__}: {error}")
