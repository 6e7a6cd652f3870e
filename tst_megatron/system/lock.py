"""One folder, one job: a lock that lasts as long as the processes that work in the folder.

Two files in the folder, both locked with ``flock``:

    lock        exclusively, by the process that answers for the work; says in words who that is
    lock-ranks  shared, by every process that may write there for it, on any node

Whoever starts takes the first, and then looks whether anybody is left who holds the second: ranks
outlive a launcher that is killed, and ranks of other nodes outlive the first one. The kernel lets
go of both when the last process ends that has them open, whatever ended it, and a child that was
forked has them open too. Over NFS, Linux makes of ``flock`` a lock of the server, which all nodes
see; one of a node that died ends with its lease (version 4, about 90 s).

Where a file system has no locks, or keeps them to each node, what the file ``lock`` says is judged
instead: of this machine it can be known whether that process still exists, of others it cannot.
The files stay when the work ends: whoever deletes one may let two hold it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

LOCK = "lock"
RANKS = "lock-ranks"
FILES = (LOCK, RANKS)
"""What this leaves in a folder."""

SECONDS_TO_END = 10.0
"""How long a start waits for a holder that may be about to end, such as workers of a killed rank.
"""
SECONDS_OF_A_LEASE = 180.0
"""How long a job waits where the holder may be a node that died: twice the lease of NFS."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_ONLY_HERE = {"localflock", "nolock", "local_lock=all", "local_lock=flock"}
"""Options of Lustre and NFS with which no other node sees a lock."""
_FOLDER = "TST_LOCKED_FOLDER"
_SECONDS_TO_SETTLE = 1.0

Say = Callable[[str], None]


class InUse(ValueError):
    """Another process works in the folder."""

    def __init__(self, text: str, *, is_earlier_start: bool = False) -> None:
        """Say who; ``is_earlier_start``: of this very job, so that trying again will help."""
        super().__init__(text)
        self.is_earlier_start = is_earlier_start


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who works in a folder, as the file ``lock`` says it."""

    host: str = ""
    process: int = 0
    started: str = ""
    """Clock ticks from the start of the machine to that of the process: numbers are used again."""
    machine: str = ""
    """This start of this machine."""
    namespace: str = ""
    """Of process numbers: a container may have its own."""
    job: str = ""
    """Slurm's number of the job, if there is one."""
    restart: str = ""
    """Which start of that job."""
    meeting: str = ""
    """Where the ranks of this start meet, if it is known: the same for all of them."""
    since: str = ""
    is_over: bool = False
    """It has let go by itself."""

    def __str__(self) -> str:
        """For a person."""
        if not self.host or self.is_over:
            return "another process"
        job = f" of job {self.job}" if self.job else ""
        return f"process {self.process}{job} on {self.host}, since {self.since}"

    def is_earlier_start_of(self, other: Holder) -> bool:
        """Whether both are of one Slurm job, which ends all processes before it starts again."""
        return bool(self.job) and self.job == other.job and self.restart != other.restart

    def is_on_machine_of(self, other: Holder) -> bool:
        """Whether the process numbers of both mean the same."""
        return bool(self.machine) and (self.host, self.machine, self.namespace) == (
            other.host,
            other.machine,
            other.namespace,
        )


def this_process() -> Holder:
    """What this process writes into ``lock``."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
    return Holder(
        host=socket.gethostname(),
        process=os.getpid(),
        started=_started(os.getpid()),
        machine=_text(Path("/proc/sys/kernel/random/boot_id")),
        namespace=_namespace(),
        job=f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", ""),
        restart=os.environ.get("SLURM_RESTART_COUNT", "0"),
        meeting=meeting(),
        since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def meeting() -> str:
    """Where the ranks of this start meet, as their starter has told them."""
    return ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT")).strip(":")


def is_of_this_start(folder: Path) -> bool:
    """Whether the first rank of this process's start holds a folder, or has held it last."""
    said = read_holder(folder)
    return said is not None and said.meeting == meeting()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def held(folder: Path, *, say: Say = _say, seconds: float = SECONDS_TO_END) -> Iterator[None]:
    """Be the one that works in a folder, until the block ends or the process does.

    Args:
        folder: exists.
        say: takes a line for a person, where there is something to wait for or to know.
        seconds: how long to wait for another that may be about to end.

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
    """Be one of those that write in a folder, for the rest of this process's life.

    Children that are forked are with it; those that are spawned call ``join_with_parent``.
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
    """Who works in a folder at the moment, as far as can be told; changes nothing."""
    said = read_holder(folder)
    is_held = _is_held(folder / LOCK, fcntl.LOCK_SH)
    if is_held or _is_held(folder / RANKS, fcntl.LOCK_EX):
        return said or Holder()
    has_locks = is_held is not None and not _is_only_here(folder)
    return said if said and not has_locks and _may_live(said, this_process()) else None


def read_holder(folder: Path) -> Holder | None:
    """What ``lock`` says, whether it still holds or not; None where it says nothing."""
    try:
        values = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        known = {field.name: values[field.name] for field in fields(Holder)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return Holder(**known)


# --- taking it -----------------------------------------------------------------------------------


def _wait(folder: Path, own: Holder, *, say: Say, seconds: float) -> int:
    """A descriptor of ``lock`` that this process holds."""
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
            raise InUse(_refusal(folder, other), is_earlier_start=is_earlier)
        if not has_said:
            say(f"{folder}: in use by {other}. Waiting up to {limit:.0f} s for its end")
            has_said = True
        time.sleep(0.1)


def _refusal(folder: Path, other: Holder) -> str:
    return (
        f"{folder}: in use by {other}. Wait for its end, stop it, or use another folder. If that "
        f"process is certain to be gone (of a node that died, say), delete {folder / LOCK} and "
        f"{folder / RANKS}"
    )


def _take(folder: Path, own: Holder, say: Say) -> tuple[int | None, Holder]:
    """Try once: a descriptor, or who has it."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    is_ours = False
    try:
        said = read_holder(folder) or Holder()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_seen = not _is_only_here(folder)
        except BlockingIOError:
            return None, said
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            is_seen = False
        if not _is_file(descriptor, folder / LOCK):
            # Deleted while it was opened.
            return None, said
        if not is_seen and said.host and _may_live(said, own):
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
    """Whether another process has locked a file so that ``kind`` is not to be had.

    None where the file system has no locks.
    """
    # NFS gives an exclusive lock to a descriptor for writing alone.
    mode = os.O_RDWR if kind == fcntl.LOCK_EX else os.O_RDONLY
    try:
        descriptor = os.open(path, mode)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
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


# --- judging without locks -----------------------------------------------------------------------


def _may_live(other: Holder, own: Holder) -> bool:
    """Whether a process may still be there, as far as it can be known from here."""
    if other.is_over or other.is_earlier_start_of(own):
        return False
    if not other.is_on_machine_of(own):
        return True
    return _started(other.process) == other.started


def _started(process: int) -> str:
    """When a process of this machine was started, in ticks; empty if there is none."""
    stat = _text(Path(f"/proc/{process}/stat"))
    # After the name, which may hold spaces and brackets; the state comes first.
    after = stat.rpartition(")")[2].split()
    return after[19] if len(after) > 19 and after[0] not in "ZX" else ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _is_only_here(folder: Path) -> bool:
    """Whether the folder's file system is mounted so that locks stay on this node."""
    options: set[str] = set()
    longest = -1
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        before, _, after = line.partition(" - ")
        place = before.split()[4].encode().decode("unicode_escape")
        if len(place) >= longest and folder.resolve().is_relative_to(place):
            longest = len(place)
            options = set(",".join([before.split()[5], *after.split()[2:]]).split(","))
    return bool(options & _ONLY_HERE)
