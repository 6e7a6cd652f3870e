"""Do with gloo the collectives that NCCL has and gloo refuses.

The originals are taken when this module is imported, before ``host.install`` replaces them.
"""

from __future__ import annotations

from typing import Any

import torch

_all_to_all_single = torch.distributed.all_to_all_single


def all_to_all_with_list_splits(
    output: torch.Tensor,
    input: torch.Tensor,  # noqa: A002 - upstream's keyword
    output_split_sizes: Any = None,
    input_split_sizes: Any = None,
    group: Any = None,
    async_op: bool = False,
) -> Any:
    """Do ``all_to_all_single`` with splits that may be tensors."""
    return _all_to_all_single(
        output,
        input,
        output_split_sizes=_as_list(output_split_sizes),
        input_split_sizes=_as_list(input_split_sizes),
        group=group,
        async_op=async_op,
    )


_all_gather, _reduce_scatter = torch.distributed.all_gather, torch.distributed.reduce_scatter


def all_gather_of_any_sizes(
    tensor_list: list[torch.Tensor],
    tensor: torch.Tensor,
    group: Any = None,
    async_op: bool = False,
) -> Any:
    """Do ``all_gather`` of pieces that may differ in size: the shorter ones are padded."""
    if len({part.shape for part in tensor_list}) == 1:
        return _all_gather(tensor_list, tensor, group=group, async_op=async_op)
    assert not async_op, "the token dispatcher waits for it"
    longest = max(part.numel() for part in tensor_list)
    padded = [tensor.new_empty(longest) for _ in tensor_list]
    _all_gather(padded, _padded(tensor, longest), group=group)
    for part, filled in zip(tensor_list, padded, strict=True):
        part.copy_(filled[: part.numel()].view_as(part))
    return None


def reduce_scatter_of_any_sizes(
    output: torch.Tensor,
    input_list: list[torch.Tensor],
    op: Any = torch.distributed.ReduceOp.SUM,
    group: Any = None,
    async_op: bool = False,
) -> Any:
    """Do ``reduce_scatter`` of pieces that may differ in size: the shorter ones are padded."""
    if len({part.shape for part in input_list}) == 1:
        return _reduce_scatter(output, input_list, op=op, group=group, async_op=async_op)
    assert not async_op, "the token dispatcher waits for it"
    longest = max(part.numel() for part in input_list)
    padded = output.new_empty(longest)
    _reduce_scatter(padded, [_padded(part, longest) for part in input_list], op=op, group=group)
    output.copy_(padded[: output.numel()].view_as(output))
    return None


def _padded(tensor: torch.Tensor, length: int) -> torch.Tensor:
    flat = tensor.detach().reshape(-1)
    return torch.nn.functional.pad(flat, (0, length - flat.numel()))


def _as_list(sizes: Any) -> Any:
    return sizes.tolist() if isinstance(sizes, torch.Tensor) else sizes
