"""Do what must come before and after each save of a run, and save at more steps.

Megatron saves. This module tells the run when a save begins and when it is complete.
"""

from __future__ import annotations

import argparse
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from tst_megatron.megatron import names
from tst_megatron.megatron.distributed_checkpoint.reading import Unreadable
from tst_megatron.megatron.ranks import is_first_rank, wait_for_all_ranks
from tst_megatron.megatron.repairs.wrapping import wrap


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
        clear: called with the step on rank 0, before any rank writes into the folder of the step.
        after: called with the step on rank 0, once the checkpoint is complete and Megatron's
            tracker names it.
        forced: steps that are saved although the save interval does not divide them.
        tracked_step: reads the step in Megatron's tracker file. An asynchronous save is complete
            when the tracker names it.
    """
    saving = _Saving(before, clear, after, frozenset(forced), tracked_step)
    wrap(names.training, "save_checkpoint", saving.report_save)
    wrap(names.training, "maybe_finalize_async_save", saving.report_finalized)
    wrap(names.training, "checkpoint_and_decide_exit", saving.force)


class _Saving:
    """The saves in progress, and the wrappers that see them."""

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
        """Announce a save on all ranks before it; after a synchronous one, report it complete."""
        signature = inspect.signature(save_checkpoint)

        @functools.wraps(save_checkpoint)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind(*args, **kwargs).arguments
            if call.get("non_persistent_ckpt"):
                return save_checkpoint(*args, **kwargs)
            step, settings = call["iteration"], names.get_args()
            if self._interval is not None:
                # The arguments are saved too: they must hold the interval of the recipe.
                settings.save_interval = self._interval
            self._before(step)
            if is_first_rank():
                self._clear(step)
            # No rank may write into a folder that the first rank is still deleting.
            wait_for_all_ranks()
            result = save_checkpoint(*args, **kwargs)
            if settings.async_save:
                self._unfinished.append(step)
            elif is_first_rank():
                self._after(step)
            return result

        return wrapper

    def report_finalized(self, finalize: Callable[..., Any]) -> Callable[..., Any]:
        """Report an asynchronous save complete when Megatron's tracker names it."""

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
    """Say an error in one line; of a failed save or load, what failed and on which rank."""
    if isinstance(error, Unreadable):
        return str(error)
    if not isinstance(error, CheckpointException) or not error.failures:
        return repr(error)
    failures = [f"{_cause(cause)} on rank {rank}" for rank, (cause, _) in error.failures.items()]
    return f"checkpoint {error.args[0]}: {'; '.join(failures)}"


def _cause(error: BaseException) -> str:
    return str(error) if isinstance(error, Unreadable) else repr(error)


def take_retention(args: argparse.Namespace) -> int | None:
    """Take ``save-retain-interval`` out of Megatron's arguments, and return it.

    Megatron would delete the checkpoint before the newest without checking either of them. Remove
    when it verifies the newest first.
    """
    interval: int | None = args.save_retain_interval
    args.save_retain_interval = None
    return interval
