"""Replace an attribute of upstream by a wrapper of it: the last resort, done in one way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace an upstream attribute once; a second call changes nothing.

    Args:
        owner: a module or a class of upstream.
        name: of its attribute.
        make: takes the original and returns the wrapper, on which the original is kept as
            ``tst_megatron_original``.
    """
    original = getattr(owner, name)
    if getattr(original, "tst_megatron_original", None) is not None:
        return
    replacement = make(original)
    replacement.tst_megatron_original = original
    setattr(owner, name, replacement)
