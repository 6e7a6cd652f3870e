"""Find any changed bit in an archive of ``torch.save``, without opening its pickle.

An archive is a zip file without compression. Every byte of it is covered by a checksum, or repeated
elsewhere, or the same in every version of torch::

    header | name | padding | bytes of record | checksum and size     for each record, then
    checksum, size, place | name                                      for each record again, then
    number of records, size and place of that directory

So the check finds a change of any bit, and reads the records once.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")

_HAS_DESCRIPTOR, _UTF_8 = 0x0008, 0x0800
"""Flags: the checksum follows the bytes, not in their header; names are UTF-8. Torch sets both."""

_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
"""The mark in a field whose value is in a larger field elsewhere."""

_MADE_BY, _NEEDED = 0x031E, 0x002D
"""Versions in the end record for large archives: fixed numbers of torch's zip library, miniz."""

_SMALL_BYTES = 1 << 20
"""An archive up to this size is read at once."""

_READ_BYTES = 1 << 18


class ArchiveDamage(ValueError):
    """An archive is not what ``torch.save`` writes."""


@dataclass(frozen=True, slots=True)
class Record:
    """One file in an archive, from its entry in the directory at the end."""

    name: bytes
    shared: tuple[int, ...]
    """Version, flags, method, time and date, which stand in its header too."""
    made_by: int
    checksum: int
    num_bytes: int
    header_offset: int

    def __str__(self) -> str:
        """Its name, for messages."""
        return ascii(self.name.decode("utf-8", "replace"))[1:-1]


def archive_problem(part: BinaryIO) -> str | None:
    """Return what is wrong with one archive of ``torch.save``; None if it holds what was saved.

    Args:
        part: a seekable stream that holds the archive and nothing else.

    Raises:
        OSError: it cannot be read.
    """
    try:
        size = part.seek(0, io.SEEK_END)
        if size <= _SMALL_BYTES:
            part = io.BytesIO(_read(part, 0, size))
        records, directory = _directory(part, size)
        _require_uniform(records)
        ends = [record.header_offset for record in records[1:]] + [directory]
        position = 0
        for record, end in zip(records, ends, strict=True):
            _require(record.header_offset == position, f"a gap before {record}")
            _check_record(part, record, end)
            position = end
    except ArchiveDamage as damage:
        return str(damage)
    return None


def record_in(part: BinaryIO, name: str) -> bytes:
    """Return the bytes of one record of an archive without a problem.

    Args:
        part: a stream in which ``archive_problem`` finds none.
        name: of the record, without the folder that all are in.

    Raises:
        ValueError: there is none.
    """
    records, _ = _directory(part, part.seek(0, io.SEEK_END))
    for record in records:
        if record.name.partition(b"/")[2] == name.encode():
            header = _LOCAL.unpack(_read(part, record.header_offset, _LOCAL.size))
            start = record.header_offset + _LOCAL.size + header[-2] + header[-1]
            return _read(part, start, record.num_bytes)
    raise ArchiveDamage(f"it has no {name}")


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise ArchiveDamage(otherwise)


def _read(part: BinaryIO, start: int, num_bytes: int) -> bytes:
    _require(start >= 0, "it is shorter than it says")
    part.seek(start)
    data = part.read(num_bytes)
    _require(len(data) == num_bytes, "it is shorter than it says")
    return data


# --- the end -------------------------------------------------------------------------------------


def _directory(part: BinaryIO, size: int) -> tuple[list[Record], int]:
    """Return the records of an archive in the order of their bytes, and the directory's start."""
    end = size - _END.size
    _require(end >= 0, "it is shorter than an archive")
    signature, *disks, on_disk, number, num_bytes, start, comment = _END.unpack(
        _read(part, end, _END.size)
    )
    _require(signature == b"PK\5\6" and not any(disks) and not comment, "its end record")
    _require(on_disk == number, "its end record")
    if end >= _LOCATOR.size + _END_64.size:
        located = _LOCATOR.unpack(_read(part, end - _LOCATOR.size, _LOCATOR.size))
        if located[0] == b"PK\6\7":
            end -= _LOCATOR.size + _END_64.size
            _require(located[1:] == (0, end, 1), "its locator")
            short = number, num_bytes, start
            number, num_bytes, start = _large_end(_read(part, end, _END_64.size))
            limits = _FULL_16, _FULL_32, _FULL_32
            shown = tuple(map(min, (number, num_bytes, start), limits))
            _require(short == shown, "its two end records")
    _require(start + num_bytes == end, "the place of its directory")
    records = _entries(_read(part, start, num_bytes))
    _require(len(records) == number > 0, "its number of records")
    return records, start


def _large_end(data: bytes) -> tuple[int, int, int]:
    signature, size, made_by, needed, disk, start_disk, on_disk, number, num_bytes, start = (
        _END_64.unpack(data)
    )
    _require(
        (signature, size) == (b"PK\6\6", _END_64.size - 12)
        and (made_by, needed, disk, start_disk) == (_MADE_BY, _NEEDED, 0, 0)
        and on_disk == number,
        "its large end record",
    )
    return number, num_bytes, start


def _entries(data: bytes) -> list[Record]:
    records, position = [], 0
    while position < len(data):
        _require(position + _CENTRAL.size <= len(data), "its directory is cut off")
        (signature, made_by, *shared, checksum, stored, size, name_bytes, extra_bytes) = (
            _CENTRAL.unpack_from(data, position)[:12]
        )
        *constants, offset = _CENTRAL.unpack_from(data, position)[12:]
        position += _CENTRAL.size
        name = data[position : position + name_bytes]
        extra = data[position + name_bytes : position + name_bytes + extra_bytes]
        position += name_bytes + extra_bytes
        _require(signature == b"PK\1\2" and position <= len(data), "an entry of its directory")
        # Comment, disk and attributes, among them the one of a folder, which torch does not read.
        _require(not any(constants), "an entry of its directory")
        size, stored, offset = _large_fields(extra, size, stored, offset)
        _require(size == stored, "an entry of its directory")
        records.append(Record(name, tuple(shared), made_by, checksum, size, offset))
    return records


def _large_fields(extra: bytes, *fields: int) -> tuple[int, ...]:
    """Return sizes and place of a record; those of 64 bits stand behind its entry."""
    places = [number for number, field in enumerate(fields) if field == _FULL_32]
    if not places:
        _require(not extra, "what follows an entry of its directory")
        return fields
    form = struct.Struct(f"<2H{len(places)}Q")
    _require(len(extra) == form.size, "what follows an entry of its directory")
    kind, num_bytes, *values = form.unpack(extra)
    _require((kind, num_bytes) == (1, form.size - 4), "what follows an entry of its directory")
    full = list(fields)
    for place, value in zip(places, values, strict=True):
        _require(value >= _FULL_32, "what follows an entry of its directory")
        full[place] = value
    return tuple(full)


def _require_uniform(records: Sequence[Record]) -> None:
    """Refuse records that differ in what ``torch.save`` writes the same for all."""
    first = records[0]
    folder = first.name.partition(b"/")[0]
    _require(first.shared[1] & ~(_HAS_DESCRIPTOR | _UTF_8) == 0, "the flags of its records")
    _require(first.shared[2] == 0, "its records are packed")
    version, flags, *others = first.shared
    # Behind the bytes of an empty record stands nothing.
    of_empty = (version, flags & ~_HAS_DESCRIPTOR, *others)
    for record in records:
        is_alike = record.shared == first.shared or (
            record.num_bytes == 0 and record.shared == of_empty
        )
        _require(
            is_alike and record.made_by == first.made_by,
            f"{record} is described unlike the others",
        )
        _require(record.name.startswith(folder + b"/"), f"{record} is in another folder")
    _require(len({record.name for record in records}) == len(records), "two records of one name")


# --- one record ----------------------------------------------------------------------------------


def _check_record(part: BinaryIO, record: Record, end: int) -> None:
    signature, *shared, checksum, stored, size, name_bytes, extra_bytes = _LOCAL.unpack(
        _read(part, record.header_offset, _LOCAL.size)
    )
    start = record.header_offset + _LOCAL.size + name_bytes + extra_bytes
    _require(signature == b"PK\3\4" and tuple(shared) == record.shared, f"the header of {record}")
    behind = end - start - record.num_bytes
    has_descriptor = bool(record.shared[1] & _HAS_DESCRIPTOR)
    _require(behind in ((16, 24) if has_descriptor else (0,)), f"the place of {record}")
    name_and_extra = part.read(name_bytes + extra_bytes)
    _require(name_and_extra[:name_bytes] == record.name, f"the name of {record}")
    said = (record.checksum, record.num_bytes, record.num_bytes)
    shown = tuple(min(value, _FULL_32) for value in said)
    is_empty = has_descriptor and (checksum, stored, size) == (0, 0, 0)
    is_large = (stored, size) == (_FULL_32, _FULL_32) and checksum in (0, record.checksum)
    _require(is_empty or is_large or (checksum, stored, size) == shown, f"the header of {record}")
    _check_extra(name_and_extra[name_bytes:], record)
    found, left = 0, record.num_bytes
    while left:
        block = part.read(min(left, _READ_BYTES))
        _require(bool(block), "it is shorter than it says")
        found, left = zlib.crc32(block, found), left - len(block)
    _require(found == record.checksum, f"checksum of {record}")
    if has_descriptor:
        form = "<4s3I" if behind == 16 else "<4sI2Q"
        _require(
            struct.unpack(form, part.read(behind)) == (b"PK\7\x08", *said), f"the end of {record}"
        )


def _check_extra(extra: bytes, record: Record) -> None:
    """Look at the padding with which torch aligns the bytes of a record, and at large fields."""
    position = 0
    while position < len(extra):
        _require(position + 4 <= len(extra), f"the padding of {record}")
        kind, num_bytes = struct.unpack_from("<2sH", extra, position)
        content = extra[position + 4 : position + 4 + num_bytes]
        position += 4 + num_bytes
        if kind == b"\1\0":
            values = struct.unpack(f"<{num_bytes // 8}Q", content) if num_bytes % 8 == 0 else ()
            allowed = (0, record.num_bytes, record.header_offset)
            is_so = bool(values) and all(value in allowed for value in values)
        else:
            is_so = kind == b"FB" and content == b"Z" * num_bytes
        _require(is_so and position <= len(extra), f"the padding of {record}")
