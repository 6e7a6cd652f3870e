"""Importing large libraries without Python's garbage collector in the way."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collecting_later() -> Iterator[None]:
    """Let no garbage be looked for while modules are imported, nor ever among what they define.

    torch and Megatron make a million objects that stay. The collector would walk over all of them
    again and again, during the imports and in all that makes many objects afterwards: it took
    nine tenths of the time in which Megatron reads its arguments.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
