"""Name the exit statuses of training and of its checks, by which job scripts decide."""

from __future__ import annotations

FINISHED = 0
FAILED = 1
BAD_INPUT = 2
"""The input cannot be used; a person has to change it."""
STOPPED = 75
"""Saved and stopped on request, or failed in a way that another start may not."""
DO_NOT_RESTART = 93
"""Another start would end the same way."""
