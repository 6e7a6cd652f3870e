"""Load a run's checkpoint on all ranks, or together go back to an older one if it is damaged.

Each rank reads its own part and tells the others nothing. If one rank alone met damage, the others
would wait for it in the next collective. So every read of Megatron's load ends in an agreement, and
all ranks go back to the checkpoint before together. What a first, broken load has left in the model
and in the optimizer is overwritten by the second, since both ask for the same.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import nested_values
from torch.distributed.checkpoint.api import CheckpointException

from tst_megatron.megatron import names
from tst_megatron.megatron.distributed_checkpoint.reading import Unreadable, read_checked
from tst_megatron.megatron.distributed_checkpoint.saving import reason_of
from tst_megatron.megatron.distributed_checkpoint.weights import rename_norms
from tst_megatron.megatron.optimizer import schedule_of_the_arguments
from tst_megatron.megatron.ranks import (
    from_all_ranks,
    from_first_rank,
    greatest_of_ranks,
    is_first_rank,
)
from tst_megatron.megatron.repairs.wrapping import wrap
from tst_megatron.system.machine.errors import machine_error
from tst_megatron.system.pickles.metadata_file import read_description

# Every load of a run comes through here. Nothing in what it reads may run.
read_checked()

FallBack = Callable[[int, str], int | None]
"""A function that rank 0 calls with the step that cannot be loaded and the reason. It points
Megatron's tracker at an older complete checkpoint and returns its step, or None if none is left."""


_NONE, _FAILED = -1, -2


class NothingToLoad(RuntimeError):
    """No checkpoint of a run can be loaded; the message is for its owner, the same on all ranks."""


class _Damaged(Exception):
    """One rank or more read something else than was saved; raised on all ranks."""


class _NotRead(RuntimeError):
    """The machine of one rank or more failed to read, for example its disk; raised on all ranks."""


def observe_loading(
    expected_step: int | None,
    on_load: Callable[[int], None] | None,
    fall_back: FallBack | None = None,
    *,
    steps_of_trunk: int = 0,
) -> None:
    """Check on all ranks that the step which Megatron loaded is the one that was meant.

    Megatron reads its tracker file on every rank and starts from step 0 if there is none. Wraps
    ``load_checkpoint``; remove when it takes the step to load, fails on another, and tells all
    ranks when one cannot read its part.

    Args:
        expected_step: on rank 0, the step it pointed the tracker at; unused on the others.
        on_load: called on this rank with the step that was loaded.
        fall_back: on rank 0, finds an older checkpoint; unused on the others.
        steps_of_trunk: checkpoints up to this step are of a run that may have had another schedule
            of learning rate and weight decay; this start's arguments say the schedule from there.
    """

    def checked(load_checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(load_checkpoint)

        @functools.wraps(load_checkpoint)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            wanted = from_first_rank(-1 if expected_step is None else expected_step)
            call = signature.bind(*args, **kwargs).arguments
            optimizer, scheduler = call.get("optimizer"), call.get("opt_param_scheduler")
            while True:
                with contextlib.ExitStack() as stack:
                    if scheduler is not None:
                        # Its load adds the saved count of samples to the one that it has.
                        scheduler.num_steps = 0
                        if 0 < wanted <= steps_of_trunk:
                            stack.enter_context(schedule_of_the_arguments(optimizer, scheduler))
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
    """Load; return the result, or the damage in words: all ranks get a result, or all get words."""
    result, words = None, None
    try:
        with _imported(step), _agreeing():
            result = load()
    except _Damaged as error:
        return None, str(error)
    except SystemExit:
        # Megatron ends so on a checkpoint that lacks something; its log says what.
        words = "it lacks what Megatron needs, which the log names"
    except (Unreadable, names.CheckpointingException) as error:
        if machine_error(error) is not None:
            raise
        words = reason_of(error).partition("\n")[0]
    try:
        # Except for what each rank reads, all ranks see the same: all of them come here, or none.
        _agree(words, is_of_machine=False)
    except _Damaged as error:
        return None, str(error)
    return result, None


def _older(fall_back: FallBack | None, step: int, damage: str) -> int:
    """Return the step to load in the place of a damaged one, the same on all ranks.

    Raises:
        NothingToLoad: no checkpoint is left.
    """
    older = _FAILED
    try:
        wanted = step if is_first_rank() and fall_back is not None and step > 0 else 0
        older = (fall_back(wanted, damage) if wanted and fall_back else None) or _NONE
    finally:
        # Also if that failed on rank 0: the others wait for its answer.
        older = from_first_rank(older)
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
"""True while all ranks of this job are in Megatron's load, where each asks for the same reads."""


@contextlib.contextmanager
def _agreeing() -> Iterator[None]:
    global _is_agreeing
    _is_agreeing = True
    try:
        yield
    finally:
        _is_agreeing = False


def _agreed(read: Callable[..., Any]) -> Callable[..., Any]:
    """Let a read fail on all ranks if it fails on one."""

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
    """Return if no rank has a complaint about what it read; all ranks call this together.

    Args:
        words: this rank's complaint, or None.
        is_of_machine: the machine is at fault, and not the checkpoint.

    Raises:
        _Damaged: a rank complains; on all ranks.
        _NotRead: likewise, and a machine is at fault.
    """
    gravity = 0 if words is None else 2 if is_of_machine else 1
    worst = greatest_of_ranks(gravity)
    if worst == 0:
        return
    # Each complaint once, with the first rank that made it.
    said = {text: rank for rank, text in reversed(list(enumerate(from_all_ranks(words)))) if text}
    shown = sorted(said, key=lambda text: said[text])[:3]
    message = "; ".join(f"{text} (rank {said[text]})" for text in shown)
    if len(said) > len(shown):
        message += f"; and {len(said) - len(shown)} more"
    raise (_NotRead(f"the checkpoint was not read: {message}") if worst == 2 else _Damaged(message))


def _reason(error: BaseException) -> str:
    """Say why a read failed, in one line."""
    # Torch wraps the error once more, as what failed on the only rank it knows.
    if isinstance(error, CheckpointException) and len(error.failures) == 1:
        ((cause, _),) = error.failures.values()
        return _reason(cause)
    if isinstance(error, Unreadable | names.CheckpointingException):
        # Written for a person; upstream's has several lines.
        return " ".join(str(error).split())
    return repr(error).partition("\n")[0]


# --- the first load of imported weights ----------------------------------------------------------


@contextlib.contextmanager
def _imported(step: int) -> Iterator[None]:
    """Let the first start from a pretrained checkpoint load it, whatever layers its weights are of.

    Transformer Engine's layers ask for the state of their scaling too, which a checkpoint of other
    layers does not have. Remove when Megatron tells weights and scaling state apart.
    """
    load = names.dist_checkpointing.load
    if step == 0 and names.get_args().pretrained_checkpoint:
        names.dist_checkpointing.load = _weights_alone(load)
    try:
        yield
    finally:
        names.dist_checkpointing.load = load


def _weights_alone(load: Callable[..., Any]) -> Callable[..., Any]:
    """Let a load ask for weights by the names that the checkpoint has, and not for scaling state.

    Transformer Engine refuses that of delayed scaling, which is a pickle.
    """

    @functools.wraps(load)
    def wrapper(sharded_state_dict: Any, checkpoint_dir: str, *args: Any, **kwargs: Any) -> Any:
        stored = _agreed(read_description)(Path(checkpoint_dir)).state_dict_metadata
        rename_norms(nested_values(sharded_state_dict), stored)
        for part in (each for each in sharded_state_dict.values() if isinstance(each, dict)):
            for name in [name for name in part if "_extra_state" in str(name)]:
                del part[name]
        return load(sharded_state_dict, checkpoint_dir, *args, **kwargs)

    return wrapper
