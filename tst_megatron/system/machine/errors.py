"""Tell damaged files from a machine that cannot read them now."""

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
"""Errors after which another try may succeed. A missing file counts as damage, and so does one that
the disk cannot read, because it may stay so."""


def machine_error(error: BaseException) -> OSError | None:
    """Return the passing error of a file system or of memory that caused an error, if one did."""
    cause = os_error(error)
    return cause if cause is not None and cause.errno in _PASSING else None


def raise_passing(damage: Exception) -> None:
    """Raise the error that kept a record from being read, if it may pass.

    So no record is replaced because of it. A record without permission to read counts as damaged.
    """
    cause = machine_error(damage)
    if cause is not None and not isinstance(cause, PermissionError):
        raise cause from damage


def os_error(error: BaseException) -> OSError | None:
    """Return the error of the operating system that an error is or was caused by, if any."""
    if isinstance(error, OSError):
        return error
    # By name, since importing torch takes seconds.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OSError(errno.ENOMEM, str(error).partition("\n")[0] or "not enough memory")
    # Torch's CheckpointException has the errors of several ranks. One of a failing machine says
    # more than one of damage.
    of_ranks = getattr(error, "failures", {})
    causes = [error.__cause__, *(cause for cause, _ in of_ranks.values())]
    found = [cause for each in causes if each is not None and (cause := os_error(each))]
    return next((each for each in found if each.errno in _PASSING), found[0] if found else None)
