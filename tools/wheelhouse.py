"""Collect in one folder what a machine without a network needs; tools/wheelhouse.sh runs it.

    wheelhouse.sh FOLDER [--no-dev] [--gpu] [--list]

What is collected is uv.lock for this platform, and nothing else: one wheel for each package, with
the sum that the lock has, and the project's own. A package that has no wheel is built here from
its locked source; the exceptions are those that pyproject.toml has `dependency-metadata` for, whose
build needs more than this machine may have: their wheel is used if somebody puts it there.

`requirements.txt` and `SHA256SUMS` are written last: a folder without them is not finished.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fetch_wheels import SCRATCH, Package, build, fetch_all, refuse_small_disk, sum_of
from install_wheels import PLATFORM, REQUIREMENTS, this_platform
from packaging.markers import Marker
from packaging.tags import Tag, sys_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from tst_megatron.system.files import copy_beside, write_beside

ROOT = Path(__file__).resolve().parents[1]
INSTALLER = Path(__file__).with_name("install_wheels.py")
SUMS, README, INSTALL = "SHA256SUMS", "README", "install.py"
GLIBC_OF_OLD_TAGS = {"1": (2, 5), "2010": (2, 12), "2014": (2, 17)}
"""What manylinux meant before its tags said it (PEP 600)."""
READ_ME = """\
Wheels of tst-megatron and of everything that it needs, as its uv.lock has them.

They are for Python {python} on {system} {machine}, glibc {glibc} or newer. No network is needed:

    sha256sum --check --quiet SHA256SUMS
    python{python} install.py VENV
    VENV/bin/tst-megatron --help

In a checkout of the sources, so that VENV uses those:

    python{python} THIS_FOLDER/install.py .venv --editable .
    make test-fast WHEELS=THIS_FOLDER

docs/offline.md has the rest.
"""
NOT_BUILT = """\
{names}: locked as a source whose build needs torch and a CUDA toolkit. It is not built here, and
without it the folder would install what cannot be imported: its list is not written. Build it on a
machine with a CUDA toolkit and a network,

    tools/wheelhouse.sh {folder}    # without --gpu
    python3 {folder}/install.py scratch-venv
    scratch-venv/bin/pip install wheel ninja
    scratch-venv/bin/pip wheel {names} --no-deps --no-build-isolation --wheel-dir {folder}

and start this command again: it takes that wheel. Or use an image that has it (docs/offline.md)"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tools/wheelhouse.sh", description=__doc__.partition(";")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-dev", action="store_true", help="without what tests need")
    parser.add_argument("--gpu", action="store_true", help="with Transformer Engine")
    parser.add_argument("--list", action="store_true", help="name the files and fetch nothing")
    options = parser.parse_args()
    try:
        document = exported(with_dev=not options.no_dev, with_gpu=options.gpu)
        packages = of_platform(document["packages"], list(sys_tags()))
        if options.list:
            print("\n".join(package.filename for package in packages))
        else:
            collect(packages, options.folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        print(f"tools/wheelhouse.sh: {error}", file=sys.stderr)
        return 1
    return 0


def exported(*, with_dev: bool, with_gpu: bool) -> dict[str, Any]:
    """What uv.lock has for these parts, for all platforms, as uv exports it (PEP 751).

    Raises:
        RuntimeError: uv cannot read the lock.
    """
    command = [os.environ.get("UV", "uv"), "export", "--frozen", "--offline", "--no-emit-project"]
    command += ["--project", str(ROOT), "--format", "pylock.toml", "--group", "wheelhouse"]
    command += ["--all-extras", *([] if with_gpu else ["--no-extra", "gpu"])]
    command += [] if with_dev else ["--no-dev"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"uv cannot read uv.lock:\n{done.stderr}")
    return tomllib.loads(done.stdout)


def of_platform(packages: Iterable[dict[str, Any]], tags: Sequence[Tag]) -> list[Package]:
    """The packages that this platform takes, each with its best wheel or else its source.

    Args:
        packages: ``packages`` of a pylock.toml.
        tags: of the platform, best first.
    Raises:
        ValueError: packages that have neither.
    """
    found, without = [], []
    for package in packages:
        if "marker" in package and not Marker(package["marker"]).evaluate():
            continue
        file = best_wheel(package.get("wheels", []), tags) or package.get("sdist")
        name = f"{package['name']} {package['version']}"
        if file is None:
            without.append(name)
            continue
        filename = filename_of(file)
        sums, size = file["hashes"], file["size"]
        found.append(Package(package["name"], package["version"], filename, sums["sha256"], size))
    if without:
        here = f"Python {platform.python_version()} on {platform.platform()}"
        raise ValueError(f"{', '.join(without)}: uv.lock has no file for {here}, and no source")
    return sorted(found, key=lambda package: package.name)


def best_wheel(wheels: Iterable[dict[str, Any]], tags: Sequence[Tag]) -> dict[str, Any] | None:
    """The wheel whose tag comes first among those of the platform."""
    ranks = {tag: rank for rank, tag in enumerate(tags)}
    ranked = []
    for wheel in wheels:
        known = [ranks[tag] for tag in parse_wheel_filename(filename_of(wheel))[3] if tag in ranks]
        if known:
            ranked.append((min(known), wheel))
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def filename_of(file: dict[str, Any]) -> str:
    """The name of a locked file, which is the end of its address."""
    return str(file["url"]).rpartition("/")[2].replace("%2B", "+")


def collect(packages: Sequence[Package], folder: Path) -> None:
    """Bring a folder to exactly these packages and the project's own wheel.

    Raises:
        RuntimeError: a fetched file is not the locked one; the network, the disk or a build fails;
            a package is neither built here nor there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recorded = recorded_sums(folder)
    wheels = [package for package in packages if package.is_wheel]
    missing = [each for each in wheels if sum_of(folder / each.filename) != each.sha256]
    print(f"{len(wheels) - len(missing)} of {len(wheels)} locked wheels are there", flush=True)
    refuse_small_disk(missing, folder)
    fetch_all(missing, folder)
    files = [folder / package.filename for package in wheels]
    absent = []
    for package in packages:
        if not package.is_wheel:
            found = wheel_of_source(package, folder, recorded)
            files += [found] if found else []
            absent += [] if found else [f"{package.name}=={package.version}"]
    if absent:
        text = NOT_BUILT.format(names=" ".join(absent), folder=folder)
        raise RuntimeError("\n".join([text, *wheels_of_another_platform(packages, folder)]))
    print("building the project", flush=True)
    files.append(build(["--no-index", str(ROOT)], folder))
    finish(folder, files, recorded)
    total = sum(path.stat().st_size for path in files)
    print(f"{folder}: {len(files)} wheels, {total / 1e9:.2f} GB. Its {README} says how to install")


def wheel_of_source(package: Package, folder: Path, recorded: dict[str, str]) -> Path | None:
    """The wheel of a package that is locked as a source: of an earlier time, or built now.

    Returns:
        None for one that is not built here and that nobody has put into the folder.
    """
    there = wheel_in(folder, package)
    if package.name in not_built_here():
        return there
    if there and recorded.get(there.name) == sum_of(there):
        return there
    print(f"building {package.name} {package.version} from source", flush=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write(package.requirement)
        wanted.flush()
        return build(["--require-hashes", "-r", wanted.name], folder)


def wheel_in(folder: Path, package: Package) -> Path | None:
    """A wheel of this version that runs on this platform."""
    here = set(sys_tags())
    return next((path for path, tags in wheels_of(package, folder) if tags & here), None)


def wheels_of(package: Package, folder: Path) -> Iterator[tuple[Path, frozenset[Tag]]]:
    """Every wheel of this version, with the platforms that it is for."""
    for path in sorted(folder.glob("*.whl")):
        name, version, _, tags = parse_wheel_filename(path.name)
        if (name, str(version)) == (canonicalize_name(package.name), package.version):
            yield path, tags


def wheels_of_another_platform(packages: Iterable[Package], folder: Path) -> list[str]:
    """A line for each wheel that somebody put there in vain."""
    here = set(sys_tags())
    built = [package for package in packages if package.name in not_built_here()]
    return [
        f"{path.name} is for another platform"
        for package in built
        for path, tags in wheels_of(package, folder)
        if not tags & here
    ]


def not_built_here() -> set[str]:
    """Packages whose source cannot even say what they depend on without CUDA."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {str(entry["name"]) for entry in document["tool"]["uv"].get("dependency-metadata", [])}


def recorded_sums(folder: Path) -> dict[str, str]:
    """Name to sum, as SHA256SUMS of an earlier time has it."""
    path = folder / SUMS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}


def finish(folder: Path, wheels: Sequence[Path], recorded: dict[str, str]) -> None:
    """Write what makes a folder of wheels installable, and delete what it needs no more."""
    sums = {path.name: sum_of(path) for path in sorted(wheels)}
    lines = ["# Every wheel of this folder, for install.py. Made by tools/wheelhouse.sh."]
    for name, sha256 in sums.items():
        package, version, *_ = parse_wheel_filename(name)
        lines.append(f"{package}=={version} \\\n    --hash=sha256:{sha256}")
    made_for = {**this_platform(), "glibc": glibc_of(sums)}
    # While these are replaced there is no list that says the folder is finished.
    (folder / SUMS).unlink(missing_ok=True)
    write_beside(folder / PLATFORM, json.dumps(made_for) + "\n")
    write_beside(folder / README, READ_ME.format(**made_for))
    copy_beside(INSTALLER, folder / INSTALL)
    write_beside(folder / REQUIREMENTS, "\n".join(lines) + "\n")
    for name in (PLATFORM, README, INSTALL, REQUIREMENTS):
        sums[name] = sum_of(folder / name)
    write_beside(folder / SUMS, "".join(f"{value}  {name}\n" for name, value in sums.items()))
    remove_what_is_old(folder, [name for name in recorded if name not in sums])


def remove_what_is_old(folder: Path, names: Iterable[str]) -> None:
    """Delete wheels of an earlier list, and what killed processes left; not what somebody built."""
    for name in names:
        if name.endswith(".whl") and parse_wheel_filename(name)[0] not in not_built_here():
            (folder / name).unlink(missing_ok=True)
    for left in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)


def glibc_of(filenames: Iterable[str]) -> str:
    """The oldest glibc on which all of these wheels run, as 2.28; 0.0 if none needs one."""
    needed = [(0, 0)]
    for name in filenames:
        platforms = [tag.platform for tag in parse_wheel_filename(name)[3]]
        known = [version for each in platforms if (version := glibc_of_tag(each))]
        needed += [min(known)] if known else []
    return "{}.{}".format(*max(needed))


def glibc_of_tag(tag: str) -> tuple[int, int] | None:
    """The glibc that a platform tag asks for, or None if it asks for none."""
    if found := re.match(r"manylinux_(\d+)_(\d+)_", tag):
        return int(found[1]), int(found[2])
    found = re.match(r"manylinux(\d+)_", tag)
    return GLIBC_OF_OLD_TAGS[found[1]] if found else None


if __name__ == "__main__":
    raise SystemExit(main())
