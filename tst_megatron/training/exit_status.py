"""The exit statuses of training; by them, and by ``state.json``, a job script knows what is next."""

from __future__ import annotations

FINISHED = 0
FAILED = 1
STOPPED = 75
"""Saved and stopped as asked, or to be tried again."""
DO_NOT_RESTART = 93
"""Another start would end the same way."""
