"""Choose between the Triton kernels and the torch code that computes the same."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Implementation = Literal["auto", "torch", "triton"]
"""``auto`` takes the Triton kernels on a GPU, and torch otherwise."""

TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Types that the kernels read. They compute in fp32, which is too coarse for fp64."""


def uses_triton(tensor: Tensor, implementation: Implementation) -> bool:
    """Tell whether the Triton kernels compute this.

    Args:
        tensor: of the type that the kernels would read, where they would read it: logits, hidden
            states or an embedding table.
        implementation: ``auto`` takes the kernels on a GPU, for the types that they know.

    Raises:
        ValueError: there is no such implementation, or it cannot take this type.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation: {implementation} is none of auto, torch, triton")
    if implementation == "auto":
        return tensor.is_cuda and tensor.dtype in TRITON_DTYPES
    if implementation == "triton" and tensor.dtype not in TRITON_DTYPES:
        raise ValueError(f"implementation: triton computes in fp32, not {tensor.dtype}. Use torch")
    return implementation == "triton"
