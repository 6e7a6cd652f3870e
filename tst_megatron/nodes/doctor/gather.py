"""Collect the facts: metadata, folders, limits, and answers of processes that import."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import site
import sys
import tomllib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tst_megatron
from tst_megatron.nodes.doctor.facts import Copy, Facts, GPUs, Image, Packages
from tst_megatron.nodes.doctor.gather_machine import machine
from tst_megatron.nodes.doctor.packages import OURS
from tst_megatron.nodes.doctor.probe import DEEP_EP, MODULES, SECONDS, WGRAD, ask
from tst_megatron.system.machine import node, nvidia_smi

IMAGE = Path("/opt/tst_megatron/image.json")
"""File of an image about its packages: {"versions": {distribution: version}, "apex": bool}."""

SECONDS_WITHOUT_DRIVER = 5
"""For nvidia-smi, which without a driver has nothing to wait for."""

QUESTIONS = {
    MODULES["torch"]: "torch",
    MODULES["megatron-core"]: "helpers",
    MODULES["transformer-engine"]: "transformer engine",
    WGRAD: "wgrad",
    DEEP_EP: "deep_ep",
}
"""Question to ask about each module that exists."""


def gather(
    *,
    folder: Path | None,
    with_imports: bool = False,
    image: Path = IMAGE,
    seconds: float = SECONDS,
) -> Facts:
    """Collect all facts about this machine and its software.

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
    driver = node.driver_version()
    seconds = nvidia_smi.SECONDS if driver else SECONDS_WITHOUT_DRIVER
    health = nvidia_smi.ask("gpu", nvidia_smi.FIELDS, seconds=seconds)
    return GPUs(driver=driver, health=health)


# --- packages -------------------------------------------------------------------------------------


def _packages(image: Path) -> Packages:
    requires_python, required = _required(Path(tst_megatron.__file__).parents[1] / "pyproject.toml")
    names, damaged = _named(importlib.metadata.distributions())
    copies, damaged_origins = _copies(names)
    requires, damaged_needs = _requires(required.get("", ()), names)
    user_site = site.getusersitepackages() if site.ENABLE_USER_SITE else None
    return Packages(
        python=platform.python_version(),
        executable=sys.executable,
        requires_python=requires_python,
        required=required,
        copies=copies,
        requires=requires,
        damaged=(*damaged, *damaged_origins, *damaged_needs),
        user_site=user_site if user_site in sys.path else None,
        image=read_image(image),
    )


def _required(project: Path) -> tuple[str, dict[str, tuple[str, ...]]]:
    """Return this project's requirements: from the checkout it runs in, else from its metadata."""
    table = _checkout(project)
    if table is not None:
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


def _checkout(project: Path) -> dict[str, Any] | None:
    """The project table of this project's pyproject.toml; None where the file is another's."""
    try:
        table: dict[str, Any] = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return table if table["name"] == OURS else None
    except (OSError, ValueError, KeyError, TypeError):
        # Some packages leave theirs in site-packages.
        return None


def _applicable(texts: list[str], extra: str) -> tuple[str, ...]:
    """Requirements whose markers hold here, without their markers."""
    found = []
    for requirement in map(Requirement, texts):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            requirement.marker = None
            found.append(str(requirement))
    return tuple(found)


Named = list[tuple[str, Distribution]]
"""Distributions by their normalised names, in the order of Python's path."""


def _named(distributions: Iterable[Distribution]) -> tuple[Named, list[str]]:
    """Distributions that have a name, and which metadata cannot be read."""
    named: Named = []
    damaged = []
    for distribution in distributions:
        try:
            name = distribution.metadata.get("Name")
        except ValueError as error:
            # The class of importlib.metadata keeps its folder to itself.
            damaged.append(f"{getattr(distribution, '_path', 'a distribution')}: {error}")
            continue
        if name:
            named.append((canonicalize_name(name), distribution))
    return named, damaged


def _requires(
    required: Iterable[str], named: Named
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the requirements of each distribution that this project needs, and unreadable ones.

    Other distributions on the machine are left alone: old ones do not follow PEP 508.
    """
    used = dict(reversed(named))
    found: dict[str, tuple[str, ...]] = {}
    damaged, left = [], _names_of(required)
    while left:
        name = left.pop()
        if name in found or name not in used:
            continue
        found[name] = ()
        try:
            found[name] = _applicable(used[name].requires or [], "")
        except ValueError as error:
            damaged.append(f"{name}: {' '.join(str(error).split())}")
        left += _names_of(found[name])
    return found, damaged


def _names_of(requirements: Iterable[str]) -> list[str]:
    return [canonicalize_name(Requirement(text).name) for text in requirements]


def _copies(named: Named) -> tuple[dict[str, tuple[Copy, ...]], list[str]]:
    """Return all copies of each distribution in the order of Python's path, and unreadable ones."""
    copies: dict[str, list[Copy]] = {}
    damaged = []
    for name, distribution in named:
        folder = str(distribution.locate_file(""))
        try:
            folder = _source(distribution) or folder
        except (ValueError, AttributeError, KeyError) as error:
            damaged.append(f"{name} in {folder}: direct_url.json: {error}")
        copy = Copy(version=distribution.metadata.get("Version"), folder=folder)
        known = copies.setdefault(name, [])
        # A folder may be on the path twice.
        if copy not in known:
            known.append(copy)
    return {name: tuple(each) for name, each in copies.items()}, damaged


def _source(distribution: Distribution) -> str | None:
    """The folder that an editable installation is imported from."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return unquote(urlsplit(origin["url"]).path)


def read_image(file: Path) -> Image | None:
    """Return the packages that an image says it was built with; None outside an image."""
    if not file.exists():
        return None
    try:
        said: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        versions = {str(name): str(version) for name, version in said["versions"].items()}
        replaced = {name: tuple(pair) for name, pair in said.get("replaced", {}).items()}
        return Image(versions=versions, has_apex=said.get("apex"), replaced=replaced)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return Image(problem=f"{file}: {type(error).__name__}: {error}")
