import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tst_megatron.data.text import documents, jsonl, units
from tst_megatron.data.text.documents import Documents, read_unit, texts
from tst_megatron.data.text.inputs import find_inputs
from tst_megatron.data.text.units import cut_into_units

BAD_LINES = {
    b"not json": r"line 3: not JSON in UTF-8 \(.*Write one JSON object per line",
    b"\xff\xfe": r"line 3: not JSON in UTF-8 \(.*decode byte",
    b"[" * 10**6: r"line 3: not JSON in UTF-8 \(",
    b'["text"]': r"line 3: no object, a JSON object with the key 'text'.*--text-key",
    b'{"body": "x", "a": 1}': r"line 3: keys \['a', 'body'\], a JSON object with the key 'text'",
    b'{"text": 5}': r"line 3: 'text' is int, text must be a string",
    b'{"text": null}': r"line 3: 'text' is NoneType, text must be a string",
    b'{"text": "\\ud800"}': r"line 3: 'text' holds half a surrogate pair.*Repair or remove",
}


def read(path: Path, text_key: str = "text") -> Documents:
    """All that a file holds, in one."""
    together = Documents()
    for unit in cut_into_units(find_inputs([path])):
        for some in read_unit(unit, text_key):
            together.texts += some.texts
            together.num_empty += some.num_empty
            together.rejected += some.rejected
    return together


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_line_is_named_and_the_others_are_read(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "source.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b'\n{"text": ""}\n{"text": "too"}\n')
    found = read(path)
    assert found.texts == ["fine", "too"] and found.num_empty == 1
    (rejected,) = found.rejected
    with pytest.raises(ValueError, match=r"source\.jsonl, " + BAD_LINES[line]):
        raise ValueError(str(rejected))
    with pytest.raises(ValueError, match=r"source\.jsonl, " + BAD_LINES[line]):
        list(texts([path]))


def test_lines_are_numbered_in_the_file_and_not_in_the_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", 64)
    monkeypatch.setattr(jsonl, "BATCH_BYTES", 100)
    path = tmp_path / "source.jsonl"
    bad = {5, 40, 41, 99}
    lines = [f"bad {n}" if n in bad else json.dumps({"text": f"{n}"}) for n in range(1, 100)]
    path.write_text("\n".join(lines))
    found = read(path)
    assert {each.number for each in found.rejected} == bad
    assert found.texts == [f"{n}" for n in range(1, 100) if n not in bad]


def write_table(path: Path, values: list, name: str = "text", kind=None, **options) -> Path:
    table = pa.table({"id": list(range(len(values))), name: pa.array(values, type=kind)})
    parquet.write_table(table, path, **options)
    return path


TEXTS = [f"text {number} naïve 中文" for number in range(1000)]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("unit_bytes", [1, 1 << 26])
def test_table_gives_its_rows_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: pa.DataType, unit_bytes: int
) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", unit_bytes)
    path = write_table(tmp_path / "a.parquet", TEXTS, kind=kind, row_group_size=130)
    assert read(path).texts == TEXTS


def test_dictionary_of_strings_is_text(tmp_path: Path) -> None:
    values = pa.array(["a", "b", "a"]).dictionary_encode()
    parquet.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").texts == ["a", "b", "a"]


def test_rows_without_text_are_named_by_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", 1)
    values = [None if n in (3, 700) else "" if n == 5 else text for n, text in enumerate(TEXTS, 1)]
    found = read(write_table(tmp_path / "a.parquet", values, row_group_size=130))
    assert [str(each).split(". ")[0] for each in found.rejected] == [
        f"{tmp_path}/a.parquet, row {n}: 'text' is NoneType, text must be a string"
        for n in (3, 700)
    ]
    assert len(found.texts) == 997 and found.num_empty == 1


@pytest.mark.parametrize(
    ("values", "name", "message"),
    [
        (["a"], "body", r"no column 'text', the columns are id \(int64\), body \(string\)\. Name"),
        ([1], "text", r"column 'text' is int64, text must be a string.*id \(int64\)"),
        ([["a"]], "text", r"column 'text' is list<.*text must be a string"),
        ([b"a"], "text", r"column 'text' is binary, text must be a string"),
    ],
)
def test_table_without_text_is_named(tmp_path: Path, values: list, name: str, message: str) -> None:
    path = write_table(tmp_path / "a.parquet", values, name)
    with pytest.raises(ValueError, match=r"a\.parquet: " + message):
        read(path)


def test_damaged_table_is_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", TEXTS, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[200:2000] = bytes(1800)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.parquet: cannot be read as Parquet \("):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.parquet"])
def test_file_of_no_byte_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    (rejected,) = read(tmp_path / name).rejected
    assert str(rejected) == (
        f"{tmp_path / name}: holds no document. Bring the file back, or leave it out."
    )


def test_file_of_blank_lines_and_table_of_no_rows_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n \n")
    write_table(tmp_path / "b.parquet", [], kind=pa.string())
    for name in ("a.jsonl", "b.parquet"):
        (rejected,) = read(tmp_path / name).rejected
        assert rejected.number == 0 and "holds no document" in rejected.problem


def test_progress_adds_up_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_ROWS_PER_BATCH", 8)
    path = write_table(tmp_path / "a.parquet", TEXTS)
    (unit,) = cut_into_units(find_inputs([path]))
    steps: list[int] = []
    assert len(list(read_unit(unit, "text", steps.append))) == 125
    assert 0.9 * unit.num_bytes < sum(steps) <= unit.num_bytes


def test_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: 2 columns 'text', the columns are"):
        read(tmp_path / "a.parquet")
