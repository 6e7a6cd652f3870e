"""The layout of Megatron's .bin/.idx token files: constants, token types and file names.

`<prefix>.bin` holds the raw tokens of all documents in a row. `<prefix>.idx` says where each of
them is. It is little endian and holds, in this order:

    9 bytes      magic
    u64          version
    u8           code of the token type (DTYPES)
    u64          number of sequences
    u64          length of the document index
    int32 each   tokens of each sequence
    int64 each   byte offset of each sequence in the .bin
    int64 each   document index

In the files written here every document is one sequence. Megatron itself is not imported: that
takes ten seconds, and the format is small and fixed.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
VERSION = 1
DOCUMENTS_PER_BLOCK = 2**22
"""Numbers of an index that are worked on at a time, so that memory stays small."""
DTYPES: dict[int, np.dtype[Any]] = {8: np.dtype("<u2"), 4: np.dtype("<i4")}


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the dtype Megatron gives tokens of this vocabulary: uint16 below 65500, else int32."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


def bin_path(prefix: Path) -> Path:
    """Return the token file of a prefix (a prefix may contain dots, so `with_suffix` is wrong)."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """Return the index file of a prefix."""
    return prefix.with_name(prefix.name + ".idx")


def where_it_leads(path: Path) -> str:
    """Say where a link leads, for a message; say nothing of a file."""
    return f" (a link to {path.readlink()})" if path.is_symlink() else ""
