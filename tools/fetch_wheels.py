"""Bring locked wheels into a folder, and build those that there are none of, through pip.

pip fetches, so its settings count: an index of one's own, a proxy, a certificate. A file appears
under its name only when it is whole and its sum is the locked one.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tst_megatron.system.files import file_sha256, flush_folder

AT_ONCE = 4
SCRATCH = ".fetching-"
"""Start of the names of folders in which files are not finished."""
ANOTHER_FILE = "the index has another file than uv.lock says"
NO_CONNECTION = (
    "no connection to the package index. Is there a network, and is pip's index right "
    "(pip config list)?"
)
MEANINGS = {
    "No space left on device": "the disk is full",
    "DO NOT MATCH THE HASHES": ANOTHER_FILE,
    "ConnectionError|ConnectTimeout|NewConnection|NameResolution|ProxyError": NO_CONNECTION,
    "Connection (?:refused|reset|broken)|Read timed out": NO_CONNECTION,
    "No matching distribution": "the package index does not have it, or was not reached",
}
"""What pip prints, and what it means."""


@dataclass(frozen=True)
class Package:
    """One locked package, and the file of it that this platform takes."""

    name: str
    version: str
    filename: str
    sha256: str
    num_bytes: int

    @property
    def is_wheel(self) -> bool:
        return self.filename.endswith(".whl")

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"


def refuse_small_disk(missing: Iterable[Package], folder: Path) -> None:
    """Say before an hour of fetching that the disk is too small."""
    sizes = sorted((package.num_bytes for package in missing), reverse=True)
    # pip keeps a file twice until it is done with it.
    needed = sum(sizes) + sum(sizes[:AT_ONCE])
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RuntimeError(
            f"{folder}: {needed / 1e9:.1f} GB are needed while it is filled, and "
            f"{free / 1e9:.1f} GB are free. Free some, or name a folder on another disk"
        )


def fetch_all(missing: Iterable[Package], folder: Path) -> None:
    """Fetch several at a time, and report every failure; files that are whole stay.

    A wrong file does not keep the others from being fetched; a machine without a network does.
    """
    order = sorted(missing, key=lambda package: -package.num_bytes)
    problems = []
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(fetch, package, folder): package for package in order}
        for number, future in enumerate(concurrent.futures.as_completed(running), 1):
            package = running[future]
            if future.cancelled():
                continue
            try:
                future.result()
            except ValueError as error:
                problems.append(f"{package.filename}: {error}")
            except (OSError, RuntimeError) as error:
                problems.append(f"{package.filename}: {error}")
                for waiting in running:
                    waiting.cancel()
            else:
                size = f"{package.num_bytes / 1e6:.1f} MB"
                print(f"[{number}/{len(order)}] {package.filename}, {size}", flush=True)
    if problems:
        raise RuntimeError("\n".join([*problems, "What is whole stays: start again to go on"]))


def fetch(package: Package, folder: Path) -> None:
    """Bring one locked wheel into a folder, whole and with the right sum, or not at all.

    Raises:
        ValueError: the index has another file than the locked one.
        RuntimeError: pip cannot fetch it.
    """
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as name:
        scratch = Path(name)
        wanted = scratch / "wanted.txt"
        wanted.write_text(package.requirement)
        options = ["--only-binary", ":all:", "--dest", str(scratch / "new")]
        pip(["download", *options, "--require-hashes", "-r", str(wanted)], scratch)
        take(scratch / "new" / package.filename, folder)


def build(what: Sequence[str], folder: Path) -> Path:
    """Build one wheel with the locked builders of this Python; pip alone would take the newest.

    Args:
        what: arguments of ``pip wheel`` that name a source.
    """
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as name:
        new = Path(name) / "new"
        pip(["wheel", "--no-build-isolation", "--wheel-dir", str(new), *what], Path(name))
        (wheel,) = new.glob("*.whl")
        take(wheel, folder)
        return folder / wheel.name


def pip(arguments: Sequence[str], scratch: Path) -> None:
    """Run pip on one package, with its temporary files in the folder's own file system.

    Raises:
        ValueError: the index has another file than the locked one.
        RuntimeError: anything else, with what it means where that is known, and pip's own words.
    """
    options = ["--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", arguments[0], "--no-input", *options, *arguments[1:]],
        # One time for all files of a build: the same source gives the same wheel.
        env={**os.environ, "TMPDIR": str(scratch), "SOURCE_DATE_EPOCH": "946684800"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    said = done.stdout + done.stderr
    meant = next((reason for known, reason in MEANINGS.items() if re.search(known, said)), None)
    kind = ValueError if meant == ANOTHER_FILE else RuntimeError
    lines = [line for line in said.splitlines() if line.strip()][-6:]
    raise kind("\n    ".join([meant or "pip failed", *lines]))


def take(path: Path, folder: Path) -> None:
    """Give a finished file its name in the folder; it is on the disk before."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.replace(folder / path.name)
    flush_folder(folder)


def sum_of(path: Path) -> str | None:
    """The sha256 of a file, or None where there is no file."""
    return file_sha256(path) if path.is_file() else None
