"""Read all that a checkpoint stores, and check that it is what was saved and makes sense."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tst_megatron.checkpoint.content.buckets import Bucket, WeightIndex, buckets_of, check_bucket
from tst_megatron.checkpoint.content.facts import OPTIMIZER, Facts, read_object
from tst_megatron.checkpoint.content.optimizer import (
    UNLIKE_THE_WEIGHTS,
    Compared,
    Group,
    check_group,
    grouped,
    is_square,
    master_problems,
    state_problems,
)
from tst_megatron.checkpoint.content.values import (
    Chunk,
    DamagedItem,
    chunks_of,
    read_chunk,
    value_problem,
)
from tst_megatron.checkpoint.record import MANIFEST
from tst_megatron.system.machine.errors import machine_error, os_error

NUM_THREADS = min(8, os.cpu_count() or 1)
"""Items read at once; checksums are taken outside Python's lock."""

MOST_BYTES = 8 << 30
"""That jobs may take in memory together. One that takes more runs alone."""

READ_BYTES = 1 << 20

OnProgress = Callable[[int, int], None]
"""Told the bytes read so far and the bytes to read."""


@dataclass(slots=True)
class Findings:
    """The result of an examination of a checkpoint."""

    problems: list[str] = field(default_factory=list)
    """The damage: a sentence for each thing that is wrong or missing."""
    notes: list[str] = field(default_factory=list)
    """The comparisons that could not be made, a sentence each."""
    places: Mapping[Any, Any] = field(default_factory=dict)
    """Torch's ``storage_data``, where it could be read."""
    error: OSError | None = None
    """Of the operating system, by which a problem was found."""

    @property
    def not_read(self) -> OSError | None:
        """``error``, where the machine was at fault and the checkpoint may be complete."""
        return self.error and machine_error(self.error)

    def add(self, problem: str, error: Exception) -> None:
        """Take a problem, and the error that it was found by."""
        self.problems.append(problem)
        self.error = self.error or os_error(error)

    def add_unreadable(self, name: str, error: Exception, what: str = "cannot be read") -> None:
        """``add`` what an error of any kind says of a part."""
        self.add(f"{name} {what} ({type(error).__name__}: {error})", error)


def content_findings(
    checkpoint: Path,
    description: Any,
    facts: Facts,
    hashes: Mapping[str, str],
    *,
    on_progress: OnProgress | None = None,
) -> Findings:
    """Find what of a checkpoint is not what was saved, or cannot be the state of a run.

    Each item is read once and held against its checksums. Weights and moments must be finite,
    squares not negative, and master copies of the optimizer the weights.

    Args:
        checkpoint: an ``iter_`` folder whose tables are in order.
        description: torch's ``Metadata`` of it.
        facts: of it.
        hashes: file -> SHA-256, where a manifest exists.
        on_progress: told how far it is, from this thread.
    """
    chunks = chunks_of(description)
    groups, rest = grouped(chunks)
    buckets = buckets_of(chunks)
    in_buckets = {id(chunk) for each in buckets for part in each.states.values() for chunk in part}
    rest = [chunk for chunk in rest if id(chunk) not in in_buckets]
    work = _Work(checkpoint)
    first = [_Job(g.num_bytes, g.memory, functools.partial(work.check_group, g)) for g in groups]
    first += [
        _Job(chunk.num_bytes, chunk.memory, functools.partial(work.check_chunk, chunk))
        for chunk in rest
    ]
    first += [
        _Job(item.length, item.length, functools.partial(_object_problems, checkpoint, index, item))
        for index, item in description.storage_data.items()
        if index.offset is None
    ]
    for name, digest in hashes.items():
        size = (checkpoint / name).stat().st_size if (checkpoint / name).exists() else 0
        check = functools.partial(_hash_problems, checkpoint / name, digest)
        first.append(_Job(size, READ_BYTES, check))
    # What the buckets hold is looked up among the weights, so these must have been read.
    second = [
        _Job(bucket.num_bytes, bucket.memory, functools.partial(work.check_bucket, bucket))
        for bucket in buckets
    ]
    found = Findings(problems=state_problems(chunks))
    found.problems += sorted(_done((first, second), on_progress))
    _say_what_was_compared(found, work, buckets, chunks, facts)
    return found


@dataclass(frozen=True, slots=True)
class _Job:
    """A part of a checkpoint to be read and checked."""

    num_bytes: int
    memory: int
    """Bytes that it takes while it runs."""
    check: Callable[[], list[str]]


def _done(stages: Sequence[Sequence[_Job]], on_progress: OnProgress | None) -> Iterator[str]:
    """Do all jobs of a stage, then those of the next, several at a time."""
    done, total = 0, sum(job.num_bytes for jobs in stages for job in jobs)
    memory = _Memory(MOST_BYTES)
    for jobs in stages:
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            sizes = {threads.submit(memory.within, job): job.num_bytes for job in jobs}
            for future in as_completed(sizes):
                done += sizes[future]
                yield from future.result()
                if on_progress is not None:
                    on_progress(done, total)


class _Memory:
    """Lets jobs run at once while together they take no more than so many bytes."""

    def __init__(self, most: int) -> None:
        self._most, self._used = most, 0
        self._changed = threading.Condition()

    def within(self, job: _Job) -> list[str]:
        with self._taken(job.memory):
            return job.check()

    @contextmanager
    def _taken(self, num_bytes: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + num_bytes <= self._most)
            self._used += num_bytes
        try:
            yield
        finally:
            with self._changed:
                self._used -= num_bytes
                self._changed.notify_all()


class _Work:
    """The parts of a checkpoint that are read, and what was learnt from them."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self.compared = Compared()
        self.weights = WeightIndex()
        self.strange: list[int] = []

    def check_group(self, group: Group) -> list[str]:
        index = None if group.states else self.weights
        return check_group(self._checkpoint, group, self.compared, index)

    def check_chunk(self, chunk: Chunk) -> list[str]:
        try:
            values = read_chunk(self._checkpoint, chunk)
        except DamagedItem as damage:
            return [str(damage)]
        problem = value_problem(chunk.name, values, is_square=is_square(chunk.name))
        return [problem] if problem else []

    def check_bucket(self, bucket: Bucket) -> list[str]:
        try:
            found, num_strange = check_bucket(self._checkpoint, bucket, self.weights)
        except DamagedItem as damage:
            return [str(damage)]
        self.strange.append(num_strange)
        return found


def _say_what_was_compared(
    found: Findings,
    work: _Work,
    buckets: Sequence[Bucket],
    chunks: Mapping[str, Sequence[Chunk]],
    facts: Facts,
) -> None:
    """Add what the master copies tell, and a line for what was not compared."""
    if not any(OPTIMIZER.match(name) for name in chunks):
        found.notes.append("holds no optimizer state")
    elif keys := [key for key in UNLIKE_THE_WEIGHTS if facts.argument(key)]:
        found.notes.append(
            f"with {', '.join(key.replace('_', '-') for key in keys)} master copies are not the "
            "weights in more bits: they were not compared"
        )
    elif buckets:
        strange, missing = sum(work.strange), work.weights.without_copy()
        # A damaged item may be a weight that is now looked for.
        if (strange or missing) and not found.problems:
            found.problems.append(
                f"the optimizer's master copies, rounded, are not the weights: {strange:,} values "
                f"in its buckets are of no weight, and {len(missing)} weights are in none of them"
                + (f" ({', '.join(missing[:3])})" if missing else "")
            )
    elif work.compared.weights:
        found.problems += master_problems(work.compared, facts)
    elif facts.argument("bf16") or facts.argument("fp16"):
        found.notes.append("no master copy is cut as its weight is: they were not compared")
    else:
        found.notes.append("weights of 32 bits have no master copies to be compared with")


def _object_problems(checkpoint: Path, index: Any, item: Any) -> list[str]:
    """List why a stored object that is no tensor is not what a save wrote."""
    try:
        read_object(checkpoint, index.fqn, item)
    except (OSError, ValueError) as error:
        if machine_error(error) is not None:
            raise
        return [str(error)]
    return []


def _hash_problems(path: Path, digest: str) -> list[str]:
    if not path.is_file():
        return [f"{path.name} is missing"]
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == digest:
            return []
    return [f"{path.name} is not what {MANIFEST} says it was when it was saved"]
