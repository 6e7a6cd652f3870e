"""What the image has: written down when it is built, then checked there by a user without a name.

    python image_record.py write image.json --base base.json --lock uv.lock ...
    python image_record.py check image.json

Runs with the image's Python. `tst-megatron doctor` compares a running image with the record.
"""

from __future__ import annotations

import argparse
import getpass
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from image_requirements import KEPT, TE_MODULE, TRANSFORMER_ENGINE, installed, normalised
from packaging.requirements import InvalidRequirement, Requirement

PROJECT = "tst-megatron"
EXTRA_OF_THE_BASE = "gpu"
"""Transformer Engine, which the base brings or nobody."""
APEX = "fused_weight_gradient_mlp_cuda"
"""Apex's one extension that Megatron's output layer needs."""
WITH_APEX = "profiles may fuse the accumulation of gradients: tuned, mxfp8 and fp8 do"
WITHOUT_APEX = (
    "without Apex's extension tuned, mxfp8 and fp8 need gradient-accumulation-fusion=false "
    "behind the recipe; bf16 has it"
)
FACTS = ("base_image", "revision", "version", "created", "lock_sha256")
"""What only the builder knows."""
LIBRARIES = """
import json, torch
found = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
if torch.version.cuda:
    found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
print(json.dumps(found))
"""
MEGATRON = """
from tst_megatron.megatron.cpu import host
if host.is_needed():
    host.install()
import tst_megatron.megatron.loop
"""
"""Imports all that training does, with or without a GPU."""
LOCKED = "dependencies.txt"
"""Beside the record: what was installed, as image_requirements.py took it from uv.lock."""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run a line of Python in a process of its own, since an import may end it."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def last_line(process: subprocess.CompletedProcess[str]) -> str:
    """What a failed process said at the end."""
    return (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]


def ours() -> Requirement:
    """The project with every extra that the image has."""
    provided = importlib.metadata.metadata(PROJECT).get_all("Provides-Extra") or []
    return Requirement(f"{PROJECT}[{','.join(sorted(set(provided) - {EXTRA_OF_THE_BASE}))}]")


def needs(requirement: Requirement) -> list[Requirement]:
    """What an installed package with these extras needs on this machine."""
    found = []
    for line in importlib.metadata.requires(requirement.name) or []:
        try:
            each = Requirement(line)
        except InvalidRequirement:
            # Of an old package of the base's; no installer reads it any more.
            continue
        extras = ["", *sorted(requirement.extras)]
        if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in extras):
            found.append(each)
    return found


def closure(root: Requirement, kept: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Version of a package and of all that it needs, and each need that is not met.

    Args:
        root: the package, with extras.
        kept: packages of the base, whose own needs are the base's.
    """
    there, versions, problems = installed(), {}, []
    waiting, seen = [(root, "the image")], set()
    while waiting:
        each, by = waiting.pop()
        name = normalised(each.name)
        version = there.get(name)
        # A pre-release of NVIDIA's was compiled for the base, so it counts.
        if version is None or not each.specifier.contains(version, prereleases=True):
            problems.append(f"{by} needs {each}, and the image has {version or 'none'}")
        if version is None or (name, *sorted(each.extras)) in seen:
            continue
        seen.add((name, *sorted(each.extras)))
        versions[name] = version
        if name not in kept:
            waiting += [(need, name) for need in needs(each)]
    return versions, sorted(set(problems))


def has_apex() -> tuple[bool, str]:
    """Whether Apex's extension can be imported here, and what follows for profiles."""
    asked = run_python(f"import torch, {APEX}")
    if asked.returncode == 0:
        return True, WITH_APEX
    return False, f"{WITHOUT_APEX} ({last_line(asked)})"


def record_of(base: Mapping[str, Any], lock: bytes, facts: Mapping[str, str]) -> dict[str, Any]:
    """The record of this image.

    Args:
        base: what image_requirements.py noted of the base image.
        lock: uv.lock as it was installed from.
        facts: FACTS, each with a value.
    Raises:
        ValueError: the builder named the hash of another lock.
    """
    lock_sha256 = hashlib.sha256(lock).hexdigest()
    if facts["lock_sha256"] not in ("", lock_sha256):
        raise ValueError(
            f"LOCK_SHA256 is {facts['lock_sha256']}, and uv.lock has {lock_sha256}. Leave it out, "
            "or take it from tools/image_build.sh"
        )
    before, now = base["distributions"], installed()
    kept = {name: version for name, version in before.items() if name in KEPT}
    libraries = json.loads(run_python(LIBRARIES).stdout.splitlines()[-1])
    apex, note = has_apex()
    return {
        **facts,
        "lock_sha256": lock_sha256,
        "python": platform.python_version(),
        "torch_of_base": base["torch"],
        "apex": apex,
        "profile_note": note,
        "kept": kept,
        "replaced": {
            name: [version, now[name]]
            for name, version in before.items()
            if now.get(name) not in (None, version)
        },
        "imported_in_base": base["imported"],
        "versions": dict(sorted((closure(ours(), kept)[0] | kept).items())),
        "libraries": libraries,
    }


def changed(record: Mapping[str, Any]) -> list[str]:
    """What must be as the base had it, and is not."""
    now = installed()
    problems = [
        f"{name} was {version} in the base image and is {now.get(name, 'gone')} now"
        for name, version in record["kept"].items()
        if now.get(name) != version
    ]
    asked = run_python("import torch; print(torch.__version__)")
    found = asked.stdout.split()[-1] if asked.returncode == 0 else last_line(asked)
    # A base without torch has the locked one.
    if found != record["torch_of_base"] and (record["torch_of_base"] or asked.returncode):
        problems.append(f"torch.__version__ was {record['torch_of_base']} in the base: {found}")
    return problems


def not_as_locked(requirements: str) -> list[str]:
    """Packages whose version is not the one that was to be installed.

    Args:
        requirements: lines `NAME==VERSION ; MARKER` with hashes behind them.
    """
    now, problems = installed(), []
    for line in re.findall(r"^[^\s#].*", requirements, flags=re.MULTILINE):
        each = Requirement(line.rstrip("\\ "))
        version = now.get(normalised(each.name))
        if each.marker and not each.marker.evaluate():
            continue
        if version is None or not each.specifier.contains(version, prereleases=True):
            problems.append(
                f"uv.lock has {each.name}{each.specifier}, and the image has {version or 'none'}: "
                "a layer of an older build was used. Build again with --no-cache"
            )
    return problems


def broken_by_ours(kept: Collection[str], replaced: Mapping[str, Sequence[str]]) -> list[str]:
    """Needs of kept packages that the base met, and that what lies over it does not meet.

    Args:
        kept: packages of the base that must work as they did.
        replaced: version in the base and version now, of packages of which ours come first.
    """
    there, problems = installed(), set()
    waiting, seen = sorted(kept), set(kept)
    while waiting:
        by = waiting.pop()
        for each in needs(Requirement(by)):
            name = normalised(each.name)
            before, now = replaced.get(name, ("", ""))
            if now and each.specifier.contains(before, prereleases=True) > each.specifier.contains(
                now, prereleases=True
            ):
                problems.add(
                    f"{by} of the base needs {each}: the base has {before}, and uv.lock lays "
                    f"{now} over it. Add {name} to KEPT in tools/image_requirements.py, or lock "
                    "a version that fits"
                )
            if name in there and name not in seen:
                seen.add(name)
                waiting.append(name)
    return sorted(problems)


def without_megatron(record: Mapping[str, Any]) -> list[str]:
    """That what training imports cannot be imported, with the reason."""
    asked = run_python(MEGATRON)
    if not asked.returncode:
        return []
    problem = f"Megatron cannot be imported: {last_line(asked)}"
    if TRANSFORMER_ENGINE in record["kept"] and TE_MODULE not in record["imported_in_base"]:
        print(f"note: {problem}. Nor could Transformer Engine in the base: is there a driver?")
        return []
    return [problem]


def modules_of(requirements: Sequence[Requirement]) -> list[str]:
    """Names under which packages are imported; a package of data alone has none."""
    wanted = {normalised(each.name) for each in requirements}
    found = []
    for module, packages in importlib.metadata.packages_distributions().items():
        # The rest of a removed package has no name.
        names = set(map(normalised, filter(None, packages)))
        if wanted & names and module.isidentifier() and module[0] != "_":
            found.append(module)
    return sorted(found)


def not_importable(modules: Sequence[str]) -> list[str]:
    """Modules whose import fails, with the reason."""
    code = "import sys\nfor name in sys.argv[1:]:\n  print(name, flush=True)\n  __import__(name)"
    problems, left = [], list(modules)
    while left:
        command = [sys.executable, "-c", code, *left]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        tried = [line for line in asked.stdout.splitlines() if line in left]
        if asked.returncode == 0:
            return problems
        problems.append(f"{tried[-1] if tried else left[0]} cannot be imported: {last_line(asked)}")
        left = left[len(tried) or 1 :]
    return problems


def not_writable(environment: Mapping[str, str]) -> list[str]:
    """Folders that libraries write to, and this user cannot."""
    folders = {"HOME": environment.get("HOME", "/"), "temporary files": tempfile.gettempdir()}
    problems = []
    for name, folder in folders.items():
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            problems.append(f"user {os.getuid()} cannot write to {folder} ({name}): {error}")
    return problems


def nameless() -> list[str]:
    """That the user has no name, which torch's compiler asks for when it is imported."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        return [f"user {os.getuid()} has no name: set LNAME, which the Dockerfile does"]
    return []


def problems_of(
    record: Mapping[str, Any], locked: str, environment: Mapping[str, str]
) -> list[str]:
    """Everything that is wrong with this image for the user who asks."""
    modules = [*modules_of([ours(), *needs(ours())]), f"{PROJECT.replace('-', '_')}.cli"]
    return [
        *changed(record),
        *not_as_locked(locked),
        *closure(ours(), record["kept"])[1],
        *broken_by_ours(record["kept"], record["replaced"]),
        *not_importable([*modules, *record["imported_in_base"]]),
        *without_megatron(record),
        *not_writable(environment),
        *nameless(),
    ]


def write(options: argparse.Namespace) -> None:
    """Write the record of this image, whole or not at all."""
    base = json.loads(options.base.read_text(encoding="utf-8"))
    facts = {name: getattr(options, name) for name in FACTS}
    record = record_of(base, options.lock.read_bytes(), facts)
    new = options.record.with_name(f".{options.record.name}")
    new.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    new.replace(options.record)
    print(f"{options.record}: {len(record['versions'])} versions, apex: {record['apex']}")
    print(record["profile_note"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("write", "check"))
    parser.add_argument("record", type=Path)
    parser.add_argument("--base", type=Path, help="base.json of image_requirements.py")
    parser.add_argument("--lock", type=Path, help="uv.lock")
    for name in FACTS:
        parser.add_argument(f"--{name.replace('_', '-')}", default="")
    options = parser.parse_args()
    if options.what == "write":
        try:
            write(options)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0
    record = json.loads(options.record.read_text(encoding="utf-8"))
    locked = options.record.with_name(LOCKED).read_text(encoding="utf-8")
    problems = problems_of(record, locked, os.environ)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"user {os.getuid()}: {len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    raise SystemExit(main())
