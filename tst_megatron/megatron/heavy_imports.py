"""Imports of Megatron's that take seconds and come to nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

UNUSED = "modelopt"


class _Absent:
    """A finder that says of one package that it is not installed."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if name.partition(".")[0] == UNUSED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextmanager
def without_modelopt() -> Iterator[None]:
    """Let Megatron's modules be imported as where nvidia-modelopt is not installed.

    ``megatron.training`` tries it, and with it transformers, peft, scikit-learn and pandas: six of
    the nine CPU seconds that importing Megatron takes. Then it tries ``megatron.post_training``,
    which the wheel does not have, and goes on without both. Remove when Megatron imports
    nvidia-modelopt where it is used; look again when the wheel has ``megatron.post_training``
    (``tests/megatron/megatron/test_upstream_contract.py`` tells).
    """
    absent = _Absent()
    sys.meta_path.insert(0, absent)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(absent)  # type: ignore[arg-type]
