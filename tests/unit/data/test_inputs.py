from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tst_megatron.data.text import units
from tst_megatron.data.text.inputs import check_unchanged, find_inputs
from tst_megatron.data.text.units import cut_into_units


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of text among others."""
    for name in ("b.jsonl", "a.jsonl.zst", "sub/c.json.gz", "sub/deep/d.parquet"):
        path = tmp_path / "text" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    for name in ("_SUCCESS", ".hidden.jsonl", "README.md", "sub/e.csv"):
        (tmp_path / "text" / name).write_text("x")
    return tmp_path / "text"


def names(found) -> list[str]:
    return [each.name for each in found]


def test_folder_gives_all_its_text_in_the_order_of_names(folder: Path) -> None:
    expected = ["a.jsonl.zst", "b.jsonl", "sub/c.json.gz", "sub/deep/d.parquet"]
    assert names(find_inputs([folder])) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl*", ["a.jsonl.zst", "b.jsonl"]),
        ("**/*.parquet", ["sub/deep/d.parquet"]),
        ("s*/*.gz", ["sub/c.json.gz"]),
        ("sub/[cd]*", ["c.json.gz"]),
    ],
)
def test_pattern_gives_what_matches(folder: Path, pattern: str, expected: list[str]) -> None:
    assert names(find_inputs([f"{folder}/{pattern}"])) == expected


def test_order_of_what_is_given_is_kept(folder: Path) -> None:
    found = find_inputs([folder / "b.jsonl", str(folder / "a.jsonl.zst"), folder / "sub"])
    assert names(found) == ["b.jsonl", "a.jsonl.zst", "c.json.gz", "deep/d.parquet"]
    assert [each.num_bytes for each in found] == [1] * 4


def test_all_that_is_wrong_is_named_at_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError) as caught:
        find_inputs(
            [
                tmp_path / "none.jsonl",
                folder / "README.md",
                tmp_path / "empty",
                f"{folder}/*.arrow",
                folder / "b.jsonl",
                f"{folder}/b*",
            ]
        )
    lines = str(caught.value).splitlines()
    assert [line.removeprefix(f"{tmp_path}/").split(". Give")[0] for line in lines] == [
        "none.jsonl: no such file or folder",
        "text/README.md: unknown kind of file",
        "empty: no file of text is in this folder",
        "text/*.arrow: no file of text matches this pattern",
        f"text/b.jsonl: is the same file as {folder}/b.jsonl. Name it once.",
    ]
    with pytest.raises(ValueError, match=r"inputs: no files\. Give \.jsonl"):
        find_inputs([])


def test_table_is_cut_between_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{number}" * 100 for number in range(100)]})
    parquet.write_table(table, path, row_group_size=10, compression="none", use_dictionary=False)
    assert [(unit.start, unit.stop) for unit in cut_into_units(find_inputs([path]))] == [(0, 10)]
    monkeypatch.setattr(units, "UNIT_BYTES", 5000)
    cut = cut_into_units(find_inputs([path]))
    assert len(cut) > 2 and not any(unit.is_whole_file for unit in cut)
    assert [unit.stop for unit in cut[:-1]] == [unit.start for unit in cut[1:]]
    assert (cut[0].start, cut[-1].stop) == (0, 10)


def test_unreadable_tables_are_all_named(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError) as caught:
        cut_into_units(find_inputs([tmp_path]))
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        str(tmp_path / "a.parquet"),
        str(tmp_path / "b.parquet"),
    ]
    assert all("cannot be read as Parquet" in line and "write it again" in line for line in lines)


def test_changed_files_are_noticed(folder: Path) -> None:
    found = find_inputs([folder])
    check_unchanged(found)
    (folder / "b.jsonl").write_text("y\n")
    (folder / "sub" / "c.json.gz").unlink()
    with pytest.raises(ValueError) as caught:
        check_unchanged(found)
    problems = str(caught.value).splitlines()
    assert [problem.split(": ")[0] for problem in problems] == [
        str(folder / "b.jsonl"),
        str(folder / "sub" / "c.json.gz"),
    ]
    assert all("was changed while it was read" in problem for problem in problems)


def test_linked_folders_are_read_and_hidden_ones_are_not(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "own").mkdir(parents=True)
    (tmp_path / "elsewhere" / "own" / "l.jsonl").write_text("x")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "h.jsonl").write_text("x")
    expected = ["a.jsonl.zst", "b.jsonl", "link/own/l.jsonl", "sub/c.json.gz", "sub/deep/d.parquet"]
    assert names(find_inputs([folder])) == expected


def test_files_given_by_name_are_called_by_what_tells_them_apart(folder: Path) -> None:
    given = [folder / "b.jsonl", folder / "sub" / "c.json.gz"]
    assert names(find_inputs(given)) == ["b.jsonl", "sub/c.json.gz"]
    assert names(find_inputs(given[1:])) == ["c.json.gz"]
