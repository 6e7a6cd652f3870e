"""Read what a checkpoint holds beside its tensors, with one clear error for damaged bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tst_megatron.recipe.recipe import RecipeError
from tst_megatron.system.machine.errors import machine_error


class UnreadableError(RecipeError):
    """The bytes of a checkpoint are damaged; an older checkpoint may not be."""


def read(checkpoint: Path, *, advice: str) -> dict[str, Any]:
    """Return the arguments, the iteration and so on of one checkpoint.

    Args:
        checkpoint: an ``iter_`` folder, or ``release``.
        advice: what to do when it cannot be read, after looking for the damage.

    Raises:
        UnreadableError: damaged bytes, which raise whatever they happen to mean.
        OSError: the machine did not give them.
    """
    # Imports torch, which a check that fails before this need not wait for.
    from torch.distributed.checkpoint.api import CheckpointException

    # Imports Megatron: the CPU host must be in place where there is no GPU.
    from tst_megatron.megatron.distributed_checkpoint.model import read_saved_state

    # Its module imports Megatron too.
    from tst_megatron.megatron.distributed_checkpoint.saving import reason_of

    try:
        state = read_saved_state(checkpoint)
        state["args"].world_size  # noqa: B018 - damaged bytes may be no arguments at all
    except (Exception, CheckpointException) as error:
        if (cause := machine_error(error)) is not None:
            raise cause from error
        raise UnreadableError(
            [
                f"{checkpoint}: its saved arguments cannot be read ({reason_of(error)}). See what "
                f"is damaged with `tst-megatron checkpoint verify {checkpoint}`, then "
                f"{advice}"
            ]
        ) from error
    return state
