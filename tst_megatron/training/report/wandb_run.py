"""Log every start of a run folder to one run of Weights & Biases, named in its ``wandb.json``.

W&B draws what it was sent first and ignores a step below its newest. So a start from
an older step than was logged has to take the later ones back: it *rewinds* the W&B run, which keeps
its id. Not every server can, and none while it still takes a killed run for a running one; then the
steps go to a new W&B run, and the group of both is the id of the first.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from tst_megatron.megatron import writers
from tst_megatron.system.files import write_beside
from tst_megatron.system.records import Damaged, read_json

RECORD = "wandb.json"

OF_THE_USER = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM")
"""Variables by which a person chooses the W&B run; nothing is done about it then."""


def start_wandb(
    folder: Path, args: argparse.Namespace, *, step: int, newest: int, say: Callable[[str], None]
) -> None:
    """Start or continue the W&B run of a run folder, if the recipe names a W&B project.

    Args:
        folder: the run folder.
        args: Megatron's arguments.
        step: the step that was loaded, or 0.
        newest: the newest step that was logged before this start, or 0.
        say: for a person.

    Raises:
        Exception: what ``wandb.init`` raises when it can start no run at all.
    """
    if not args.wandb_project:
        return
    if chosen := [name for name in OF_THE_USER if os.environ.get(name)]:
        say(
            f"Weights & Biases: {' and '.join(chosen)} chooses the run, so {RECORD} is not used, "
            "and curves of steps that are trained again are not taken back"
        )
        writers.start_wandb()
        return
    place = {"project": args.wandb_project, "entity": args.wandb_entity}
    known = _read(folder / RECORD, place, say)
    if known is None:
        known = _write(folder / RECORD, place, say)
    elif step < newest and _rewound(known["id"], step, say):
        return
    elif step < newest:
        known = _write(folder / RECORD, place, say, group=known.get("group") or known["id"])
    group = {} if "WANDB_RUN_GROUP" in os.environ else {"group": known.get("group")}
    # Keys that may change over the life of a run are in its configuration.
    writers.start_wandb(id=known["id"], resume="allow", allow_val_change=True, **group)


def _rewound(run_id: str | None, step: int, say: Callable[[str], None]) -> bool:
    moment = f"{run_id}?_step={step}"
    try:
        writers.start_wandb(id=run_id, resume_from=moment, allow_val_change=True)
    except Exception as error:
        # Of many kinds, from the library, the network and the server; training does not need it.
        say(
            f"Weights & Biases: run {run_id} cannot be rewound to step {step} ({error}). Its later "
            "steps stay drawn there; this start goes to a new run in the group of that id"
        )
        return False
    say(f"Weights & Biases: run {run_id} was rewound to step {step}")
    return True


def _read(
    path: Path, place: dict[str, str | None], say: Callable[[str], None]
) -> dict[str, str | None] | None:
    """Return what the record says; None if it is missing or of another project."""
    try:
        record = read_json(path, {"id": str})
    except Damaged as error:
        say(f"Weights & Biases: {path} {error}, so the run gets a new id there")
        return None
    if (
        record is None
        or not record["id"]
        or any(record.get(key) != value for key, value in place.items())
    ):
        return None
    return record


def _write(
    path: Path,
    place: dict[str, str | None],
    say: Callable[[str], None],
    group: str | None = None,
) -> dict[str, str | None]:
    record = {"id": secrets.token_hex(4), **place, **({"group": group} if group else {})}
    try:
        write_beside(path, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        say(f"Weights & Biases: {path} cannot be written ({error}): the next start gets a new id")
    return record
