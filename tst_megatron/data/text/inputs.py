"""List the files of a text in their order, and what of a folder is left out, with the reason."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from tst_megatron.data.text.file_kinds import KINDS, is_text, problem_of, why_left_out


@dataclass(frozen=True, slots=True)
class Input:
    """One file of a text."""

    path: Path
    name: str
    """Name in a manifest: its path below the folder or pattern that was given, or below the
    folder that holds all files that were given by name."""
    num_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class NotRead:
    """Something in a folder, or under a pattern, that is not a file of text."""

    name: str
    """As of an ``Input``; that of a folder ends with a slash."""
    num_bytes: int
    """0 for something that is not a file."""
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """The files that `find` found, and what it left out."""

    files: list[Input]
    not_read: list[NotRead]


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts of a text, for a job each; `merge` joins their folders."""

    number: int
    """From 0."""
    of: int
    """Number of shards of the text."""

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> Self:
        """The shard of what `record` gave."""
        return cls(record["number"], record["of"])

    def __str__(self) -> str:
        """As `shard_named` reads it."""
        return f"{self.number}/{self.of}"

    def problems(self) -> list[str]:
        """List why no text can have such a shard."""
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


def find_inputs(given: Sequence[Path | str]) -> list[Input]:
    """The files that are meant; `find` says more."""
    return find(given).files


def find(given: Sequence[Path | str]) -> Found:
    """Return the files that are meant, in order: as given, and by name inside a folder or pattern.

    Args:
        given: files, folders (with all that lies below them) and patterns such as
            "dclm/**/*.jsonl.zst". Files that hold no text by their names are left out, and listed.

    Raises:
        ValueError: with every problem: nothing there, a file of another kind, one that holds text
            in a form that is not read, one named twice, or what cannot be looked at.
    """
    problems: list[str] = []
    found = Found([], [])
    root = _common_folder(given)
    for each in given:
        _look(each, root, found, problems)
    if not given:
        problems.append(f"inputs: no files. {KINDS}")
    places: dict[Path, Path] = {}
    for file in found.files:
        place = file.path.resolve()
        if place in places:
            problems.append(f"{file.path}: is the same file as {places[place]}. Name it once.")
        places.setdefault(place, file.path)
    if problems:
        raise ValueError("\n".join(problems))
    return found


def shard_named(words: str) -> Shard:
    """Return the shard that "I/N" names.

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
        files: all files of the text, in order.
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


def check_unchanged(inputs: Iterable[Input]) -> None:
    """Check that files are still what `find_inputs` saw.

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


def _common_folder(given: Sequence[Path | str]) -> Path:
    """The deepest folder that holds all files that are given by name."""
    folders = [Path(each).absolute().parent for each in given if Path(each).is_file()]
    return Path(os.path.commonpath(folders)) if folders else Path()


def _look(given: Path | str, root: Path, found: Found, problems: list[str]) -> None:
    """Add the files that one argument means, what is left out, and what is wrong."""
    path = Path(given)
    if path.is_file():
        if not is_text(path):
            problems.append(f"{given}: {problem_of(path) or f'unknown kind of file. {KINDS}'}")
        found.files.append(_input(path, path.absolute().relative_to(root).as_posix()))
        return
    if path.is_dir():
        there, fixed, what = _below(path, problems), path, "is in this folder"
    elif glob.has_magic(str(given)):
        matching = sorted(map(Path, glob.glob(str(given), recursive=True)))
        there, fixed, what = _without_parents(matching), _fixed_part(path), "matches this pattern"
    else:
        problems.append(f"{given}: no such file or folder. {KINDS}")
        return
    number, wrong = len(found.files), len(problems)
    for file in there:
        _sort(file, file.relative_to(fixed).as_posix(), found, problems)
    if len(found.files) == number and len(problems) == wrong:
        problems.append(f"{given}: no file of text {what}. {KINDS}")


def _sort(path: Path, name: str, found: Found, problems: list[str]) -> None:
    """Read, refuse or leave out a file that a folder holds."""
    is_hidden = path.name.startswith(".")
    if path.is_dir():
        found.not_read.append(NotRead(f"{name}/", 0, "hidden" if is_hidden else "a folder"))
    elif is_hidden or not (is_text(path) or problem_of(path)):
        num_bytes = path.stat().st_size if path.is_file() else 0
        found.not_read.append(NotRead(name, num_bytes, why_left_out(path)))
    elif not path.is_file():
        what = "leads nowhere" if path.is_symlink() else "is no regular file"
        problems.append(f"{path}: {what}. Bring the file back, or move this away.")
    elif problem := problem_of(path):
        problems.append(f"{path}: {problem}")
    else:
        found.files.append(_input(path, name))


def _below(folder: Path, problems: list[str]) -> list[Path]:
    """List all files below a folder, also in linked folders, which clusters are full of.

    Hidden folders are named, and not looked into.
    """
    seen: set[str] = set()
    there: list[Path] = []

    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be looked into ({error.strerror}).")

    for place, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        # A link may lead to a folder that it lies in.
        seen.add(os.path.realpath(place))
        there += (Path(place, name) for name in (*names, *filter(_is_hidden, folders)))
        folders[:] = [
            name
            for name in folders
            if not _is_hidden(name) and os.path.realpath(os.path.join(place, name)) not in seen
        ]
    return sorted(there)


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _without_parents(paths: Sequence[Path]) -> list[Path]:
    """Return the matches of a pattern, without folders that hold other matches."""
    parents = {parent for path in paths for parent in path.parents}
    return [path for path in paths if path not in parents]


def _fixed_part(pattern: Path) -> Path:
    """Return the folder that a pattern starts from."""
    parts = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)
