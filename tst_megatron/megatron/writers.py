"""Start Megatron's writers of curves so that a resumed run continues its own curves."""

from __future__ import annotations

import functools
from typing import Any

from tst_megatron.megatron import names
from tst_megatron.megatron.repairs.wrapping import wrap


def tensorboard_writer() -> Any:
    """Return Megatron's TensorBoard writer, or None on every rank but the last."""
    return names.global_vars.get_tensorboard_writer()


def wandb_writer() -> Any:
    """Return Megatron's Weights & Biases run, or None."""
    return names.global_vars.get_wandb_writer()


def drop_tensorboard_after(step: int) -> None:
    """Tell TensorBoard to forget the values that an earlier start wrote of later steps.

    ``SummaryWriter(purge_step=...)`` does the same, but Megatron makes its writer before it loads
    the checkpoint that says the step. Remove when Megatron makes it afterwards.

    Args:
        step: steps completed when this start resumes; its own curves begin with the next step.
    """
    writer = tensorboard_writer()
    if writer is None:
        return
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    start = SessionLog(status=SessionLog.START)
    writer.file_writer.add_event(Event(step=step + 1, session_log=start))


def hold_wandb_back() -> None:
    """Let Megatron start no Weights & Biases run when it parses its arguments.

    ``start_wandb`` starts it when the loaded step is known, which decides whether earlier curves
    have to be cut. Remove when Megatron starts it after loading, and lets its id be given.
    """
    wrap(names.global_vars, "_set_wandb_writer", lambda _: lambda args: None)


def start_wandb(**settings: Any) -> None:
    """Start the Weights & Biases run as Megatron does, if its arguments name a project.

    Args:
        settings: passed to ``wandb.init`` beside Megatron's own name, project, folder and config.

    Raises:
        Exception: whatever ``wandb.init`` raises, such as its ``CommError``.
    """
    args = names.get_args()
    original = names.global_vars._set_wandb_writer.tst_megatron_original
    if not args.wandb_project:
        return
    import wandb

    init = wandb.init
    wandb.init = functools.partial(init, **settings)
    try:
        original(args)
    finally:
        wandb.init = init
