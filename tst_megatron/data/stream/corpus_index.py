"""Index one corpus for one epoch: the order of its documents, and where each chunk starts.

It is what the plan's arithmetic (``plan.py``) needs to find a sample in the token file, about 6
bytes per document of a thousand tokens, in NumPy's own files, memory-mapped and so shared by all
ranks of a node:

    documents.npy      int32 or int64, document numbers in the permuted order
    units.npy          int32 or int64, unit numbers in the permuted order
    chunk-places.npy   int32 or int64, for each chunk the place in ``documents`` where it starts
    chunk-offsets.npy  int32, and the token inside that document
    index.json         what it was made from, and a checksum of each file

An index is named by what it was made from, so nothing is ever changed in place. It is built in a
folder beside its own, flushed and renamed. So the index under its name is complete, whatever is
killed and however many jobs build it at once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tst_megatron.data.stream.sample_order import of_epoch_seed, permutation
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.system.files import beside, flush_folder

FORMAT_VERSION = 1
FACTS_NAME = "index.json"
ARRAYS = ("documents", "units", "chunk-places", "chunk-offsets")
SECONDS_LEFT_BEHIND = 24 * 3600.0
"""Age at which what a killed build left is removed: no build takes a day."""
DOCUMENTS_PER_STEP = 2**22
"""Documents whose lengths are summed up at a time: 100 MB of memory at the most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexFacts:
    """The facts that an index is made from; two indexes with the same facts are the same."""

    bin_fingerprint: str
    idx_fingerprint: str
    """Content of the token files (``fingerprint.py``)."""
    num_units: int
    unit_chunks: int
    """U."""
    num_latent_positions: int
    """L, raw tokens per chunk."""
    seed: int
    epoch: int
    """From 0."""

    @property
    def name(self) -> str:
        """Name of the index's folder."""
        text = json.dumps({"format": FORMAT_VERSION, **asdict(self)}, sort_keys=True)
        return f"index-{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"


class CorpusIndex:
    """An index that has been built, memory-mapped.

    Raises:
        FileNotFoundError: it has not been built.
        ValueError: it is damaged, or was made from something else.
    """

    def __init__(self, root: Path, facts: IndexFacts) -> None:
        """Open the index of these facts in a cache folder; its content is not read."""
        path = root / facts.name
        if problem := problem_of(path, facts):
            kind = ValueError if path.exists() else FileNotFoundError
            raise kind(f"{path}: {problem}. Build it with `tst-megatron data index RECIPE`.")
        self._facts = facts
        self._documents, self._units, self._places, self._offsets = (
            np.load(path / f"{name}.npy", mmap_mode="r") for name in ARRAYS
        )

    def spans(
        self, lengths: npt.NDArray[np.int32], *, unit: int, chunk: int, num_tokens: int
    ) -> Iterator[tuple[int, int, int]]:
        """Yield (document, offset in it, length) of each stretch of a sample.

        Args:
            lengths: [documents] tokens of each document of the token file.
            unit: rank in the epoch's order of units.
            chunk: inside the unit.
            num_tokens: inputs and look-ahead.
        """
        first = int(self._units[unit]) * self._facts.unit_chunks + chunk
        place, offset = int(self._places[first]), int(self._offsets[first])
        while num_tokens:
            document = int(self._documents[place])
            length = min(num_tokens, int(lengths[document]) - offset)
            if length:
                yield document, offset, length
            num_tokens -= length
            place, offset = place + 1, 0


def ensure_index(
    root: Path,
    facts: IndexFacts,
    reader: IndexedReader,
    *,
    note: Callable[[str], None],
    advance: Callable[[int], None] = lambda _: None,
) -> bool:
    """Check the content of an index, and build it if it is missing, damaged or of other facts.

    Args:
        root: the cache folder; made if it is missing.
        facts: what the index is made from.
        reader: the token files.
        note: is told what was wrong with an existing index.
        advance: is told of documents indexed.

    Returns:
        Whether it was built.

    Raises:
        ValueError: the token files contradict each other.
        OSError: the folder cannot be written.
    """
    path, new = root / facts.name, beside(root / facts.name)
    looked_at = _identity(path)
    problem = problem_of(path, facts, deep=True)
    if problem is None:
        return False
    reader.check()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(root)
        if looked_at and looked_at == _identity(path):
            if not _take_away(path, facts):
                return False
            note(f"{path}: {problem}; it is built again")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        _build(new, facts, reader, advance)
        _put_in_place(new, path, facts)
    except OSError as error:
        text = f"the index of the text is kept in {root} and cannot be written: {error.strerror}. "
        text += "Make room, or name another folder with data-cache-path"
        raise OSError(error.errno, text) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return True


def problem_of(path: Path, facts: IndexFacts, *, deep: bool = False) -> str | None:
    """Say what is wrong with an index; None if nothing is.

    Args:
        path: its folder.
        facts: what it must be made from.
        deep: also read its content and compare the checksums.
    """
    if not path.exists():
        return "there is no index"
    try:
        values = json.loads((path / FACTS_NAME).read_bytes())
        made_from, files = values["made from"], values["files"]
        if made_from != {"format": FORMAT_VERSION, **asdict(facts)}:
            return "was made from something else"
        for name in ARRAYS:
            file, wanted = path / f"{name}.npy", files[name]
            if file.stat().st_size != wanted["bytes"]:
                return f"{file.name} has {file.stat().st_size} bytes, not {wanted['bytes']}"
            if deep and _checksum(file) != wanted["crc32"]:
                return f"the content of {file.name} is damaged"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (ValueError, KeyError, TypeError) as error:
        return f"{FACTS_NAME} is damaged ({error!r})"
    return None


def _build(
    folder: Path, facts: IndexFacts, reader: IndexedReader, advance: Callable[[int], None]
) -> None:
    num_documents, length = reader.num_documents, facts.num_latent_positions
    num_chunks = facts.num_units * facts.unit_chunks
    for name, number in (("documents", num_documents), ("units", facts.num_units)):
        seed = of_epoch_seed(f"{facts.seed}/{name}", facts.epoch)
        array = _new_array(folder / f"{name}.npy", _integers_up_to(number), number)
        array[:] = permutation(seed, number)
        del array
    order = np.load(folder / "documents.npy", mmap_mode="r")
    places = _new_array(folder / "chunk-places.npy", _integers_up_to(num_documents), num_chunks)
    offsets = _new_array(folder / "chunk-offsets.npy", np.dtype(np.int32), num_chunks)
    chunk, tokens = 0, 0
    for first in range(0, num_documents, DOCUMENTS_PER_STEP):
        lengths = reader.document_lengths[order[first : first + DOCUMENTS_PER_STEP]]
        ends = tokens + np.cumsum(lengths, dtype=np.int64)
        tokens = int(ends[-1])
        # The chunks that start inside these documents.
        next_chunk = min(num_chunks, -(-tokens // length))
        starts = np.arange(chunk, next_chunk, dtype=np.int64) * length
        place = np.searchsorted(ends, starts, side="right")
        places[chunk:next_chunk] = first + place
        offsets[chunk:next_chunk] = starts - (ends[place] - lengths[place])
        chunk = next_chunk
        advance(len(lengths))
    assert chunk == num_chunks, f"{chunk} of {num_chunks} chunks start inside the text"
    del places, offsets
    files = {name: _file_facts(folder / f"{name}.npy") for name in ARRAYS}
    values = {"made from": {"format": FORMAT_VERSION, **asdict(facts)}, "files": files}
    (folder / FACTS_NAME).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    flush_folder(folder)


def _put_in_place(new: Path, path: Path, facts: IndexFacts) -> None:
    """Rename a finished index, beside other builders."""
    try:
        new.rename(path)
        flush_folder(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        # Another job was first; the same facts give the same bytes.
        if problem := problem_of(path, facts, deep=True):
            raise ValueError(f"{path}: {problem}, and is being written by another job") from error


def _take_away(path: Path, facts: IndexFacts) -> bool:
    """Remove a damaged index, unless another job has put a good one in its place meanwhile."""
    aside = path.with_name(f"{beside(path).name}.damaged")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return True  # Another job was first.
    is_damaged = problem_of(aside, facts, deep=True) is not None
    if not is_damaged:
        # Unless a third job has put one there by now.
        with contextlib.suppress(OSError):
            aside.rename(path)
    shutil.rmtree(aside, ignore_errors=True)
    return is_damaged


def _identity(path: Path) -> int | None:
    """Return the number of the folder on disk, whatever its name; None if it does not exist."""
    try:
        return path.stat().st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def _remove_left_behind(root: Path) -> None:
    """Remove the remains of killed builds, of any machine."""
    for left in root.glob(".index-*"):
        # It may belong to a job at work, which renames it at any moment.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > SECONDS_LEFT_BEHIND:
                shutil.rmtree(left, ignore_errors=True)


def _integers_up_to(number: int) -> np.dtype[Any]:
    return np.dtype(np.int32 if number <= np.iinfo(np.int32).max else np.int64)


def _new_array(path: Path, dtype: np.dtype[Any], size: int) -> npt.NDArray[Any]:
    if not size:
        np.save(path, np.empty(0, dtype=dtype))
        return np.empty(0, dtype=dtype)
    # Not by np.save, which takes a full disk for success when the array is small.
    array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(size,))
    with path.open("r+b") as file:
        # A page of a mapped file that the disk has no room for would end the process by a signal.
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _file_facts(file: Path) -> Mapping[str, int]:
    return {"bytes": file.stat().st_size, "crc32": _checksum(file)}


def _checksum(file: Path) -> int:
    checksum = 0
    with file.open("rb") as opened:
        while block := opened.read(2**22):
            checksum = zlib.crc32(block, checksum)
    return checksum
