"""Make the parts of a text with several workers, and yield them in the text's order.

Parts that an earlier, killed run has made are taken as they are.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from tst_megatron.data.prepare.encode_unit import Encoder, encode_unit
from tst_megatron.data.prepare.parts import Part, load_part
from tst_megatron.data.prepare.settings import Limits
from tst_megatron.data.text.inputs import NotRead
from tst_megatron.data.text.units import Unit
from tst_megatron.system.processes.worker_pool import in_order
from tst_megatron.system.progress import byte_progress

MOST_PROBLEMS = 20
"""At so many, a preparation stops looking for more."""


@dataclass(frozen=True, slots=True)
class Job:
    """The parts to make, and all that is needed to make and to join them."""

    parts: Path
    """Folder of the parts."""
    tasks: Sequence[tuple[Unit, Path]]
    """The units of the text in their order, and the folder of each unit's part."""
    encoder: Encoder
    limits: Limits
    workers: int
    not_read: Sequence[NotRead]
    """For the manifest: what lay in the folders of the text and was not read."""
    console: Console | None


def made_parts(job: Job) -> Generator[tuple[Unit, Part]]:
    """Yield the parts of all units in order, as soon as they are made.

    Raises:
        ValueError: after the others have been tried too, with every problem.
    """
    # Parts of an earlier run are kept, so only the others are made.
    there = {folder for _, folder in job.tasks if folder.is_dir()}
    missing = _missing(job, there)
    done = sum(unit.num_bytes for unit, folder in job.tasks if folder in there)
    if there and job.console:
        job.console.print(f"going on: {len(there)} of {len(job.tasks)} units are there")
    problems: list[str] = []
    more: list[str] = []
    with (
        byte_progress(
            job.console, "tokenising", sum(unit.num_bytes for unit, _ in job.tasks), done
        ) as advance,
        closing(
            in_order(
                partial(encode_unit, job.encoder),
                list(missing.values()),
                workers=min(job.workers, max(len(missing), 1)),
                advance=advance,
            )
        ) as results,
    ):
        # The workers' results come in the order of the tasks, so each is awaited where it is due.
        for unit, folder in job.tasks:
            if missing.pop(folder, None):
                _, error = next(results)
                if isinstance(error, OSError):
                    # A full disk, say: no fault of the input, and the others would meet it too.
                    raise OSError(error.errno, f"{error.strerror} ({error.filename or folder})")
                problems += [str(error)] if error else []
            part = load_part(folder, unit)
            if part and part.rejected and not job.encoder.max_rejected_fraction:
                problems += map(str, part.rejected)
                more = ["--max-rejected-fraction leaves out lines that hold no document."]
            if len(problems) >= MOST_PROBLEMS:
                break
            if part and not problems:
                yield unit, part
    if problems:
        kept = f"What is done is kept in {job.parts}: the same command goes on from there."
        raise ValueError("\n".join([*first_of(problems), *more, kept]))


def _missing(job: Job, there: Container[Path]) -> dict[Path, tuple[Unit, Path]]:
    """Return the tasks still to do; of files with the same content the first is read."""
    missing: dict[Path, tuple[Unit, Path]] = {}
    for unit, folder in job.tasks:
        if folder not in there:
            missing.setdefault(folder, (unit, folder))
    return missing


def first_of(problems: Sequence[str]) -> list[str]:
    """Return the first MOST_PROBLEMS of them, and say how many more there are."""
    more = len(problems) - MOST_PROBLEMS
    return [*problems[:MOST_PROBLEMS], *([f"... and {more:,} more"] if more > 0 else [])]
