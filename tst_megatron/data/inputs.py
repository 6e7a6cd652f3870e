"""Which files a text consists of, in which order, and how they are cut into units of work."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pyarrow import parquet

UNIT_BYTES = 1 << 26
"""About what one unit reads of a file that can be cut: a minute's work, redone after a kill."""

LINES = (".jsonl", ".json")
COMPRESSIONS = ("", ".gz", ".zst")
PARQUET = ".parquet"
_ENDINGS = tuple(kind + packed for kind in LINES for packed in COMPRESSIONS) + (PARQUET,)
KINDS = (
    "Give .jsonl files (.json is read as one object per line too), packed as .gz or .zst or not, "
    "or .parquet files; or folders or patterns of them."
)


@dataclass(frozen=True, slots=True)
class Input:
    """One file of a text."""

    path: Path
    name: str
    """What a manifest calls it: its path below the folder or pattern that was given, or below the
    folder that holds all files that were given by name."""
    num_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts of a text, for a job each; `merge` joins their folders."""

    number: int
    """From 0."""
    of: int
    """How many there are."""

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> Self:
        """The shard of what `record` gave."""
        return cls(record["number"], record["of"])

    def __str__(self) -> str:
        """As `shard_named` reads it."""
        return f"{self.number}/{self.of}"

    def problems(self) -> list[str]:
        """Why there is no such shard, whatever the text."""
        if self.of < 1:
            return [f"--shard {self}: there is at least one shard. Try 0/1."]
        if not 0 <= self.number < self.of:
            return [f"--shard {self}: counts from 0, so the last is {self.of - 1}/{self.of}."]
        return []

    def record(self, files: Sequence[Input]) -> dict[str, Any]:
        """For the manifest: which shard this is, and names and sizes of all the text's files."""
        listed = json.dumps([(each.name, each.num_bytes) for each in files])
        text_sha256 = hashlib.sha256(listed.encode()).hexdigest()
        return {"number": self.number, "of": self.of, "text_sha256": text_sha256}


@dataclass(frozen=True, slots=True)
class Unit:
    """What one worker reads at a time: a file, or a part of one."""

    file: Input
    start: int
    stop: int | None
    """The lines that start in these bytes, or these row groups; the whole file where None."""
    num_bytes: int
    """Of the file, about: for progress."""
    is_whole_file: bool

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.file.path


def find_inputs(given: Sequence[Path | str]) -> list[Input]:
    """The files that are meant, in their order: as given, and by name inside a folder or pattern.

    Args:
        given: files, folders (with all that lies below them) and patterns such as
            "dclm/**/*.jsonl.zst"; of folders and patterns the files of known kinds are taken.

    Raises:
        ValueError: with every problem: nothing there, a file of another kind or named twice.
    """
    problems: list[str] = []
    found: list[Input] = []
    root = _common_folder(given)
    for each in given:
        files, problem = _files_of(each, root)
        if problem:
            problems.append(f"{each}: {problem} {KINDS}")
        found += [_input(path, name) for path, name in files]
    if not given:
        problems.append(f"inputs: no files. {KINDS}")
    places: dict[Path, Path] = {}
    for file in found:
        place = file.path.resolve()
        if place in places:
            problems.append(f"{file.path}: is the same file as {places[place]}. Name it once.")
        places.setdefault(place, file.path)
    if problems:
        raise ValueError("\n".join(problems))
    return found


def shard_named(words: str) -> Shard:
    """The shard that "I/N" names.

    Raises:
        ValueError: it names none.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", words)
    if not found:
        raise ValueError(f"--shard {words}: give I/N, such as 0/100 for the first of 100.")
    return Shard(int(found[1]), int(found[2]))


def files_of_shard(files: Sequence[Input], shard: Shard) -> list[Input]:
    """The shard's files: next to each other in the text, so that the shards in order are the text.

    Args:
        files: of the whole text, in order.
        shard: one without `problems`. Shards have about as many bytes each, and a file at least.

    Raises:
        ValueError: there are fewer files than shards.
    """
    if shard.of > len(files):
        raise ValueError(
            f"--shard {shard}: the text has {len(files):,} files, each in one "
            f"shard. Make at most {len(files):,} shards."
        )
    ends = list(accumulate(each.num_bytes for each in files))
    starts = [0]
    for number in range(1, shard.of):
        fair = bisect_right(ends, ends[-1] * number // shard.of)
        # A file for this shard's predecessor, and for each one from this on.
        starts.append(min(max(fair, starts[-1] + 1), len(files) - (shard.of - number)))
    return list(files[slice(*[*starts, len(files)][shard.number : shard.number + 2])])


def cut_into_units(inputs: Sequence[Input]) -> list[Unit]:
    """Cut the files that can be read from within; packed lines are one unit for each file.

    Raises:
        ValueError: with every .parquet file that cannot be read.
    """
    problems: list[str] = []
    units: list[Unit] = []
    for each in inputs:
        cuts = list(_cuts(each, problems))
        units += [Unit(each, *cut, is_whole_file=len(cuts) == 1) for cut in cuts]
    if problems:
        raise ValueError("\n".join(problems))
    return units


def check_unchanged(inputs: Iterable[Input]) -> None:
    """Whether files are still what `find_inputs` saw.

    Raises:
        ValueError: one is not, so its sum may be of another content than what is read.
    """
    changed = [
        f"{each.path}: was changed while it was read. Start again when nothing writes to it."
        for each in inputs
        if not each.path.is_file() or _input(each.path, each.name) != each
    ]
    if changed:
        raise ValueError("\n".join(changed))


def _input(path: Path, name: str) -> Input:
    status = path.stat()
    return Input(path, name, status.st_size, status.st_mtime_ns)


def _cuts(each: Input, problems: list[str]) -> Iterator[tuple[int, int | None, int]]:
    if each.path.name.endswith(LINES) and each.num_bytes:
        for start in range(0, each.num_bytes, UNIT_BYTES):
            stop = min(start + UNIT_BYTES, each.num_bytes)
            yield start, stop, stop - start
    elif each.path.name.endswith(PARQUET) and each.num_bytes:
        try:
            yield from _row_groups(each.path)
        except (pa.ArrowException, OSError) as error:
            problems.append(unreadable(each.path, error))
    else:
        yield 0, None, each.num_bytes


def unreadable(path: Path, error: Exception) -> str:
    """Say that a .parquet file is none."""
    return f"{path}: cannot be read as Parquet ({error}). Copy or write it again."


def _row_groups(path: Path) -> Iterator[tuple[int, int, int]]:
    with parquet.ParquetFile(path) as file:
        metadata = file.metadata
        start, num_bytes = 0, 0
        for group in range(metadata.num_row_groups):
            columns = range(metadata.num_columns)
            group_bytes = sum(
                metadata.row_group(group).column(column).total_compressed_size for column in columns
            )
            if num_bytes and num_bytes + group_bytes > UNIT_BYTES:
                yield start, group, num_bytes
                start, num_bytes = group, 0
            num_bytes += group_bytes
        yield start, metadata.num_row_groups, num_bytes


def _common_folder(given: Sequence[Path | str]) -> Path:
    """The deepest folder that holds all files that are given by name."""
    folders = [Path(each).absolute().parent for each in given if Path(each).is_file()]
    return Path(os.path.commonpath(folders)) if folders else Path()


def _files_of(given: Path | str, root: Path) -> tuple[list[tuple[Path, str]], str | None]:
    """Files with their names, and what is wrong."""
    path = Path(given)
    if path.is_dir():
        files = sorted(_files_below(path))
        named = [(file, file.relative_to(path).as_posix()) for file in files]
        return named, None if files else "no file of text is in this folder."
    if path.is_file():
        name = path.absolute().relative_to(root).as_posix()
        return [(path, name)], None if _is_text(path) else "unknown kind of file."
    if glob.has_magic(str(given)):
        fixed = _fixed_part(path)
        found = sorted(map(Path, glob.glob(str(given), recursive=True)))
        files = [file for file in found if _is_text(file)]
        named = [(file, file.relative_to(fixed).as_posix()) for file in files]
        return named, None if files else "no file of text matches this pattern."
    return [], "no such file or folder."


def _files_below(folder: Path) -> Iterator[Path]:
    """Files of text, also in linked folders, which clusters are full of; hidden ones are left."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        # A link may lead to a folder that it lies in.
        seen.add(os.path.realpath(place))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(place, name)) not in seen
        ]
        yield from (path for name in names if _is_text(path := Path(place, name)))


def _fixed_part(pattern: Path) -> Path:
    """The folder that a pattern starts from."""
    parts = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)


def _is_text(path: Path) -> bool:
    return path.name.endswith(_ENDINGS) and not path.name.startswith(".") and path.is_file()
