import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tst_megatron.data.text import jsonl, units
from tst_megatron.data.text.inputs import find_inputs
from tst_megatron.data.text.jsonl import line_batches, lines_before
from tst_megatron.data.text.units import cut_into_units

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
    "a.json.zst": zstd_frames,
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
    (unit,) = cut_into_units(find_inputs([path]))
    batches = list(line_batches(unit, steps.append))
    assert [line.rstrip(b"\n") for batch in batches for line in batch.lines] == LINES
    next_line = 1
    for batch in batches:
        assert batch.first_line == next_line
        next_line += len(batch.lines)
    assert next_line == 301
    assert sum(steps) == path.stat().st_size


@pytest.mark.parametrize("unit_bytes", [1, 2, 7, 64, 1000, 10**6])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_units_share_out_the_lines_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit_bytes: int, end: bytes
) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", unit_bytes)
    data = DATA[:500].rstrip(b"\n") + end
    (tmp_path / "a.jsonl").write_bytes(data)
    cut = cut_into_units(find_inputs([tmp_path / "a.jsonl"]))
    assert len(cut) == -(-len(data) // unit_bytes)
    number = 0
    lines: list[bytes] = []
    for unit in cut:
        found = [line for batch in line_batches(unit) for line in batch.lines]
        if found:
            assert lines_before(unit) == number
        number += len(found)
        lines += found
    assert lines == data.splitlines(keepends=True)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.zst"])
@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"junk" + data])
def test_damaged_file_is_named(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / name
    path.write_bytes(damage(KINDS[name](DATA)))
    (unit,) = cut_into_units(find_inputs([path]))
    with pytest.raises(ValueError, match=rf"{name}: packed file is damaged or cut short.*again"):
        list(line_batches(unit))
