"""The exit statuses of all commands, by which a job script knows what to do next."""

from __future__ import annotations

import signal

FINISHED = 0
FAILED = 1
BAD_INPUT = 2
"""What was given cannot be used, and a person has to change it."""
STOPPED = 75
"""Saved and stopped as asked, or to be tried again."""
DO_NOT_RESTART = 93
"""Another start would end the same way."""
INTERRUPTED = 128 + signal.SIGINT
"""The status that a shell gives of a process that Ctrl-C has ended."""
