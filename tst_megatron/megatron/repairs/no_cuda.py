"""Let Megatron's ``pretrain`` start on a machine without CUDA."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tst_megatron.megatron import names
from tst_megatron.megatron.repairs.wrapping import wrap


def allow_no_cuda() -> None:
    """Call ``initialize_megatron`` with ``allow_no_cuda``, which ``pretrain`` does not pass on.

    Remove when it does.
    """

    def permissive(initialize_megatron: Callable[..., Any]) -> Callable[..., Any]:
        return functools.partial(initialize_megatron, allow_no_cuda=True)

    wrap(names.training, "initialize_megatron", permissive)
