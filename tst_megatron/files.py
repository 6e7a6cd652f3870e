"""Writing files so that a killed process leaves the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from tst_megatron.system.owner import in_words, is_gone, is_left_behind, this_process


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
    write_bytes_beside(path, text.encode("utf-8"))


def write_bytes_beside(path: Path, content: bytes) -> None:
    """As ``write_beside``."""
    with _replacing(path) as new:
        new.write(content)


def copy_beside(source: Path, path: Path) -> None:
    """Copy a file so that it appears under its name whole: copied beside, flushed, renamed."""
    with source.open("rb") as original, _replacing(path) as new:
        shutil.copyfileobj(original, new)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside another, which it replaces when it is on disk; what kills left is removed."""
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


def remove_left_behind(path: Path) -> None:
    """Remove what killed processes of this machine left beside a file or folder, half made."""
    for left in path.parent.iterdir():
        if is_beside(left, path) and is_left_behind(left, f".{path.name}."):
            with contextlib.suppress(OSError):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextlib.contextmanager
def claimed(output: Path) -> Iterator[Path]:
    """A hidden folder beside an output, for what becomes it. No other process makes that output.

    It is held by a lock, which ends with this process however it ends: the next call deletes what
    is left. Where the file system has no locks, it waits for a person unless the process that left
    it is known to have ended.

    Raises:
        ValueError: another process is making the same output.
    """
    place = unfinished(output)
    lock = _lock_of(place, output)
    try:
        shutil.rmtree(place / MADE, ignore_errors=True)
        remove_left_behind(output)
        yield place
    finally:
        shutil.rmtree(place / MADE, ignore_errors=True)
        # Nothing but an empty folder is touched after it: from then on it may be another's.
        (place / LOCK).unlink(missing_ok=True)
        lock.close()
        with contextlib.suppress(OSError):
            # Last, since NFS keeps what was deleted and is open under another name in the folder.
            place.rmdir()


def check_not_claimed(output: Path) -> None:
    """Say before any work whether another process is making an output (``claimed``).

    Raises:
        ValueError: it is.
    """
    output = Path(os.path.realpath(output))
    if unfinished(output).exists():
        with claimed(output):
            pass


MADE, LOCK = "folder", "lock"
"""In ``unfinished``: the folder that is made, and the lock of its maker."""


def unfinished(output: Path) -> Path:
    """The hidden folder beside an output in which it is made."""
    return output.with_name(f".{output.name}.unfinished")


def _lock_of(place: Path, output: Path) -> TextIO:
    while True:
        place.mkdir(parents=True, exist_ok=True)
        try:
            file = (place / LOCK).open("a+", encoding="utf-8")
        except FileNotFoundError:
            # Whoever held it has just ended.
            continue
        file.seek(0)
        holder, is_free = file.read(), True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free = False
        except OSError:
            # A file system without locks.
            is_free = not holder or is_gone(holder)
        if not is_free:
            file.close()
            raise ValueError(
                f"{output}: {in_words(holder)} is making it. Wait for it, or name another output. "
                f"(If it has ended for certain, delete {place}.)"
            )
        if _is_still(place / LOCK, file):
            file.truncate(0)
            file.write(this_process())
            file.flush()
            return file
        file.close()


def _is_still(path: Path, file: TextIO) -> bool:
    """Whether an open file has its name: one that was deleted holds nobody off."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def folder_appearing_whole(output: Path, new: Path | None = None) -> Iterator[Path]:
    """A new folder that becomes ``output`` when the block ends, and disappears when it fails.

    All that is in it is on disk by then.

    Args:
        output: does not exist, or is empty.
        new: where the folder is while it is made, on the same file system, by a caller that keeps
            others away; what a killed process left there is deleted. By default hidden beside
            ``output`` (``claimed``).

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
        if path.is_file():
            # safetensors gives its files to the owner alone, whatever the umask.
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
