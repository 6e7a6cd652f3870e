"""Collect the texts of the evidence runs from the packages that ``uv.lock`` names.

The lock file decides which packages an environment has, down to the hash of every wheel. So their
files are a text that every Linux machine (x86-64) has, with the same bytes, without a download of
its own. There are three kinds: ``python`` (sources, comments and docstrings), ``prose`` (docstrings
alone) and ``cpp`` (C++ and CUDA headers). A document is one file.

Files are taken in the order of a hash of their names. A file is left out if it is not UTF-8, larger
than 200 kB (mostly written by programs), or mostly known already: more than half of the letters in
its longer lines stand in files taken before. That finds copies with other headers or other names,
of which packages have many.
"""

from __future__ import annotations

import ast
import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path, PurePosixPath

from tst_megatron.data.text.write import write_jsonl

KINDS = {
    "python": (".py",),
    "prose": (".py",),
    "cpp": (".h", ".hpp", ".cuh", ".cu", ".cpp"),
}
"""Kinds of text, and the ends of the files that hold them."""

OWN = "tst-megatron"
MOST_BYTES_OF_A_FILE = 200_000
SHORTEST_LINE = 16
"""Letters of a line that counts when files are compared."""
MOST_KNOWN = 0.5
"""Share of the letters in such lines that may stand in earlier files."""
SHORTEST_DOCSTRING = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFacts:
    """What a text holds, and what was left out of it."""

    kind: str
    num_documents: int
    num_text_bytes: int
    num_known: int
    """Files that were mostly known already."""
    num_unreadable: int
    """Files that are empty, too large, not UTF-8, or no Python of this version."""
    sha256: str
    """Of the JSONL file."""


def write_text(kind: str, path: Path) -> TextFacts:
    """Write one kind of text as JSONL, with a document in each line.

    Args:
        kind: one of ``KINDS``.
        path: the file; written beside and renamed.
    """
    found = Counter[str]()
    sha256 = write_jsonl(path, _documents(kind, found))
    return TextFacts(
        kind=kind,
        num_documents=found["documents"],
        num_text_bytes=found["bytes"],
        num_known=found["known"],
        num_unreadable=found["unreadable"],
        sha256=sha256,
    )


def _documents(kind: str, found: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each document, and count what is taken and left out."""
    seen: set[bytes] = set()
    for name, place in _files(KINDS[kind]):
        text = _read(kind, place)
        if text is None:
            found["unreadable"] += 1
        elif _is_known(text, seen):
            found["known"] += 1
        else:
            found["documents"] += 1
            found["bytes"] += len(text.encode())
            yield name, text


def _files(ends: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Yield the name and place of each file that a locked package has brought."""
    found: dict[str, Path] = {}
    for distribution in distributions():
        if distribution.metadata["Name"] == OWN:
            continue
        for file in distribution.files or ():
            name = PurePosixPath(file)
            if name.suffix in ends and ".." not in name.parts:
                found[str(name)] = Path(str(distribution.locate_file(file)))
    for name in sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if found[name].is_file():
            yield name, found[name]


def _read(kind: str, place: Path) -> str | None:
    if not 0 < place.stat().st_size <= MOST_BYTES_OF_A_FILE:
        return None
    try:
        text = place.read_bytes().decode("utf-8")
        if kind == "prose":
            text = _docstrings(text)
    except (UnicodeDecodeError, SyntaxError, ValueError, RecursionError):
        return None
    return text if text.strip() else None


def _docstrings(source: str) -> str:
    """Return the longer docstrings of a file, those of outer blocks first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return "\n\n".join(each for each in found if each and len(each) >= SHORTEST_DOCSTRING)


def _is_known(text: str, seen: set[bytes]) -> bool:
    """Tell whether most of a text stands in earlier ones; if not, remember its lines."""
    lines = [line for each in text.splitlines() if len(line := each.strip()) >= SHORTEST_LINE]
    hashes = [hashlib.blake2b(line.encode(), digest_size=8).digest() for line in lines]
    known = sum(len(line) for line, each in zip(lines, hashes, strict=True) if each in seen)
    if known > MOST_KNOWN * sum(map(len, lines)):
        return True
    seen.update(hashes)
    return False
