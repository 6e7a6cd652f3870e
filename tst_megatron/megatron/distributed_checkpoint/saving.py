"""Saving of a run's checkpoints, seen from our side: what comes before and after."""

from __future__ import annotations

import argparse
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from tst_megatron.megatron import names
from tst_megatron.megatron.distributed_checkpoint.reading import Unreadable
from tst_megatron.megatron.wrapping import wrap


def observe_saving(
    *,
    before: Callable[[int], None],
    clear: Callable[[int], None],
    after: Callable[[int], None],
    forced: Collection[int],
    tracked_step: Callable[[], int | None],
) -> None:
    """Follow every save of this process's run, and save at more steps.

    Wraps three functions of ``megatron.training.training``: upstream has no callback. Remove when
    it has callbacks around saving, and takes a list of steps to save at.

    Args:
        before: called with the step on every rank, just before Megatron collects what it saves.
        clear: called on rank 0, before any rank writes into the folder of the step.
        after: called on rank 0, once the checkpoint is complete and Megatron's tracker names it.
        forced: steps that are saved although the save interval does not divide them.
        tracked_step: reads the step in Megatron's tracker file, by which an asynchronous save is
            known to be complete.
    """
    saving = _Saving(before, clear, after, frozenset(forced), tracked_step)
    wrap(names.training, "save_checkpoint", saving.report_save)
    wrap(names.training, "maybe_finalize_async_save", saving.report_finalized)
    wrap(names.training, "checkpoint_and_decide_exit", saving.force)


class _Saving:
    """What is being saved, and the wrappers that see it."""

    def __init__(
        self,
        before: Callable[[int], None],
        clear: Callable[[int], None],
        after: Callable[[int], None],
        forced: frozenset[int],
        tracked_step: Callable[[], int | None],
    ) -> None:
        self._before, self._clear, self._after = before, clear, after
        self._forced = forced
        self._tracked_step = tracked_step
        self._unfinished: list[int] = []
        self._interval: int | None = None

    def report_save(self, save_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(save_checkpoint)

        @functools.wraps(save_checkpoint)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind(*args, **kwargs).arguments
            if call.get("non_persistent_ckpt"):
                return save_checkpoint(*args, **kwargs)
            step, settings = call["iteration"], names.get_args()
            if self._interval is not None:
                # The arguments are saved too, with the interval that the recipe says.
                settings.save_interval = self._interval
            self._before(step)
            if is_first_rank():
                self._clear(step)
            # No rank writes into a folder that the first one is taking away.
            _barrier()
            result = save_checkpoint(*args, **kwargs)
            if settings.async_save:
                self._unfinished.append(step)
            elif is_first_rank():
                self._after(step)
            return result

        return wrapper

    def report_finalized(self, finalize: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(finalize)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = finalize(*args, **kwargs)
            if self._unfinished and is_first_rank():
                tracked = self._tracked_step()
                # Saves are finalised in the order in which they were made.
                if tracked in self._unfinished:
                    del self._unfinished[: self._unfinished.index(tracked) + 1]
                    self._after(tracked)
            return result

        return wrapper

    def force(self, checkpoint_and_decide_exit: Callable[..., Any]) -> Callable[..., Any]:
        """Save as if the interval divided a forced step, so that an exit there saves it once."""
        signature = inspect.signature(checkpoint_and_decide_exit)

        @functools.wraps(checkpoint_and_decide_exit)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            step = signature.bind(*args, **kwargs).arguments["iteration"]
            if step not in self._forced:
                return checkpoint_and_decide_exit(*args, **kwargs)
            settings = names.get_args()
            self._interval, settings.save_interval = settings.save_interval, step
            try:
                return checkpoint_and_decide_exit(*args, **kwargs)
            finally:
                settings.save_interval, self._interval = self._interval, None

        return wrapper


def reason_of(error: BaseException) -> str:
    """An error in one line; of a failed save or load, which writes pages, what failed and where."""
    if isinstance(error, Unreadable):
        return str(error)
    if not isinstance(error, CheckpointException) or not error.failures:
        return repr(error)
    failures = [f"{_cause(cause)} on rank {rank}" for rank, (cause, _) in error.failures.items()]
    return f"checkpoint {error.args[0]}: {'; '.join(failures)}"


def _cause(error: BaseException) -> str:
    return str(error) if isinstance(error, Unreadable) else repr(error)


def take_retention(args: argparse.Namespace) -> int | None:
    """Take ``save-retain-interval`` from Megatron's arguments, and return it.

    Megatron deletes the checkpoint before the newest without a look at either. Remove when it
    verifies the newest first.
    """
    interval: int | None = args.save_retain_interval
    args.save_retain_interval = None
    return interval


def is_first_rank() -> bool:
    """Whether this process is rank 0 of its job, or the only one."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
