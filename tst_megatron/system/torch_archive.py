"""Checking the archive that ``torch.save`` writes against the checksums inside it."""

from __future__ import annotations

import struct
import zipfile
from typing import Any, BinaryIO

_HEADER_BYTES = 30
"""Of a record in a zip archive; the last four are the lengths of its name and of what follows."""

_FOLDER = 0x10
"""Attribute of a folder in a zip archive."""


def archive_problem(part: BinaryIO) -> str | None:
    """What is wrong with one archive of ``torch.save``; None if it holds what was saved.

    Opens no pickle.

    Args:
        part: a seekable stream that holds the archive and nothing else.

    Raises:
        Exception: damaged headers raise whatever their bytes happen to mean.
    """
    with zipfile.ZipFile(part) as archive:
        found = _structure_problem(archive, part)
        if found is None and (record := archive.testzip()):
            found = f"checksum of {record}"
    return found


def _structure_problem(archive: zipfile.ZipFile, part: BinaryIO) -> str | None:
    """Why torch would read something else than what the checksums are of; None if it would not.

    Torch's own reader compares no checksum, and takes names and places from headers that have none.
    No pickle is opened.
    """
    # Takes seconds to import, and most commands do not need it.
    import torch

    # It takes the place where the file stands for the start of the archive.
    part.seek(0)
    reader: Any = torch._C.PyTorchFileReader(part)
    # Torch names its records without the folder that they are all in.
    records = {record.filename.partition("/")[2]: record for record in archive.infolist()}
    if sorted(reader.get_all_records()) != sorted(records):
        return "torch finds other records in it"
    for name, record in records.items():
        if record.external_attr & _FOLDER:
            return f"{record.filename} is marked as a folder, which torch does not read"
        part.seek(record.header_offset + _HEADER_BYTES - 4)
        name_bytes, extra_bytes = struct.unpack("<HH", part.read(4))
        start = record.header_offset + _HEADER_BYTES + name_bytes + extra_bytes
        if reader.get_record_offset(name) != start:
            return f"{record.filename} starts elsewhere for torch"
    return None
