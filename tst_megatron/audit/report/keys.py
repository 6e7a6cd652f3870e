"""An audit as keys and values, for JSON."""

from __future__ import annotations

from typing import Any

from tst_megatron.audit.results import Audit
from tst_megatron.compare.report.keys import plain

FORMAT = 1
"""Rises when a key changes its name or its meaning."""


def as_keys(audit: Audit) -> dict[str, Any]:
    """Return everything that was found; NaN and infinities are null.

    Where a verdict is ``cannot tell`` and ``num to decide`` is null, no number of items decides.
    """
    return {"format": FORMAT, **plain(audit)}
