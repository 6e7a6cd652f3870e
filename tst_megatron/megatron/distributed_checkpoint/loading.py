"""Loading of a run's checkpoint: all ranks agree on whether it could be read, or load an older one.

Each rank reads its own part, without a word to the others. If one of them alone met damage, the
others would wait for it in the next collective. So every read of Megatron's load ends in an
agreement, and all ranks go back to the checkpoint before together. What a first, broken load has
left in the model and in the optimizer is overwritten by the second, since both ask for the same.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from tst_megatron.megatron import names
from tst_megatron.megatron.distributed_checkpoint.reading import Unreadable
from tst_megatron.megatron.distributed_checkpoint.saving import is_first_rank, reason_of
from tst_megatron.megatron.wrapping import wrap
from tst_megatron.system.machine.errors import machine_error

_DEFAULT_STRICTNESS = "assume_ok_unexpected"

FallBack = Callable[[int, str], int | None]
"""Told on rank 0 which step cannot be loaded and why. Points Megatron's tracker at an older whole
checkpoint and returns its step, or None if there is none."""


_NONE, _FAILED = -1, -2


class NothingToLoad(RuntimeError):
    """No checkpoint of a run can be loaded; in words for its owner, the same on all ranks."""


class _Damaged(Exception):
    """What one rank or more read is not what was saved; raised on all of them."""


class _NotRead(RuntimeError):
    """A machine did not give one rank or more what they wanted to read; raised on all of them."""


def observe_loading(
    expected_step: int | None,
    on_load: Callable[[int], None] | None,
    fall_back: FallBack | None = None,
) -> None:
    """Check on all ranks that the step which Megatron loaded is the one that was meant.

    Megatron reads its tracker file on every rank and starts from step 0 if there is none. Wraps
    ``load_checkpoint``; remove when it takes the step to load, fails on another, and tells all
    ranks when one cannot read its part.

    Args:
        expected_step: on rank 0, the step it pointed the tracker at; unused on the others.
        on_load: told the step, on this rank.
        fall_back: on rank 0, finds an older checkpoint; unused on the others.
    """

    def checked(load_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(load_checkpoint)

        @functools.wraps(load_checkpoint)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            wanted = _from_first_rank(-1 if expected_step is None else expected_step)
            scheduler = signature.bind(*args, **kwargs).arguments.get("opt_param_scheduler")
            while True:
                if scheduler is not None:
                    # Its load adds the saved count of samples to the one that it has.
                    scheduler.num_steps = 0
                result, damage = _attempt(lambda: load_checkpoint(*args, **kwargs), wanted)
                if damage is None:
                    break
                wanted = _older(fall_back, wanted, damage)
            step = int(result[0])
            if wanted not in (-1, step):
                raise RuntimeError(
                    f"Megatron loaded step {step}, and rank 0 had found that the run goes on from "
                    f"step {wanted}. Does every node see the same checkpoints? Start it again"
                )
            if on_load is not None:
                on_load(step)
            return result

        return wrapper

    # Under both names that Megatron calls it by.
    for module in (names.dist_checkpointing, names.dist_serialization):
        wrap(module, "load_common_state_dict", _agreed)
    wrap(names.TorchDistLoadShardedStrategy, "load", _agreed)
    wrap(names.training, "load_checkpoint", checked)


def _attempt(load: Callable[[], Any], step: int) -> tuple[Any, str | None]:
    """What a load returned, or why it could not be done, the same on all ranks."""
    result, words = None, None
    try:
        with _imported(step), _agreeing():
            result = load()
    except _Damaged as error:
        return None, str(error)
    except SystemExit:
        # How Megatron ends on a checkpoint that lacks something; its log says what.
        words = "it lacks what Megatron needs, which the log names"
    except (Unreadable, names.CheckpointingException) as error:
        if machine_error(error) is not None:
            raise
        words = reason_of(error).partition("\n")[0]
    try:
        # Beside what is read, all ranks see the same, so that all of them come here or none.
        _agree(words, is_of_machine=False)
    except _Damaged as error:
        return None, str(error)
    return result, None


def _older(fall_back: FallBack | None, step: int, damage: str) -> int:
    """The step to load in the place of a damaged one.

    Raises:
        NothingToLoad: there is none.
    """
    older = _FAILED
    try:
        wanted = step if is_first_rank() and fall_back is not None and step > 0 else 0
        older = (fall_back(wanted, damage) if wanted and fall_back else None) or _NONE
    finally:
        # Also where that failed: the others wait for it.
        older = _from_first_rank(older)
    if older > 0:
        return older
    if older == _FAILED:
        raise RuntimeError("rank 0 could not point Megatron's tracker at an older checkpoint")
    if step > 0 or not names.get_args().pretrained_checkpoint:
        raise NothingToLoad(
            f"{names.get_args().load}: no checkpoint can be loaded. Step {step}: {damage}. Put a "
            "whole one back into this folder to go on, or use another --run-folder to start over"
        )
    pretrained = names.get_args().pretrained_checkpoint
    raise NothingToLoad(f"pretrained-checkpoint: {pretrained}: {damage}. Make it again")


# --- agreement -----------------------------------------------------------------------------------

_is_agreeing = False
"""Whether all ranks of this job are in Megatron's load, where each asks for the same reads."""


@contextlib.contextmanager
def _agreeing() -> Iterator[None]:
    global _is_agreeing
    _is_agreeing = True
    try:
        yield
    finally:
        _is_agreeing = False


def _agreed(read: Callable[..., Any]) -> Callable[..., Any]:
    """A read that fails on all ranks if it fails on one."""

    @functools.wraps(read)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not _is_agreeing:
            return read(*args, **kwargs)
        result, words, is_of_machine = None, None, False
        try:
            result = read(*args, **kwargs)
        except (Exception, CheckpointException) as error:
            words, is_of_machine = _reason(error), machine_error(error) is not None
        _agree(words, is_of_machine=is_of_machine)
        return result

    return wrapper


def _agree(words: str | None, *, is_of_machine: bool) -> None:
    """Go on if no rank has anything to say against it.

    Raises:
        _Damaged: a rank has; on all ranks.
        _NotRead: likewise, and it says that its machine is at fault.
    """
    gravity = 0 if words is None else 2 if is_of_machine else 1
    worst = _over_ranks(torch.distributed.ReduceOp.MAX, gravity)
    if worst == 0:
        return
    of_ranks: list[Any] = [words]
    if torch.distributed.is_initialized():
        of_ranks = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(of_ranks, words)
    said = {text: rank for rank, text in reversed(list(enumerate(of_ranks))) if text}
    shown = sorted(said, key=lambda text: said[text])[:3]
    message = "; ".join(f"{text} (rank {said[text]})" for text in shown)
    if len(said) > len(shown):
        message += f"; and {len(said) - len(shown)} more"
    raise (_NotRead(f"the checkpoint was not read: {message}") if worst == 2 else _Damaged(message))


def _reason(error: BaseException) -> str:
    """Why a read failed; torch wraps it once more, as what failed on the only rank it knows."""
    if isinstance(error, CheckpointException) and len(error.failures) == 1:
        ((cause, _),) = error.failures.values()
        return _reason(cause)
    if isinstance(error, Unreadable | names.CheckpointingException):
        # Written for a person; upstream's goes over several lines.
        return " ".join(str(error).split())
    return repr(error).partition("\n")[0]


def _from_first_rank(value: int) -> int:
    if not torch.distributed.is_initialized():
        return value
    tensor = torch.tensor([value], dtype=torch.long, device=torch.cuda.current_device())
    torch.distributed.broadcast(tensor, 0)
    return int(tensor.item())


def _over_ranks(operation: Any, value: int) -> int:
    if not torch.distributed.is_initialized():
        return value
    tensor = torch.tensor([value], dtype=torch.long, device=torch.cuda.current_device())
    torch.distributed.all_reduce(tensor, op=operation)
    return int(tensor.item())


# --- the first load of imported weights ----------------------------------------------------------


@contextlib.contextmanager
def _imported(step: int) -> Iterator[None]:
    """Let the first start from a pretrained checkpoint go without what is no weight.

    Transformer Engine's layers ask for the state of their scaling too, which a checkpoint of other
    layers does not have; that every weight is there was checked before (``pretrained_problems``).
    Remove when Megatron tells the two apart.
    """
    settings = names.get_args()
    before = settings.dist_ckpt_strictness
    is_lenient = step == 0 and settings.pretrained_checkpoint and before == _DEFAULT_STRICTNESS
    settings.dist_ckpt_strictness = "log_all" if is_lenient else before
    try:
        yield
    finally:
        settings.dist_ckpt_strictness = before
