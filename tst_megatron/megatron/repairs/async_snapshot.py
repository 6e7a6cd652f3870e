"""Write an asynchronous save as the tensors were when it began.

The worker shares the memory of CPU tensors. Without a copy it would write what later training steps
make of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def of_a_snapshot(schedule_async_call: Callable[..., Any]) -> Callable[..., Any]:
    """Copy every CPU tensor of an asynchronous save before training continues.

    Remove when ``prepare_write_data`` copies them.
    """

    @functools.wraps(schedule_async_call)
    def wrapper(self: Any, async_req: Any) -> None:
        if async_req.preload_fn is not None:
            # Upstream's contract: the second argument is what `preload_fn` holds too.
            for _, _, (_, tensors) in async_req.async_fn_args[1]:
                tensors[:] = [
                    (item, tensor.clone() if tensor.is_cpu else tensor) for item, tensor in tensors
                ]
        schedule_async_call(self, async_req)

    return wrapper
