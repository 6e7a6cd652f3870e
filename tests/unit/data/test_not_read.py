"""Everything in a named folder is read, refused, or listed with the reason."""

import gzip
import json
import os

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.text.documents import texts
from tst_megatron.data.text.inputs import find

LINE = b'{"text": "some text"}\n'
PACKERS = {"": bytes, "gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("a.jsonl", ""),
        ("a.JSONL", ""),
        ("a.ndjson", ""),
        ("a.Json", ""),
        ("a.jsonl.zstd", "zst"),
        ("a.ndjson.ZST", "zst"),
        ("a.jsonl.GZ", "gz"),
        ("a.json.gzip", "gz"),
    ],
)
def test_every_spelling_of_an_ending_is_read(tmp_path, name, packed):
    (tmp_path / name).write_bytes(PACKERS[packed](LINE))
    for given in (tmp_path, tmp_path / name, f"{tmp_path}/*"):
        assert list(texts([given])) == ["some text"]


def test_tables_are_read_in_any_case(tmp_path):
    parquet.write_table(pa.table({"text": ["a table"]}), tmp_path / "A.PARQUET")
    assert list(texts([tmp_path])) == ["a table"]


@pytest.mark.parametrize(
    "name", ["b.jsonl.bz2", "b.json.XZ", "b.parquet.lz4", "b.parquet.gz", "b.ndjson.zip"]
)
@pytest.mark.parametrize("how", ["folder", "pattern", "name"])
def test_text_that_is_packed_otherwise_is_refused(tmp_path, name, how):
    (tmp_path / "a.jsonl").write_bytes(LINE)
    (tmp_path / name).write_bytes(b"x")
    given = {"folder": tmp_path, "pattern": f"{tmp_path}/*", "name": tmp_path / name}[how]
    with pytest.raises(ValueError, match=f"{name}: is (packed as|a packed table)"):
        find([given])


@pytest.mark.parametrize("name", ["b.jsonl.part", "b.parquet.tmp", "b.jsonl.gz.crdownload"])
def test_unfinished_copy_is_refused(tmp_path, name):
    (tmp_path / "a.jsonl").write_bytes(LINE)
    (tmp_path / name).write_bytes(LINE)
    with pytest.raises(ValueError, match=f"{name}: is an unfinished copy"):
        find([tmp_path])


def test_everything_else_is_listed_with_the_reason(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINE)
    for name in ("README.md", "LICENSE", "c.txt", "a.jsonl.sha256", ".hidden.jsonl"):
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / ".git" / "objects").mkdir(parents=True)
    (tmp_path / ".git" / "objects" / "x.jsonl").write_bytes(LINE)
    os.mkfifo(tmp_path / "pipe")
    found = find([tmp_path])
    assert [each.name for each in found.files] == ["a.jsonl"]
    assert [(each.name, each.num_bytes, each.reason) for each in found.not_read] == [
        (".git/", 0, "hidden"),
        (".hidden.jsonl", 5, "hidden"),
        ("LICENSE", 5, "no ending"),
        ("README.md", 5, ".md is not read"),
        ("a.jsonl.sha256", 5, ".sha256 is not read"),
        ("c.txt", 5, ".txt is not read"),
        ("pipe", 0, "no ending"),
    ]


def test_link_to_nowhere_and_a_folder_that_cannot_be_looked_into_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(LINE)
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"b\.jsonl: leads nowhere"):
        find([tmp_path])
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"closed: cannot be looked into \(Permission denied\)"):
        find([tmp_path])


def test_folders_that_a_pattern_matches_are_listed_unless_it_reaches_into_them(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.jsonl").write_bytes(LINE)
    (tmp_path / "a.jsonl").write_bytes(LINE)
    assert [each.name for each in find([f"{tmp_path}/*"]).not_read] == ["sub/"]
    assert find([f"{tmp_path}/**"]).not_read == []


def test_manifest_has_the_documents_of_each_file_and_what_was_not_read(text, tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    lines = (json.dumps({"text": f"a {number}"}) + "\n" for number in range(40))
    (folder / "a.jsonl").write_text("".join(lines))
    (folder / "b.jsonl").write_text('{"text": "a 1"}\n{"text": ""}\n{"text": "b"}\n')
    (folder / "notes.txt").write_text("notes")
    manifest = prepare(
        [folder],
        text / "tokenizer.model",
        tmp_path / "out",
        held_out_fraction=0.2,
        deduplicate=True,
        workers=1,
    )
    contents = manifest.contents
    assert [*contents.files] == [
        {"name": "a.jsonl", "documents": 40},
        {"name": "b.jsonl", "documents": 1},
    ]
    documents = sum(split.documents for split in manifest.splits().values())
    assert sum(each["documents"] for each in contents.files) == documents
    left_out = {"name": "notes.txt", "num_bytes": 5, "reason": ".txt is not read"}
    assert contents.not_read == [left_out]
    assert contents.round_trip.compared == 42


# --- inside files --------------------------------------------------------------------------------


def test_byte_order_marks_at_the_start_of_lines_are_passed_over(tmp_path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.jsonl").write_bytes(mark + LINE + LINE + mark + LINE + mark + b"\n" + LINE)
    assert list(texts([tmp_path])) == ["some text"] * 4


def test_very_large_number_in_another_key_is_no_fault(tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"id": {"9" * 5000}, "text": "a"}}\n')
    assert list(texts([tmp_path])) == ["a"]


def test_flat_column_beside_a_structure_is_the_one_that_was_named(tmp_path):
    table = pa.table({"doc": [{"text": "inside", "n": 1}], "doc.text": ["flat"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert list(texts([tmp_path], text_key="doc.text")) == ["flat"]


def test_damaged_page_of_a_table_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["a text that can be found again"] * 3})
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    parquet.write_table(table, path, write_statistics=False, **options)
    data = bytearray(path.read_bytes())
    data[data.index(b"found")] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.parquet: cannot be read as Parquet"):
        list(texts([path]))


def test_of_files_with_the_same_content_one_is_decoded_again(text, tmp_path):
    lines = "".join(json.dumps({"text": f"{n} " + "word " * 2000}) + "\n" for n in range(40))
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_text(lines)
    call = {"held_out_fraction": 0.3, "workers": 1}
    files = [tmp_path / f"{name}.jsonl" for name in ("a", "b", "c")]
    manifest = prepare(files, text / "tokenizer.model", tmp_path / "out", **call)
    assert [each["documents"] for each in manifest.contents.files] == [40, 40, 40]
    assert manifest.contents.round_trip.compared > 30


def test_two_files_of_one_name_are_counted_apart(text, tmp_path):
    for folder, number in (("a", 30), ("b", 12)):
        (tmp_path / folder).mkdir()
        lines = (json.dumps({"text": f"{folder} {n}"}) + "\n" for n in range(number))
        (tmp_path / folder / "x.jsonl").write_text("".join(lines))
    manifest = prepare(
        [tmp_path / "a", tmp_path / "b"],
        text / "tokenizer.model",
        tmp_path / "out",
        held_out_fraction=0.3,
        workers=1,
    )
    assert manifest.contents.files == [
        {"name": "x.jsonl", "documents": 30},
        {"name": "x.jsonl", "documents": 12},
    ]
