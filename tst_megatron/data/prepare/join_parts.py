"""Join the parts of a text, in their order, into a prepared folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tst_megatron.data.manifest import Contents, LeftOut
from tst_megatron.data.prepare.encode_unit import Encoder
from tst_megatron.data.prepare.make_parts import Job, first_of, made_parts
from tst_megatron.data.prepare.output_folder import (
    REJECTED_NAME,
    check_documents,
    check_round_trip,
    write_manifest,
)
from tst_megatron.data.prepare.parts import Part, counts_path, delete_parts, read_hashes
from tst_megatron.data.text.documents import Rejected
from tst_megatron.data.text.inputs import Input, check_unchanged
from tst_megatron.data.text.units import Unit
from tst_megatron.data.tokenizer.load import store_tokenizer
from tst_megatron.data.tokenizer.round_trip import RoundTrip
from tst_megatron.data.tokens.append import append, first_occurrences
from tst_megatron.data.tokens.writer import IndexedWriter
from tst_megatron.system.files import folder_appearing_whole

DOCUMENTS_FOR_A_SHARE = 1000
"""After so many that were decoded again, their share is known well enough to stop."""


@dataclass(slots=True)
class _Joined:
    """Everything about the joined parts that is not tokens."""

    documents: dict[Input, int] = field(default_factory=dict)
    """Of each file, without those that are left out as copies."""
    num_empty: int = 0
    num_duplicates: int = 0
    rejected: list[tuple[str, Rejected]] = field(default_factory=list)
    """With the names of their files."""
    round_trip: RoundTrip = field(default_factory=RoundTrip)

    def add(self, file: Input, part: Part, num_duplicates: int) -> None:
        """Take a part of a file."""
        number = sum(split.num_documents for split in part.splits.values()) - num_duplicates
        self.documents[file] = self.documents.get(file, 0) + number
        self.num_empty += part.num_empty
        self.num_duplicates += num_duplicates
        self.rejected += ((file.name, each) for each in part.rejected)
        self.round_trip.take(part.round_trip)

    def left_out(self) -> LeftOut:
        """Return how much is not in the splits."""
        return LeftOut(
            empty=self.num_empty, rejected=len(self.rejected), duplicates=self.num_duplicates
        )

    def rejected_lines(self) -> list[str]:
        """Return the lines of rejected.jsonl."""
        return [
            json.dumps({"file": name, "line": each.number, "problem": each.problem}) + "\n"
            for name, each in self.rejected
        ]


def build(
    job: Job, tokenizer: Path, recipe: Mapping[str, Any], versions: Mapping[str, str], output: Path
) -> None:
    """Make a prepared folder; its parts are deleted then, and only then.

    Args:
        job: what to do.
        tokenizer: that the job's encoder has, on disk.
        recipe: for the manifest.
        versions: package to version, for the manifest.
        output: absolute; does not exist, or is empty.

    Raises:
        ValueError: with every problem of the inputs that was found.
    """
    # A half-joined folder of a killed run is deleted: joining again takes little time.
    with folder_appearing_whole(output, job.parts / "joined") as folder:
        _fill(folder, job, tokenizer, recipe, versions)
    delete_parts(job.parts)


def _fill(
    folder: Path, job: Job, tokenizer: Path, recipe: Mapping[str, Any], versions: Mapping[str, str]
) -> None:
    # The tokens: all parts in order, into one pair of files for each split.
    stored = store_tokenizer(tokenizer, folder, eod_token=job.encoder.settings.eod_token)
    facts = job.encoder.tokenizer.facts
    counts = np.zeros(facts.vocab_size, dtype=np.int64)
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(IndexedWriter(folder / name, vocab_size=facts.vocab_size))
            for name in job.encoder.splits()
        }
        parts = stack.enter_context(closing(made_parts(job)))
        joined = _join(job, parts, writers, counts)
        check_unchanged(dict.fromkeys(unit.file for unit, _ in job.tasks))
        splits = {name: writer.finish(allow_empty=True) for name, writer in writers.items()}
    # The record: what was left out, and last the manifest, which says that the folder is complete.
    if not job.limits.allow_empty_splits:
        check_documents({name: split.num_documents for name, split in splits.items()}, recipe)
    if lines := joined.rejected_lines():
        (folder / REJECTED_NAME).write_text("".join(lines), encoding="utf-8")
    write_manifest(
        folder,
        recipe=recipe,
        splits=splits,
        train_counts=counts,
        tokenizer=facts,
        tokenizer_name=stored.name,
        left_out=joined.left_out(),
        contents=Contents(
            files=[{"name": f.name, "documents": n} for f, n in joined.documents.items()],
            not_read=[asdict(each) for each in job.not_read],
            round_trip=joined.round_trip,
        ),
        versions=versions,
    )


def _join(
    job: Job,
    parts: Iterator[tuple[Unit, Part]],
    writers: Mapping[str, IndexedWriter],
    counts: npt.NDArray[np.int64],
) -> _Joined:
    """Append all parts in order.

    Raises:
        ValueError: a part is damaged, or too much holds no document or does not come back.
    """
    joined = _Joined()
    for unit, part, keep in _with_masks(parts, job.encoder):
        num_duplicates = 0
        for name, writer in writers.items():
            mask = keep.get(name)
            split = part.splits[name]
            damaged = append(
                writer,
                part.folder / name,
                (split.bin_sha256, split.idx_sha256),
                counts=counts if name == "train" and mask is not None else None,
                keep=mask,
            )
            if damaged:
                raise ValueError(
                    f"{damaged}: was damaged after it was written. Delete {part.folder}; it will "
                    "be made again."
                )
            num_duplicates += 0 if mask is None else int((~mask).sum())
        if "train" not in keep:
            counts += np.load(counts_path(part.folder))
        joined.add(unit.file, part, num_duplicates)
        if joined.round_trip.compared >= DOCUMENTS_FOR_A_SHARE:
            # A share as bad as this does not become good: say so now, not hours later.
            check_round_trip(
                joined.round_trip, job.limits.max_changed_fraction, factor=2.0, parts=job.parts
            )
    num_lines = sum(joined.documents.values()) + joined.num_duplicates + joined.num_empty
    rejected = [each for _, each in joined.rejected]
    _check_rejected(rejected, num_lines, job.encoder.max_rejected_fraction)
    check_round_trip(joined.round_trip, job.limits.max_changed_fraction, parts=job.parts)
    return joined


def _with_masks(
    parts: Iterator[tuple[Unit, Part]], encoder: Encoder
) -> Iterator[tuple[Unit, Part, dict[str, npt.NDArray[np.bool_]]]]:
    """Yield each part, with a mask of the documents that stay where not all do."""
    if not encoder.settings.deduplicate:
        for unit, part in parts:
            yield unit, part, {}
        return
    everything = list(parts)
    masks = {
        name: first_occurrences([read_hashes(part.folder / name) for _, part in everything])
        for name in encoder.splits()
    }
    for number, (unit, part) in enumerate(everything):
        yield unit, part, {name: mask[number] for name, mask in masks.items()}


def _check_rejected(
    rejected: Sequence[Rejected], num_others: int, max_rejected_fraction: float
) -> None:
    lines = [each for each in rejected if each.number]
    num_lines = len(lines) + num_others
    if len(lines) <= max_rejected_fraction * num_lines:
        return
    problem = (
        f"--max-rejected-fraction {max_rejected_fraction:g}: {len(lines):,} of {num_lines:,} lines "
        "hold no document. Repair the text, or allow more."
    )
    raise ValueError("\n".join([problem, *first_of([str(each) for each in lines])]))
