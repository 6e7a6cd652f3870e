"""Telling damage from a machine that does not give what is to be read."""

from __future__ import annotations

import errno

_OF_BYTES = (errno.EIO, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, None)
"""Errors that wrong bytes lead to as well; the last is of libraries that raise their own."""


def machine_error(error: BaseException) -> BaseException | None:
    """The error of a file system or of memory that another one comes from.

    After one, another try may succeed. A file that is missing is damage, and so is one that the
    disk cannot read.

    Returns:
        None where the bytes are at fault.
    """
    # Takes seconds, and only a failure needs it.
    import torch
    from torch.distributed.checkpoint.api import CheckpointException

    if isinstance(error, OSError):
        wrong_names = FileNotFoundError, NotADirectoryError, IsADirectoryError
        is_damage = isinstance(error, wrong_names) or error.errno in _OF_BYTES
        return None if is_damage else error
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return error
    causes = [error.__cause__]
    if isinstance(error, CheckpointException):
        causes += [cause for cause, _ in error.failures.values()]
    found = (machine_error(cause) for cause in causes if cause is not None)
    return next((each for each in found if each is not None), None)
