"""Add gradients of weights straight to Megatron's fp32 buffer, without a copy in between.

Megatron's data parallelism gives each weight a buffer ``main_grad`` and a mark
``grad_added_to_main_grad``. Whoever adds a gradient to the buffer sets the mark.
"""

from __future__ import annotations

import torch
from torch import Tensor


def main_grad_of(weight: Tensor) -> Tensor | None:
    """Return the fp32 buffer that Megatron accumulates a weight's gradient in, or None.

    None also under Megatron-FSDP, whose buffers are allocated and overwritten during a step. The
    gradient is then returned to autograd as usual.
    """
    if not hasattr(weight, "grad_added_to_main_grad") or hasattr(weight, "__fsdp_param__"):
        return None
    main_grad = getattr(weight, "main_grad", None)
    return main_grad if isinstance(main_grad, Tensor) else None


def note_added(weight: Tensor) -> Tensor:
    """Tell Megatron that a gradient is in the buffer, and return a gradient for autograd.

    Autograd must receive some gradient, so that the hook of Megatron's data parallelism runs. The
    hook ignores its value, except for tied tables (``zero_out_wgrad``), where it adds the value:
    they get zeros. Megatron's own linear layer does the same.
    """
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    make = torch.zeros_like if getattr(weight, "zero_out_wgrad", False) else torch.empty_like
    return make(weight)


def add_matmul(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to a sum in place, in the type of the sum.

    On a GPU the factors keep their type, for example bf16 factors beside an fp32 sum.
    """
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
