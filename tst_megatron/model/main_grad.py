"""Gradients of weights that go straight into Megatron's fp32 buffer, without a copy in between."""

from __future__ import annotations

import torch
from torch import Tensor


def main_grad_of(weight: Tensor) -> Tensor | None:
    """The buffer that Megatron's data parallelism accumulates a weight's gradient in, if any.

    Megatron-FSDP's buffers come and go and are overwritten, so they count as none: a gradient is
    then returned to autograd as usual.
    """
    if not hasattr(weight, "grad_added_to_main_grad") or hasattr(weight, "__fsdp_param__"):
        return None
    main_grad = getattr(weight, "main_grad", None)
    return main_grad if isinstance(main_grad, Tensor) else None


def note_added(weight: Tensor) -> Tensor:
    """Tell Megatron that a gradient is in the buffer, and give autograd what it returns instead.

    The hook of Megatron's data parallelism must still be called, and skips a gradient of this
    weight; but where the weight is also the other table (``zero_out_wgrad``) it adds what it is
    given, which is then zero. As in Megatron's own linear layer.
    """
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    make = torch.zeros_like if getattr(weight, "zero_out_wgrad", False) else torch.empty_like
    return make(weight)


def add_matmul(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product to a sum in place, in the type of the sum; factors are not widened on a GPU."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))
