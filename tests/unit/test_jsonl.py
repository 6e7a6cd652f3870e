import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tst_megatron.data import jsonl
from tst_megatron.data.jsonl import check_inputs, line_batches

LINES = [f"line {number}".encode() * (number % 5) for number in range(300)]
DATA = b"\n".join(LINES) + b"\n"


def zstd_frames(data: bytes) -> bytes:
    parts = (data[:999], data[999:])
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)


def plain(data: bytes) -> bytes:
    return data


KINDS: dict[str, Callable[[bytes], bytes]] = {
    "a.jsonl": plain,
    "a.jsonl.gz": gzip.compress,
    "a.jsonl.zst": zstd_frames,
}


@pytest.mark.parametrize("name", KINDS)
def test_lines_are_read_in_order_with_their_numbers(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "BATCH_BYTES", 100)
    monkeypatch.setattr(jsonl, "_ZSTD_READ_BYTES", 70)
    path = tmp_path / name
    path.write_bytes(KINDS[name](DATA))
    steps: list[int] = []
    batches = list(line_batches([path, path], steps.append))
    assert [line.rstrip(b"\n") for batch in batches for line in batch.lines] == LINES * 2
    next_line = 1
    for batch in batches[: len(batches) // 2]:
        assert (batch.file, batch.first_line) == (str(path), next_line)
        next_line += len(batch.lines)
    assert next_line == 301
    assert sum(steps) == 2 * path.stat().st_size


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"junk" + data])
def test_damaged_file_is_named(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / name
    path.write_bytes(damage(KINDS[name](DATA)))
    with pytest.raises(
        ValueError, match=rf"{name}: compressed file is damaged or cut short.*again"
    ):
        list(line_batches([path]))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("a.parquet", ValueError, r"a\.parquet: unknown kind of file\. Give \.jsonl"),
        ("none.jsonl", FileNotFoundError, r"none\.jsonl: no such input file\. Give \.jsonl"),
    ],
)
def test_unusable_input_is_named(
    tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_inputs([tmp_path / name])


def test_no_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"inputs: no files\. Give \.jsonl"):
        check_inputs([])
