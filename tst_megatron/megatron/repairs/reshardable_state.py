"""Save the optimizer's state unshifted in the fully reshardable format, where buckets are padded.

Megatron gathers the state of a buffer bucket by bucket and leaves out the padding at the end of
each. Then it cuts parameters out of it by offsets that count the padding. Example: bucket 0 holds
100 elements and 28 of padding, so the first parameter of bucket 1 is at 128 in the buffer, and at
100 in what was gathered. Every parameter after the first padding is saved shifted, the last ones
are filled up with zeros, and only a warning says so. See
https://github.com/NVIDIA/Megatron-LM/pull/5077.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def without_padding(sharded_param_state: Callable[..., Any]) -> Callable[..., Any]:
    """Cut parameters out of the gathered state where they are, and prove it before a save.

    Remove when the wheel has pull request 5077, with which upstream takes the padding off:
    ``test_reshardable_state.py`` says when. Both together would shift the state the other way,
    which is refused before anything is written.
    """
    signature = inspect.signature(sharded_param_state)

    @functools.wraps(sharded_param_state)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _offsets_without_padding(self.buffers):
            state = sharded_param_state(self, *args, **kwargs)
        is_loading = signature.bind(self, *args, **kwargs).arguments.get("is_loading", False)
        # Memory-efficient gathers leave nothing to save at ranks above the first.
        if state is not None and not is_loading:
            _require_own_shards(self, state)
        return state

    return wrapper


@contextmanager
def _offsets_without_padding(buffers: list[Any]) -> Iterator[None]:
    """Let the maps of buffers tell the place of each parameter in what is gathered of them."""
    kept = [buffer.param_index_map for buffer in buffers]
    try:
        for buffer in buffers:
            buffer.param_index_map = gathered_offsets(buffer)
        yield
    finally:
        for buffer, offsets in zip(buffers, kept, strict=True):
            buffer.param_index_map = offsets


def gathered_offsets(buffer: Any) -> dict[Any, tuple[int, int, int]]:
    """Return (start, end, bucket) of each parameter, without the padding of the buckets before it.

    Args:
        buffer: Megatron's ``_ParamAndGradBuffer``.

    Returns:
        In the buffer's order, elements of the tensors of ``get_parameter_state_dp_zero``.
    """
    padding_before, total = [], 0
    for bucket in buffer.buckets:
        padding_before.append(total)
        total += bucket.grad_data.numel() - bucket.numel_unpadded
    return {
        parameter: (start - padding_before[index], end - padding_before[index], index)
        for parameter, (start, end, index) in buffer.param_index_map.items()
    }


def _require_own_shards(optimizer: Any, state: dict[int, dict[str, Any]]) -> None:
    """Compare what will be saved with this rank's part of it, bit by bit."""
    parameters = (each for buffer in optimizer.buffers for each in buffer.param_index_map)
    for index, parameter in enumerate(parameters):
        if parameter not in optimizer.model_param_group_index_map:
            continue
        own = optimizer._get_model_param_range_map(parameter)["param"]
        tensors = optimizer._get_main_param_and_optimizer_states(parameter)
        for key, saved in state[index].items():
            shard = saved.data.flatten()[own.start : own.end]
            memory = tensors[key].detach().to("cpu", torch.float32).flatten()
            # As integers, since NaN is not equal to itself.
            if not torch.equal(shard.view(torch.int32), memory.view(torch.int32)):
                raise RuntimeError(
                    f"dist-ckpt-optim-fully-reshardable: what would be saved as {saved.key} is not "
                    "the state in memory, so this would be no checkpoint to go on from. Use the "
                    "Megatron-Core that this project is tested with, or save without "
                    "dist-ckpt-optim-fully-reshardable"
                )
