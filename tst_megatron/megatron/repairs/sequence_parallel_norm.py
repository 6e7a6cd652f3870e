"""Build norms for sequence parallelism without Transformer Engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def with_rms_norm(new: Callable[..., Any]) -> Callable[..., Any]:
    """Build ``WrappedTorchNorm`` with sequence parallelism too, which it asserts against.

    All that sequence parallelism asks of a norm is a mark on its parameters. Remove when
    ``WrappedTorchNorm`` accepts ``sequence_parallel``.
    """

    def build(cls: Any, config: Any, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> Any:
        if not config.sequence_parallel:
            return new(cls, config, hidden_size, eps, **kwargs)
        if config.normalization != "RMSNorm":
            raise ValueError(
                f"normalization {config.normalization}: with sequence parallelism and without "
                "Transformer Engine only RMSNorm is available"
            )
        norm = torch.nn.RMSNorm(hidden_size, eps=eps)
        norm.weight.sequence_parallel = True  # type: ignore[attr-defined]
        return norm

    return build
