"""The exit statuses of training and of its checks, by which a job script knows what to do next."""

from __future__ import annotations

FINISHED = 0
FAILED = 1
BAD_INPUT = 2
"""What was given cannot be used, and a person has to change it."""
STOPPED = 75
"""Saved and stopped as asked, or to be tried again."""
DO_NOT_RESTART = 93
"""Another start would end the same way."""
