"""Write files and folders so that a killed process leaves the old or the new one, never half."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tst_megatron.system.processes import lock
from tst_megatron.system.processes.holder import started_at


def beside(path: Path) -> Path:
    """Return a hidden name in the same folder for a file that will be renamed to ``path``.

    Each process has its own.
    """
    # Processes of two nodes may share a number.
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")


def is_beside(path: Path, file: Path) -> bool:
    """Tell whether a path has a name that ``beside`` gave some process for ``file``."""
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
"""Room for files that are open already, sockets and libraries: the usual limit of a process."""
FEWEST_FILES_OF_EVERYTHING_ELSE = 256
"""The same on a machine that allows no more, as some containers do."""


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
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_beside(path: Path, text: str) -> None:
    """Replace a small file at once: written beside, flushed to disk, renamed."""
    write_bytes_beside(path, text.encode("utf-8"))


def write_bytes_beside(path: Path, content: bytes) -> None:
    """Do the same with bytes."""
    with _replacing(path) as new:
        new.write(content)


def copy_beside(source: Path, path: Path) -> None:
    """Copy a file so that it appears complete under its name: copied beside, flushed, renamed."""
    with source.open("rb") as original, _replacing(path) as new:
        shutil.copyfileobj(original, new)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside another, which it replaces once it is on disk.

    Files that killed processes left there are removed.
    """
    new = beside(path)
    try:
        with new.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)
    remove_left_behind(path)


SECONDS_OF_A_WRITE = 600.0
"""A file beside another counts as left behind if it is older and its process is not found. The age
matters because a process of another container may have this host's name and not be visible here."""


def remove_left_behind(path: Path) -> None:
    """Remove unfinished files that killed processes of this machine left beside an output."""
    for left in path.parent.iterdir():
        if is_beside(left, path) and _is_left_behind(left, path):
            with contextlib.suppress(OSError):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _is_left_behind(left: Path, path: Path) -> bool:
    """Tell whether a file or folder that ``beside`` named was left by a process that was killed."""
    host, _, process = left.name.removeprefix(f".{path.name}.").rpartition(".")
    if host != socket.gethostname() or not process.isdecimal() or started_at(int(process)):
        return False
    try:
        times = [each.lstat().st_mtime for each in (left, *left.rglob("*"))]
    except OSError:
        return False
    return max(times) < time.time() - SECONDS_OF_A_WRITE


@contextlib.contextmanager
def claimed(output: Path) -> Iterator[Path]:
    """Claim an output: yield a hidden folder beside it, in which only this process makes it.

    A lock holds the folder (``processes/lock.py``). It ends with this process, however that ends,
    and the next call deletes what is left.

    Raises:
        ValueError: another process is making the same output.
    """
    place = unfinished(output)
    try:
        with _held(place, output):
            try:
                shutil.rmtree(place / MADE, ignore_errors=True)
                remove_left_behind(output)
                yield place
            finally:
                shutil.rmtree(place / MADE, ignore_errors=True)
                # From here on it may belong to another process, so only an empty folder is removed.
                (place / lock.LOCK).unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):
            # Last, since NFS keeps what was deleted and is open under another name in the folder.
            place.rmdir()


@contextlib.contextmanager
def _held(place: Path, output: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        while True:
            place.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(lock.held(place, seconds=0))
                break
            except FileNotFoundError:
                # Its holder has just ended and removed the folder.
                continue
            except lock.InUse as error:
                if not (place / lock.LOCK).exists():
                    continue
                raise ValueError(
                    f"{output}: {error.holder} is making it. Wait for it, or name another output. "
                    f"(If it has ended for certain, delete {place}.)"
                ) from error
        yield


def check_not_claimed(output: Path) -> None:
    """Refuse before any work an output that another process is making (``claimed``).

    Raises:
        ValueError: another process is making it.
    """
    output = Path(os.path.realpath(output))
    if unfinished(output).exists():
        with claimed(output):
            pass


MADE = "folder"
"""The folder that is being made, inside ``unfinished`` and beside the lock of its maker."""


def unfinished(output: Path) -> Path:
    """Return the hidden folder beside an output in which it is made."""
    return output.with_name(f".{output.name}.unfinished")


@contextlib.contextmanager
def folder_appearing_whole(output: Path, new: Path | None = None) -> Iterator[Path]:
    """Yield a new folder that becomes ``output`` when the block ends, and disappears when it fails.

    Its files are flushed to disk before the rename.

    Args:
        output: does not exist, or is empty.
        new: the place of the folder while it is made, on the same file system, from a caller that
            keeps other processes away. What a killed process left there is deleted. By default it
            is hidden beside ``output`` (``claimed``).

    Raises:
        ValueError: another process is making the same output, or has made it meanwhile.
    """
    # A link to an empty folder is followed, and "." gets a name.
    output = Path(os.path.realpath(output))
    with contextlib.nullcontext(new) if new else _place_for(output) as new:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            yield new
            _flush_all(new)
            _rename(new, output)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        flush_folder(output.parent)


@contextlib.contextmanager
def _place_for(output: Path) -> Iterator[Path]:
    with claimed(output) as place:
        yield place / MADE


def _flush_all(folder: Path) -> None:
    usual = folder.stat().st_mode & 0o666
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_symlink():
            # Its target belongs to somebody else.
            continue
        if path.is_file() and path.stat().st_nlink == 1:
            # safetensors gives its files to the owner alone, whatever the umask. A file that has a
            # name elsewhere belongs to somebody else, too.
            path.chmod(usual)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    flush_folder(folder)


def _rename(folder: Path, output: Path) -> None:
    try:
        folder.replace(output)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise ValueError(
            f"{output}: was made by something else while this was at work. Name another output"
        ) from error
