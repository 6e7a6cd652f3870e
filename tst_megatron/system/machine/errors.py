"""Telling damage from a machine that does not give what is to be read."""

from __future__ import annotations

import errno

_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EACCES", "EPERM", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "EINTR", "EBUSY", "ENOLCK"),
        *("ESTALE", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
        *("ENOTCONN", "ECONNREFUSED", "ECONNRESET", "ECONNABORTED", "ESHUTDOWN", "ENOBUFS"),
    )
)
"""After these another try may succeed. A file that is missing is damage, and so is one that the
disk cannot read, since it may never again."""


def machine_error(error: BaseException) -> OSError | None:
    """The passing error of a file system or of memory that an error comes from, if one did."""
    cause = os_error(error)
    return cause if cause is not None and cause.errno in _PASSING else None


def raise_passing(damage: Exception) -> None:
    """Raise what kept a record from being read, if it passes; nothing is replaced for that.

    A record that may not be read at all is as good as damaged.
    """
    cause = machine_error(damage)
    if cause is not None and not isinstance(cause, PermissionError):
        raise cause from damage


def os_error(error: BaseException) -> OSError | None:
    """The error of the operating system that an error is or comes from, if one did."""
    if isinstance(error, OSError):
        return error
    # By name, since importing torch takes seconds.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OSError(errno.ENOMEM, str(error).partition("\n")[0] or "not enough memory")
    # Torch's CheckpointException has those of several ranks. One whose machine failed says more
    # than one that met damage.
    of_ranks = getattr(error, "failures", {})
    causes = [error.__cause__, *(cause for cause, _ in of_ranks.values())]
    found = [cause for each in causes if each is not None and (cause := os_error(each))]
    return next((each for each in found if each.errno in _PASSING), found[0] if found else None)
