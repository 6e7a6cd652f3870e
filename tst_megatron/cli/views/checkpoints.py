"""Say of every checkpoint of a run whether it is whole."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tst_megatron.checkpoint.content.content import Findings
from tst_megatron.checkpoint.folder import RELEASE, WHAT_TO_GIVE, list_checkpoints
from tst_megatron.checkpoint.whole import examine


def verify(folder: Path, *, deep: bool, console: Console) -> bool:
    """Print a line per checkpoint, oldest first.

    Args:
        folder: a run folder, its ``checkpoints/``, one ``iter_`` folder, or what ``import`` wrote.
        deep: read everything that is stored, and not only look at the files.
        console: where the lines and the progress go.

    Returns:
        Whether all are known to be whole.

    Raises:
        ValueError: there is none.
    """
    checkpoints = _checkpoints_in(folder)
    num_not_whole = 0
    for checkpoint in reversed(checkpoints):
        found = _verify_one(checkpoint, deep, console)
        num_not_whole += bool(found.problems)
        word = "not known" if found.not_read else "damaged"
        line = f"{checkpoint.name}: "
        line += f"{word}: {'; '.join(found.problems)}" if found.problems else "whole"
        for text in (line, *(f"  not proven: {note}" for note in found.notes if deep)):
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    return not num_not_whole


def _checkpoints_in(folder: Path) -> list[Path]:
    own = folder.resolve()
    if own in list_checkpoints(own.parent) or (own.name == RELEASE and own.is_dir()):
        return [own]
    found = list_checkpoints(folder / "checkpoints") or list_checkpoints(folder)
    if not found and (folder / RELEASE).is_dir():
        return [folder / RELEASE]
    if not found:
        raise ValueError(f"{folder}: no checkpoint there (no iter_NNNNNNN folder). {WHAT_TO_GIVE}")
    return found


def _verify_one(checkpoint: Path, deep: bool, console: Console) -> Findings:
    if not deep or not console.is_terminal:
        return examine(checkpoint, deep=deep)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn("{task.description}"), *columns, console=console, transient=True
    ) as progress:
        task = progress.add_task(checkpoint.name, total=None)
        return examine(
            checkpoint,
            deep=True,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
