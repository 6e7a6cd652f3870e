"""Tell from a file's name what it is: lines of text, a table, or something that is not read."""

from __future__ import annotations

from pathlib import Path

KINDS = (
    "Give .jsonl or .ndjson files (.json is read as one object per line too), packed as .gz or "
    ".zst or not, or .parquet files; or folders or patterns of them."
)

_LINES = (".jsonl", ".ndjson", ".json")
_TABLE = ".parquet"
_PACKED = {".gz": "gz", ".gzip": "gz", ".zst": "zst", ".zstd": "zst"}
_OTHERWISE_PACKED = (
    *(".bz2", ".xz", ".lzma", ".lz4", ".br", ".sz", ".snappy", ".z", ".lzo", ".rar", ".zip", ".7z"),
    ".deflate",
)
_UNFINISHED = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".incomplete")


def is_lines(path: Path) -> bool:
    """Tell whether a file has a document on each line, packed or not."""
    name = path.name.lower()
    return name.removesuffix(f".{_ending(name)}" if packing(path) else "").endswith(_LINES)


def is_table(path: Path) -> bool:
    """Tell whether a file is Parquet."""
    return path.name.lower().endswith(_TABLE)


def is_text(path: Path) -> bool:
    """Tell whether a file of this name is read."""
    return is_lines(path) or is_table(path)


def packing(path: Path) -> str:
    """Return how a file is packed: "gz", "zst", or "" if it is not."""
    return _PACKED.get(f".{_ending(path.name.lower())}", "")


def problem_of(path: Path) -> str | None:
    """Say why a file whose name promises text in another form must not be left out unread."""
    name = path.name.lower()
    for ending in (*_OTHERWISE_PACKED, *_UNFINISHED):
        if name.endswith(ending) and is_text(Path(name.removesuffix(ending))):
            if ending in _UNFINISHED:
                return "is an unfinished copy by its name. Finish it, or move it away."
            return f"is packed as {ending}, which is not read. Pack it as .gz or .zst, or move it."
    if is_table(Path(name.removesuffix(f".{_ending(name)}"))) and packing(path):
        return "is a packed table. Unpack it: Parquet is packed inside."
    return None


def why_left_out(path: Path) -> str:
    """Say why a file is not one of text."""
    if path.name.startswith("."):
        return "hidden"
    ending = _ending(path.name)
    return f".{ending} is not read" if ending else "no ending"


def _ending(name: str) -> str:
    return name.rpartition(".")[2] if "." in name else ""
