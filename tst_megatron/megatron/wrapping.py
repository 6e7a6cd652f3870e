"""How an attribute of upstream is replaced, which is the last resort."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace an upstream attribute by a wrapper of it, once; the original stays reachable."""
    original = getattr(owner, name)
    if getattr(original, "tst_megatron_original", None) is not None:
        return
    replacement = make(original)
    replacement.tst_megatron_original = original
    setattr(owner, name, replacement)
