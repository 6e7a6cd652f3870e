"""Make a virtual environment of the wheels of one folder, without a network.

    python3.12 FOLDER/install.py VENV                     in a folder of tools/wheelhouse.sh
    python3.12 FOLDER/install.py VENV --editable SOURCES  the same, but the project from its sources

tools/wheelhouse.sh puts this file into its folder; it needs nothing but Python. Every wheel is
compared with the sum in requirements.txt, and no index is asked. Settings of pip, in variables or
files, do not count: a folder or a constraint of one's own would leave the environment empty.
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
import sysconfig
import venv
from collections.abc import Callable, Iterable
from importlib.metadata import distributions
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
    wheels: Path,
    folder: Path,
    *,
    over_this_python: Callable[[set[str], set[str]], set[str]] | None = None,
    editable: Path | None = None,
) -> Path:
    """A new virtual environment with the wheels of a folder and, if asked, a project's sources.

    Args:
        wheels: a folder of tools/wheelhouse.sh, whose sums are then checked, or of any wheels.
        folder: the environment; what is there is deleted.
        over_this_python: lets this Python's own packages be seen. It is told their names and those
            of the wheels, and says which wheels are left out.
        editable: folder of sources that are installed to be edited.
    Returns:
        The environment's Python.
    Raises:
        ValueError: there are no wheels.
        RuntimeError: pip cannot install them, or has not; no environment is left.
    """
    wanted = _requirements(wheels)
    if not wanted:
        raise ValueError(f"{wheels}: no wheel in it. WHEELS is a folder of .whl files")
    pip = sorted(wheels.glob("pip-*.whl"))
    # With the folder's pip: Debian's Python has none of its own.
    venv.create(folder, system_site_packages=bool(over_this_python), with_pip=not pip, clear=True)
    python = folder / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name[:4] != "PIP_"}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PYTHONPATH": ""}
    try:
        if over_this_python:
            for name in over_this_python(_seen_by(python, environment), set(wanted)):
                wanted.pop(name, None)
        listed = folder / REQUIREMENTS
        listed.write_text("".join(wanted.values()), encoding="utf-8")
        command = [str(python), "-m", "pip", "--isolated", "install", "--no-index", "--no-deps"]
        command += ["--find-links", str(wheels), "--disable-pip-version-check"]
        command += ["--progress-bar", "off"]
        with_pip = {**environment, "PYTHONPATH": str(pip[-1]) if pip else ""}
        _run([*command, "-r", str(listed)], with_pip)
        if editable:
            # Its builders are among the wheels.
            _run([*command, "--no-build-isolation", "--editable", str(editable)], environment)
        _refuse_missing(wanted, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return python


def _requirements(wheels: Path) -> dict[str, str]:
    """Name to what pip reads: as the list of the folder has it, or each wheel that lies there."""
    listed = wheels / REQUIREMENTS
    if listed.exists():
        entries = re.split(r"^(?=[^\s#])", listed.read_text(encoding="utf-8"), flags=re.MULTILINE)
        return {_normalised(each.partition("==")[0]): each for each in entries if "==" in each}
    found = sorted(wheels.glob("*.whl"))
    return {_normalised(path.name.partition("-")[0]): f"{path.as_uri()}\n" for path in found}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _seen_by(python: Path, environment: dict[str, str]) -> set[str]:
    """Names of the packages that a Python can import."""
    code = "import importlib.metadata as m; print(*{d.metadata['Name'] for d in m.distributions()})"
    command = [str(python), "-c", code]
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return set(map(_normalised, asked.stdout.split()))


def _refuse_missing(wanted: Iterable[str], folder: Path) -> None:
    """pip's status 0 alone does not say that it has installed, nor where."""
    where = sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})
    there = {_normalised(each.name) for each in distributions(path=[where])}
    if missing := sorted(set(wanted) - there):
        raise RuntimeError(
            f"{folder}: pip ended without an error, and these are not in it: {', '.join(missing)}. "
            "Nothing is installed"
        )


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
    made_for, here = _read_platform(wheels / PLATFORM), this_platform()
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


def _read_platform(path: Path) -> dict[str, str]:
    wrong = ""
    try:
        made_for = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        wrong, made_for = "not JSON", {}
    if not isinstance(made_for, dict):
        wrong = "no object"
    elif missing := [name for name in this_platform() if name not in made_for]:
        wrong = wrong or f"no {' and no '.join(missing)}"
    elif not re.fullmatch(r"\d+(\.\d+)*", str(made_for["glibc"])):
        wrong = f"glibc is no version: {made_for['glibc']!r}"
    if wrong:
        raise ValueError(
            f"{path} is damaged ({wrong}). Copy the folder again, or let tools/wheelhouse.sh finish"
        )
    return {name: str(value) for name, value in made_for.items()}


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
