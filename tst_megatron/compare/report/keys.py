"""A comparison as keys and values, for JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tst_megatron.compare.results import Comparison

FORMAT = 1
"""Rises when a key changes its name or its meaning."""


def as_keys(comparison: Comparison) -> dict[str, Any]:
    """Return everything that was found, with the names of ``results.py`` in words.

    JSON knows no NaN and no infinity, so both are null. An interval of which both ends are null is
    not known; one whose ``high`` alone is null has no upper end.
    """
    return {"format": FORMAT, **plain(comparison)}


def plain(value: Any) -> Any:
    """Return a value as JSON knows it: records by their words, NaN and infinities as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name.replace("_", " "): plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
