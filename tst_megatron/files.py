"""Writing files so that a killed process leaves the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path


def beside(path: Path) -> Path:
    """A hidden name in the same folder for what will be renamed to ``path``, this process's own."""
    # Processes of two nodes may share a number.
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")


def is_beside(path: Path, file: Path) -> bool:
    """Whether a path has a name that ``beside`` gave some process for a file."""
    return path.parent == file.parent and path.name.startswith(f".{file.name}.")


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to disk, so that a rename outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems cannot flush a folder.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


FILES_OF_EVERYTHING_ELSE = 1024
"""As many as a process may open by default: what is open already, sockets, libraries."""
FEWEST_FILES_OF_EVERYTHING_ELSE = 256
"""Where a machine allows no more, as some containers do."""


def allow_open_files(number: int) -> None:
    """Raise this process's limit of open files so that ``number`` more can be open.

    Raises:
        ValueError: the machine does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + FILES_OF_EVERYTHING_ELSE
    if resource.RLIM_INFINITY in (soft, hard) or wanted <= soft:
        return
    if number + FEWEST_FILES_OF_EVERYTHING_ELSE > hard:
        raise ValueError(
            f"{number} files of text and indexes are open at once, and this machine allows a "
            f"process {hard}. Raise the limit (ulimit -Hn {wanted}), or use fewer corpora or epochs"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_beside(path: Path, text: str) -> None:
    """Replace a small file at once: written beside, flushed to disk, renamed."""
    new = beside(path)
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    flush_folder(path.parent)


def copy_beside(source: Path, path: Path) -> None:
    """Copy a file so that it appears under its name whole: copied beside, flushed, renamed."""
    new = beside(path)
    with source.open("rb") as original, new.open("wb") as copy:
        shutil.copyfileobj(original, copy)
        copy.flush()
        os.fsync(copy.fileno())
    new.replace(path)
    flush_folder(path.parent)


@contextlib.contextmanager
def folder_appearing_whole(output: Path, new: Path | None = None) -> Iterator[Path]:
    """A new folder that becomes ``output`` when the block ends, and disappears when it fails.

    All that is in it is on disk by then.

    Args:
        output: does not exist, or is empty.
        new: where the folder is while it is made, on the same file system; what a killed process
            left there is deleted. By default a hidden name beside ``output``, this process's own.
    """
    # A link to an empty folder is followed, and "." gets a name.
    output = output.resolve()
    new = new or beside(output)
    # Of a killed process; a name of this one's own may be that of an earlier one of its number.
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        usual = new.stat().st_mode & 0o666
        for path in sorted(new.rglob("*"), reverse=True):
            if path.is_file():
                # safetensors gives its files to the owner alone, whatever the umask.
                path.chmod(usual)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        flush_folder(new)
        new.replace(output)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    flush_folder(output.parent)
