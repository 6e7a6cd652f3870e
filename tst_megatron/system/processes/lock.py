"""Lock a folder for one job, for as long as any process of that job works in it.

Two files in the folder, both locked with ``flock``:

    lock        exclusively, by the process that answers for the work; says in words who that is
    lock-ranks  shared, by every process that may write there for it, on any node

A start takes the first lock, and then checks that no process still holds the second. Ranks may
outlive a launcher that is killed, and ranks of other nodes may outlive the first one. The kernel
releases both locks when the last process ends that has them open, whatever ended it. A forked child
has them open too. Over NFS, Linux turns ``flock`` into a lock of the server, which all nodes see.
The lock of a node that died ends with its lease (version 4, about 90 s).

Some file systems have no locks, or locks that stay on one node. There the words in the file
``lock`` decide: for a process of this machine it is known whether it still exists, for others not.
The files stay when the work ends, because deleting one could let two processes hold it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

from tst_megatron.system.processes.holder import (
    Holder,
    is_only_here,
    may_live,
    meeting,
    this_process,
)

LOCK = "lock"
RANKS = "lock-ranks"
FILES = (LOCK, RANKS)
"""The files that a lock leaves in a folder."""

SECONDS_TO_END = 10.0
"""Wait of a start for a holder that may be about to end, such as workers of a killed rank."""
SECONDS_OF_A_LEASE = 180.0
"""Wait of a job if the holder may be on a node that died: twice the lease of NFS."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_FOLDER = "TST_LOCKED_FOLDER"
_SECONDS_TO_SETTLE = 1.0
_SECONDS_OF_A_LOOK = 0.5
"""Another process that only looks at the lock holds it for a moment."""

Say = Callable[[str], None]


class InUse(ValueError):
    """Another process works in the folder."""

    def __init__(self, text: str, holder: Holder, *, is_earlier_start: bool = False) -> None:
        """Say who; ``is_earlier_start``: of this very job, so that trying again will help."""
        super().__init__(text)
        self.holder = holder
        self.is_earlier_start = is_earlier_start


def is_of_this_start(folder: Path) -> bool:
    """Tell whether the first rank of this process's start holds a folder.

    The address where the ranks meet is not enough: it may be the same at every start.
    """
    said = read_holder(folder)
    if said is None or said.is_over or said.meeting != meeting():
        return False
    return _is_held(folder / LOCK, fcntl.LOCK_SH) is not False or is_only_here(folder)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def held(folder: Path, *, say: Say = _say, seconds: float = SECONDS_TO_END) -> Iterator[None]:
    """Hold a folder until the block ends, or until the process does.

    Args:
        folder: exists.
        say: takes a line for a person, if there is something to wait for or to know.
        seconds: wait for another process that may be about to end.

    Raises:
        InUse: another one works there.
        OSError: the file cannot be made.
    """
    own = this_process()
    descriptor = _wait(folder, own, say=say, seconds=seconds)
    try:
        yield
    finally:
        # Not in a child that was forked in the block.
        if os.getpid() == own.process:
            with contextlib.suppress(OSError):
                _write(descriptor, replace(own, is_over=True))
            os.close(descriptor)


def join(folder: Path) -> None:
    """Take part in the work in a folder, for the rest of this process's life.

    Forked children take part too; spawned ones must call ``join_with_parent``.
    """
    os.environ[_FOLDER] = str(folder.resolve())
    # Never closed: the lock ends with the process, and with every child that has it open.
    descriptor = os.open(folder / RANKS, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # Held by none for longer than a look takes.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def join_with_parent() -> None:
    """``join`` the folder of the process that spawned this one, if it has joined any."""
    if _FOLDER in os.environ:
        join(Path(os.environ[_FOLDER]))


def holder(folder: Path) -> Holder | None:
    """Return the process that works in a folder now, as far as is known; changes nothing."""
    said = read_holder(folder)
    is_held = _is_held(folder / LOCK, fcntl.LOCK_SH)
    if is_held or _is_held(folder / RANKS, fcntl.LOCK_EX):
        return said or Holder()
    has_locks = is_held is not None and not is_only_here(folder)
    return said if said and not has_locks and may_live(said, this_process()) else None


def read_holder(folder: Path) -> Holder | None:
    """Read the file ``lock``, of a lock that may have ended; None if it says nothing."""
    try:
        values = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        known = {field.name: values[field.name] for field in fields(Holder)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return Holder(**known)


# --- taking it -----------------------------------------------------------------------------------


def _wait(folder: Path, own: Holder, *, say: Say, seconds: float) -> int:
    """Wait for the lock; return the descriptor of ``lock`` that holds it."""
    begun = time.monotonic()
    has_said = False
    while True:
        descriptor, other = _take(folder, own, say)
        if descriptor is not None:
            return descriptor
        is_earlier = other.is_earlier_start_of(own)
        # A node that died still holds what it held, for a while.
        may_be_dead = is_earlier or (own.job and other.host != own.host)
        limit = max(seconds, SECONDS_OF_A_LEASE) if may_be_dead and seconds else seconds
        if time.monotonic() - begun >= limit:
            raise InUse(_refusal(folder, other), other, is_earlier_start=is_earlier)
        if not has_said and time.monotonic() - begun > _SECONDS_OF_A_LOOK:
            say(f"{folder}: {_who(folder, other)}. Waiting up to {limit:.0f} s for the end of that")
            has_said = True
        time.sleep(0.1)


def _refusal(folder: Path, other: Holder) -> str:
    return (
        f"{folder}: {_who(folder, other)}. Wait for the end of that, stop it, or use another "
        "folder. Only if it is on a node that is certain to be down, delete "
        f"{folder / LOCK} and {folder / RANKS}"
    )


def _who(folder: Path, other: Holder) -> str:
    """Describe the obstacle for a person: the first process may have left others behind."""
    is_held = _is_held(folder / LOCK, fcntl.LOCK_SH)
    has_first = is_held is not False or is_only_here(folder)
    if has_first and (not other.host or may_live(other, this_process())):
        return f"in use by {other}"
    return f"in use by ranks or workers of an earlier start, which {other} began"


def _take(folder: Path, own: Holder, say: Say) -> tuple[int | None, Holder]:
    """Try once: a descriptor, or who has it."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    is_ours = False
    try:
        said = read_holder(folder) or Holder()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_seen = not is_only_here(folder)
        except BlockingIOError:
            return None, said
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            is_seen = False
        if not _is_file(descriptor, folder / LOCK):
            # Deleted while it was opened.
            return None, said
        if not is_seen and said.host and may_live(said, own):
            return None, said
        if _is_held(folder / RANKS, fcntl.LOCK_EX):
            # Of an earlier start, whose first process has gone.
            return None, said
        _write(descriptor, own)
        if not is_seen:
            # Of two that write at the same moment one finds the other's words.
            time.sleep(_SECONDS_TO_SETTLE)
            if read_holder(folder) != own:
                return None, read_holder(folder) or Holder()
            say(
                f"warning: {folder} is on a file system whose locks are not seen by other nodes. A "
                f"second start is refused by what {LOCK} says, and not while both begin"
            )
        is_ours = True
        return descriptor, own
    finally:
        if not is_ours:
            os.close(descriptor)


def _is_held(path: Path, kind: int) -> bool | None:
    """Tell whether another process has locked a file so that ``kind`` cannot be taken.

    None if the file system has no locks.
    """
    # NFS gives an exclusive lock only to a descriptor for writing.
    mode = os.O_RDWR if kind == fcntl.LOCK_EX else os.O_RDONLY
    try:
        descriptor = os.open(path, mode)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        # Nobody who writes can hold it through this mount.
        return None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    finally:
        os.close(descriptor)
    return False


def _write(descriptor: int, own: Holder) -> None:
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(asdict(own)) + "\n").encode(), 0)
    os.fsync(descriptor)


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
