"""Read the documents of a text from any kind of file, and report what holds none, with its place.

Empty texts and blank lines are no documents either; they are left out without being an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from tst_megatron.data.text.file_kinds import is_table
from tst_megatron.data.text.inputs import find_inputs
from tst_megatron.data.text.jsonl import line_batches, lines_before
from tst_megatron.data.text.units import Unit, cut_into_units, unreadable

_ROWS_PER_BATCH = 256
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Some editors put it before a text, and `cat` then into the middle of one."""
_KINDS_OF_STRING = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line of a file, or a row of a table, that holds no document."""

    path: Path
    number: int
    """Number of the line or row, from 1; 0 stands for the file itself."""
    problem: str
    """The fault in words: what was found, what is needed, and what to do."""

    def __str__(self) -> str:
        """Its place and the problem."""
        what = "row" if is_table(self.path) else "line"
        place = f"{self.path}, {what} {self.number}" if self.number else f"{self.path}"
        return f"{place}: {self.problem}"


@dataclass(slots=True)
class Documents:
    """The documents of a few consecutive lines or rows, and what was left out."""

    texts: list[str] = field(default_factory=list)
    num_empty: int = 0
    rejected: list[Rejected] = field(default_factory=list)

    def num_lines(self) -> int:
        """Lines or rows that were looked at, blank ones aside."""
        return len(self.texts) + self.num_empty + len(self.rejected)

    def add(self, unit: Unit, number: int, value: Any, text_key: str) -> None:
        """Take a value as the text of the document at this line or row."""
        if problem := _text_problem(value, text_key):
            self.rejected.append(Rejected(unit.path, number, problem))
        elif value:
            self.texts.append(value)
        else:
            self.num_empty += 1


def read_unit(
    unit: Unit, text_key: str, advance: Callable[[int], None] = lambda num_bytes: None
) -> Iterator[Documents]:
    """Yield the documents of a unit in order, some at a time.

    Args:
        unit: of a file that `find_inputs` found.
        text_key: key or column of the text.
        advance: called with the bytes of the file that were read since the last call.

    Raises:
        ValueError: the file cannot be read further, or has no column of text.
    """
    read = _read_rows if is_table(unit.path) and unit.file.num_bytes else _read_lines
    has_any = False
    for documents in read(unit, text_key, advance):
        has_any = has_any or documents.num_lines() > 0
        yield documents
    if not has_any and unit.is_whole_file:
        problem = "holds no document. Bring the file back, or leave it out."
        yield Documents(rejected=[Rejected(unit.path, 0, problem)])


def texts(inputs: Sequence[Path | str], *, text_key: str = "text") -> Iterator[str]:
    """Yield the text of every document in order; empty ones are left out.

    Raises:
        ValueError: a file cannot be read, or a line or row holds no document; the first is named.
    """
    for unit in cut_into_units(find_inputs(inputs)):
        for documents in read_unit(unit, text_key):
            if documents.rejected:
                raise ValueError(str(documents.rejected[0]))
            yield from documents.texts


def text_hash(text: str) -> bytes:
    """128 bits by which exact copies of a document are known."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _read_lines(unit: Unit, text_key: str, advance: Callable[[int], None]) -> Iterator[Documents]:
    before: int | None = None
    for batch in line_batches(unit, advance):
        documents = Documents()
        for number, line in enumerate(batch.lines, start=batch.first_line):
            if line.removeprefix(_BYTE_ORDER_MARK).strip():
                _add_line(documents, unit, number, line, text_key)
        if documents.rejected and unit.start:
            # Counting them reads the file up to here.
            before = lines_before(unit) if before is None else before
            documents.rejected = [
                Rejected(each.path, before + each.number, each.problem)
                for each in documents.rejected
            ]
        yield documents


def _add_line(documents: Documents, unit: Unit, number: int, line: bytes, text_key: str) -> None:
    try:
        value = _json(line.removeprefix(_BYTE_ORDER_MARK).decode())
    except (ValueError, RecursionError) as error:
        problem = f"not JSON in UTF-8 ({error}). Write one JSON object per line."
    else:
        if isinstance(value, dict) and text_key in value:
            documents.add(unit, number, value[text_key], text_key)
            return
        found = f"keys {sorted(value)[:10]}" if isinstance(value, dict) else "no object"
        problem = (
            f"{found}, a JSON object with the key {text_key!r} is needed. Name the text's key "
            "with --text-key, or leave the line out."
        )
    documents.rejected.append(Rejected(unit.path, number, problem))


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
    # In another key than the text's, where its value does not matter.
    return json.loads(line, parse_int=float)


def _read_rows(unit: Unit, text_key: str, advance: Callable[[int], None]) -> Iterator[Documents]:
    try:
        with parquet.ParquetFile(unit.path, page_checksum_verification=True) as file:
            _check_column(unit.path, file.schema_arrow, text_key)
            groups = range(unit.start, unit.stop or 0)
            number = sum(file.metadata.row_group(group).num_rows for group in range(unit.start))
            rows = file.iter_batches(_ROWS_PER_BATCH, row_groups=groups, columns=[text_key])
            num_rows = sum(file.metadata.row_group(group).num_rows for group in groups)
            for batch in rows:
                documents = Documents()
                # A structure that has a part of this name is read too.
                column = batch.column(batch.schema.get_field_index(text_key))
                for value in column.to_pylist():
                    number += 1
                    documents.add(unit, number, value, text_key)
                yield documents
                advance(unit.num_bytes * batch.num_rows // max(num_rows, 1))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(unreadable(unit.path, error)) from error


def _check_column(path: Path, schema: pa.Schema, text_key: str) -> None:
    """Check that a table has a column of text.

    Raises:
        ValueError: it has not.
    """
    columns = ", ".join(f"{column.name} ({column.type})" for column in schema)
    number = schema.names.count(text_key)
    if number != 1:
        raise ValueError(
            f"{path}: {number or 'no'} column{'s' if number else ''} {text_key!r}, the columns are "
            f"{columns}. Name the one that holds the text with --text-key."
        )
    kind = schema.field(text_key).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not any(is_kind(kind) for is_kind in _KINDS_OF_STRING):
        raise ValueError(
            f"{path}: column {text_key!r} is {kind}, text must be a string; the columns are "
            f"{columns}. Convert it, or name another column with --text-key."
        )


def _text_problem(text: Any, text_key: str) -> str | None:
    if not isinstance(text, str):
        return (
            f"{text_key!r} is {type(text).__name__}, text must be a string. Convert it, or leave "
            "it out."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"{text_key!r} holds half a surrogate pair ({error}), text must have a UTF-8 form. "
            "Repair or remove that character."
        )
    return None
