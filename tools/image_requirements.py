"""What the image installs: the locked packages less those that the base brings and must keep.

    python3 image_requirements.py uv              uv with its hashes, as pip reads them
    python3 image_requirements.py lists --uv UV   dependencies.txt, build.txt and base.json

Runs on the base image before anything is installed, so it needs the standard library alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TRANSFORMER_ENGINE = "transformer-engine"
KEPT = (
    "apex",
    "flash-attn",
    # The base's extensions were compiled against it.
    "numpy",
    "pytorch-triton",
    "torch",
    "torchvision",
    TRANSFORMER_ENGINE,
    "transformer-engine-cu12",
    "transformer-engine-cu13",
    "transformer-engine-torch",
    "triton",
)
"""Packages that stay as the base has them, with all that only they need.

NVIDIA compiles them against each other. A requirement cannot say so: its torch is a pre-release
such as 2.13.0a0, which does not satisfy `torch>=2.13` (PEP 440), and a resolver would replace it.
"""


TE_MODULE = "transformer_engine.pytorch"
IMPORTED_FROM_THE_BASE = ("torchvision", TE_MODULE, "flash_attn")
"""What Megatron imports of the base where it is there, beside torch."""


def normalised(name: str) -> str:
    """A package's name in the spelling of uv.lock (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Version of every package that this Python would import."""
    found: dict[str, str] = {}
    for each in importlib.metadata.distributions():
        name, version = each.metadata.get("Name"), each.metadata.get("Version")
        # The rest of a removed package has neither.
        if name and version:
            # The first on the path is the one that is imported.
            found.setdefault(normalised(name), version)
    return found


def check_python(lock: Mapping[str, Any], python: str) -> None:
    """Raise ValueError where the lock is not for this version of Python."""
    wanted = lock["requires-python"]
    if not f"{python}.".startswith(wanted.removeprefix("==").removesuffix("*")):
        raise ValueError(
            f"the base image has Python {python}, and uv.lock is for {wanted}. Take a base with "
            "that Python (--build-arg BASE_IMAGE=...)"
        )


def pinned(lock: Mapping[str, Any], name: str) -> str:
    """A locked package with the hash of each of its wheels, as a line that pip reads."""
    for package in lock["package"]:
        if package["name"] == name:
            files = [
                *package.get("wheels", []),
                *([package["sdist"]] if "sdist" in package else []),
            ]
            hashes = [f"--hash={file['hash']}" for file in files]
            return " ".join([f"{name}=={package['version']}", *hashes]) + "\n"
    raise ValueError(
        f"{name} is not in uv.lock. Put it into a group of pyproject.toml, run uv lock"
    )


def exported(uv: Path, project: Path, arguments: Sequence[str]) -> str:
    """A part of uv.lock as requirements with hashes, without the project itself."""
    command = [str(uv), "export", "--frozen", "--offline", "--no-header", "--no-annotate"]
    command += ["--no-emit-project", "--project", str(project), *arguments]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise RuntimeError(f"uv cannot read uv.lock:\n{asked.stderr.strip()}")
    return asked.stdout


def dependencies(uv: Path, project: Path, base: Mapping[str, str]) -> str:
    """What the base lacks of the project and all its extras, as requirements with hashes.

    Transformer Engine is never among it: it comes from the base, or it would be compiled here.

    Args:
        uv: the program.
        project: the folder with pyproject.toml and uv.lock.
        base: version of each package that the base has.
    """
    kept = sorted({TRANSFORMER_ENGINE} | (base.keys() & set(KEPT)))
    arguments = ["--no-default-groups", "--all-extras"]
    for name in kept:
        arguments += ["--prune", name]
    return without(exported(uv, project, arguments), base)


def without(requirements: str, base: Mapping[str, str]) -> str:
    """Requirements less those that the base has in the same version."""
    kept = []
    for each in re.split(r"^(?=\S)", requirements, flags=re.MULTILINE):
        name, _, rest = each.partition("==")
        if rest and base.get(name) != rest.split()[0]:
            kept.append(each)
    return "".join(kept)


def torch_version() -> str | None:
    """What torch says of itself; None where the base has none."""
    if "torch" not in installed():
        return None
    command = [sys.executable, "-c", "import torch; print(torch.__version__)"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise RuntimeError(f"the base's torch cannot be imported:\n{asked.stderr[-2000:]}")
    return asked.stdout.split()[-1]


def can_import(module: str) -> bool:
    """Whether a module can be imported, asked in a process of its own: an import may end it."""
    command = [sys.executable, "-c", f"import {module}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def write_lists(uv: Path, project: Path, output: Path) -> None:
    """Write what the later stages of the Dockerfile read."""
    base = installed()
    # Without a driver some cannot be imported, and that is no fault of what is laid over them.
    imported = [module for module in IMPORTED_FROM_THE_BASE if can_import(module)]
    before = {"torch": torch_version(), "distributions": base, "imported": imported}
    (output / "base.json").write_text(json.dumps(before, indent=1, sort_keys=True) + "\n")
    needed = dependencies(uv, project, base)
    (output / "dependencies.txt").write_text(needed)
    (output / "build.txt").write_text(exported(uv, project, ["--only-group", "image"]))
    kept = [f"{name} {version}" for name, version in sorted(base.items()) if name in KEPT]
    print(f"kept from the base: {', '.join(kept) or 'nothing'}")
    print(f"to install: {needed.count(chr(10) + '    --hash')} files")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("uv", "lists"))
    parser.add_argument("--uv", type=Path, help="the program that reads uv.lock")
    parser.add_argument("--project", type=Path, default=Path())
    parser.add_argument("--output", type=Path, default=Path())
    options = parser.parse_args()
    lock = tomllib.loads((options.project / "uv.lock").read_text(encoding="utf-8"))
    try:
        check_python(lock, platform.python_version())
        if options.what == "uv":
            sys.stdout.write(pinned(lock, "uv"))
        else:
            write_lists(options.uv, options.project, options.output)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
