"""The texts of the evidence: what is taken from packages, and what is left out."""

import hashlib
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

from evidence import prepared, text  # noqa: E402

from tst_megatron.data.text.split import split_of  # noqa: E402
from tst_megatron.data.text.write import write_jsonl  # noqa: E402

LINES = [f"value_{number} = compute_something({number})" for number in range(40)]


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder whose files are those of the packages: ``packages(name=content)`` adds some."""
    files = {}

    def add(content):
        for name, data in content.items():
            place = tmp_path / "site" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data if isinstance(data, bytes) else data.encode())
            files[name] = place

    class Distribution:
        def __init__(self, name, files):
            self.metadata, self.files = {"Name": name}, files

        def locate_file(self, file):
            return tmp_path / "site" / file

    monkeypatch.setattr(
        text,
        "distributions",
        lambda: [
            Distribution("one", [*files, "../../bin/tool.py", "gone.py"]),
            Distribution("tst-megatron", ["own.py"]),
            Distribution("empty", None),
        ],
    )
    return add


def written(kind, tmp_path):
    facts = text.write_text(kind, tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_bytes()
    assert facts.sha256 == hashlib.sha256(lines).hexdigest()
    rows = [json.loads(line) for line in lines.splitlines()]
    assert facts.num_documents == len(rows)
    assert facts.num_text_bytes == sum(len(row["text"].encode()) for row in rows)
    return facts, {row["id"]: row["text"] for row in rows}


def test_files_come_in_the_order_of_a_hash_of_their_names(packages, tmp_path):
    names = [f"a{number}.py" for number in range(20)]
    packages({name: f"{name}_is_a_long_name_of_a_variable = 1\n" for name in names})
    _, found = written("python", tmp_path)
    assert list(found) == sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def test_what_is_no_text_is_counted_and_left_out(packages, tmp_path):
    packages(
        {
            "good.py": "x = 'a variable of this file'\n",
            "latin.py": b"name = 'caf\xe9 is not in utf-8'\n",
            "blank.py": " \n",
            "none.py": "",
            "large.py": "x" * 200_001,
            "other.txt": "no Python\n",
        }
    )
    facts, found = written("python", tmp_path)
    assert set(found) == {"good.py"}
    assert (facts.num_unreadable, facts.num_known) == (4, 0)


@pytest.mark.parametrize(("num_other", "is_kept"), [(0, False), (19, False), (21, True)])
def test_file_of_which_most_is_known_is_left_out(packages, tmp_path, num_other, is_kept):
    other = [line.replace("value", "other") for line in LINES]
    second = [*other[:num_other], *(f"    {line}" for line in LINES[num_other:])]
    first, copy = sorted(("a.py", "b.py"), key=lambda name: hashlib.sha256(name.encode()).digest())
    # Short lines are in all files, and say nothing.
    packages({first: "\n".join(LINES), copy: "\n".join(["return x", *second])})
    facts, found = written("python", tmp_path)
    assert (copy in found) is is_kept and facts.num_known == (not is_kept)


def test_prose_is_the_longer_docstrings(packages, tmp_path):
    long = (
        "This sentence is long enough to be a docstring that says something to its reader, is it?"
    )
    source = f'"""{long}"""\n\ndef f():\n    """Short."""\n\nclass A:\n    """{long[::-1]}"""\n'
    packages({"a.py": source, "b.py": "def broken(:\n", "c.py": "x = 1\n"})
    facts, found = written("prose", tmp_path)
    assert found == {"a.py": f"{long}\n\n{long[::-1]}"}
    assert facts.num_unreadable == 2


def lines_of(kind, number, letters):
    """JSONL lines of equal length; the names of two kinds differ."""
    return [
        json.dumps({"id": f"{kind}/{n:03d}", "text": "x" * letters}).encode() + b"\n"
        for n in range(number)
    ]


def test_mixed_text_has_as_much_of_each_kind(tmp_path):
    kinds = {"a": lines_of("a", 60, 10), "b": lines_of("b", 60, 30), "c": lines_of("c", 20, 20)}
    taken = list(prepared._in_turns([io.BytesIO(b"".join(lines)) for lines in kinds.values()]))
    total = [sum(len(line) for line in taken if line in lines) for lines in kinds.values()]
    # The third is used up, and ends it; no kind is more than a document ahead.
    assert total[2] == sum(map(len, kinds["c"]))
    assert max(total) - min(total) <= len(kinds["b"][0])


def test_mixed_text_takes_a_file_once(tmp_path):
    files = [io.BytesIO(b"".join(lines_of("same", 9, letters))) for letters in (10, 10)]
    names = [json.loads(line)["id"] for line in prepared._in_turns(files)]
    assert names == [f"same/{n:03d}" for n in range(9)]


def test_few_documents_have_the_held_out_ones_of_all(monkeypatch):
    lines = [json.dumps({"id": n, "text": f"document {n:04d}"}).encode() for n in range(2000)]
    monkeypatch.setattr(prepared, "FEW_BYTES", 1300)
    kept = [json.loads(line)["text"] for line in prepared._few(lines)]
    held_out = [text for text in kept if split(text) == "validation"]
    assert held_out == [text for n in range(2000) if split(text := f"document {n:04d}") != "train"]
    assert 20 < len(held_out) < 60
    # Of 13 bytes each.
    assert len(kept) - len(held_out) == 100


def split(text):
    return split_of(text, held_out_fraction=prepared.HELD_OUT_FRACTION, test_fraction=0)


def test_few_documents_are_collected_where_nothing_is_there_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "WORK", tmp_path / "new")

    def write(kind, path):
        sha256 = write_jsonl(path, [("a", "text")])
        return text.TextFacts(
            kind=kind,
            num_documents=1,
            num_text_bytes=4,
            num_known=0,
            num_unreadable=0,
            sha256=sha256,
        )

    monkeypatch.setattr(prepared, "write_text", write)
    corpus = prepared._corpus("few", Console(file=io.StringIO()))
    assert corpus.read_text() == '{"id": "a", "text": "text"}\n'
    facts = json.loads(corpus.with_suffix(".json").read_text())
    assert [part["kind"] for part in facts["parts"]] == ["python"]
