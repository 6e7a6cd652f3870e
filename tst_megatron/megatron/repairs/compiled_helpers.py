"""Use the compiled helpers of Megatron's datasets that the wheel brings, without building them."""

from __future__ import annotations

import importlib
from collections.abc import Callable


def unless_compiled(compile_helpers: Callable[[], None]) -> Callable[[], None]:
    """Build the helpers only where they are missing.

    The wheel has the compiled helpers but no Makefile. ``make`` then fails, and Megatron ends the
    process. Remove when the wheel skips a build that is not needed.
    """

    def compile_if_missing() -> None:
        try:
            importlib.import_module("megatron.core.datasets.helpers_cpp")
        except ImportError:
            compile_helpers()

    return compile_if_missing
