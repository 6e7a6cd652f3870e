"""Make a virtual environment of the wheels of one folder, without a network.

    python3.12 FOLDER/install.py VENV                     in a folder of tools/wheelhouse.sh
    python3.12 FOLDER/install.py VENV --editable SOURCES  the same, but the project from its sources

tools/wheelhouse.sh puts this file into its folder; it needs nothing but Python. Every wheel is
compared with the sum in requirements.txt, and no index is asked.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

REQUIREMENTS, PLATFORM = "requirements.txt", "platform.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("venv", type=Path, help="the new environment")
    parser.add_argument("--editable", type=Path, metavar="SOURCES", help="a checkout to use")
    parser.add_argument("--wheels", type=Path, help="default: the folder of this file")
    options = parser.parse_args()
    wheels = (options.wheels or Path(__file__).parent).resolve()
    try:
        refuse_unfinished(wheels)
        refuse_another_platform(wheels)
        refuse_existing(options.venv)
        python = make_environment(wheels, options.venv, editable=options.editable)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return 1
    print(f"installed. To use it: . {python.parent}/activate")
    return 0


def make_environment(
    wheels: Path, folder: Path, *, over_this_python: bool = False, editable: Path | None = None
) -> Path:
    """A new virtual environment with every wheel of a folder and, if asked, a project's sources.

    Args:
        wheels: a folder of tools/wheelhouse.sh, whose sums are then checked, or of any wheels.
        folder: the environment; what is there is deleted.
        over_this_python: let this Python's own packages be seen.
        editable: folder of sources that are installed to be edited.
    Returns:
        The environment's Python.
    Raises:
        ValueError: there are no wheels.
        RuntimeError: pip cannot install them; no environment is left.
    """
    found = sorted(map(str, wheels.glob("*.whl")))
    if not found:
        raise ValueError(f"{wheels}: no wheel in it. WHEELS is a folder of .whl files")
    pip = sorted(wheels.glob("pip-*.whl"))
    # With the folder's pip: Debian's Python has none of its own.
    venv.create(folder, system_site_packages=over_this_python, with_pip=not pip, clear=True)
    python = folder / "bin" / "python"
    listed = wheels / REQUIREMENTS
    what = ["--require-hashes", "-r", str(listed)] if listed.exists() else found
    command = [str(python), "-m", "pip", "install", "--no-index", "--no-deps"]
    command += ["--find-links", str(wheels), "--disable-pip-version-check", "--progress-bar", "off"]
    environment = {**os.environ, "PYTHONPATH": str(pip[-1]) if pip else ""}
    try:
        _run([*command, *what], environment)
        if editable:
            # Its builders are among the wheels.
            source = ["--no-build-isolation", "--editable", str(editable)]
            _run([*command, *source], {**environment, "PYTHONPATH": ""})
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return python


def _run(command: list[str], environment: dict[str, str]) -> None:
    # What it prints is the progress of some minutes.
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(
            "pip cannot install the wheels: its reason is above. Nothing is installed"
        )


def refuse_unfinished(wheels: Path) -> None:
    """A folder whose list is not there was being filled when it was copied."""
    missing = [name for name in (REQUIREMENTS, PLATFORM) if not (wheels / name).exists()]
    if missing:
        raise ValueError(
            f"{wheels}: no {' and no '.join(missing)} in it. Let tools/wheelhouse.sh finish, and "
            "copy the whole folder"
        )


def refuse_existing(folder: Path) -> None:
    """Nobody's environment is overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists. Delete it, or name a folder that does not")


def refuse_another_platform(wheels: Path) -> None:
    """pip would say of each wheel that there is none."""
    made_for, here = json.loads((wheels / PLATFORM).read_text(encoding="utf-8")), this_platform()
    problems = [
        f"the wheels are for {name} {made_for[name]}, and this is {here[name]}"
        for name in ("python", "system", "machine")
        if made_for[name] != here[name]
    ]
    if _numbers(here["glibc"]) < _numbers(made_for["glibc"]):
        problems.append(f"the wheels need glibc {made_for['glibc']}, and this is {here['glibc']}")
    if problems:
        fix = "Use another Python, or make the folder on a machine like this one"
        raise ValueError(f"{wheels}: {'; '.join(problems)}. {fix}")


def this_platform() -> dict[str, str]:
    """What decides whether a wheel runs here."""
    python = "{}.{}".format(*sys.version_info)
    glibc = platform.libc_ver()[1] or "0.0"
    return {
        "python": python,
        "system": platform.system(),
        "machine": platform.machine(),
        "glibc": glibc,
    }


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


if __name__ == "__main__":
    raise SystemExit(main())
