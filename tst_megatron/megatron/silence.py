"""Keep Megatron quiet where its notes would bury what a command has to say.

Megatron prints hundreds of lines about its arguments, buckets and missing optional packages. A
command line shows ten lines in all, so every call of ours that Megatron comments on runs in here.
A training run is not silenced: its log keeps what Megatron says.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def in_silence() -> Iterator[None]:
    """Drop what is printed, warned of, or logged below an error; exceptions pass."""
    with without_warnings(), redirect_stdout(io.StringIO()):
        yield


@contextmanager
def without_warnings() -> Iterator[None]:
    """Drop warnings and log lines below an error, and leave standard output alone.

    For imports: an imported module may keep the ``sys.stdout`` that it finds, for example in the
    handler of a logger, and would write into the void for the rest of the process.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
