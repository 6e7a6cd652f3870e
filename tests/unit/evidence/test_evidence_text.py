"""The texts of the evidence: what is taken from packages, and what is left out."""

import hashlib
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

from evidence import prepared, text  # noqa: E402

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


def test_mixed_text_has_as_much_of_each_kind(tmp_path):
    sizes = {"python": 10, "prose": 30, "cpp": 20}
    places = []
    for kind, size in sizes.items():
        places.append(tmp_path / kind)
        # 12 lines of 10 bytes, 30 of 30 and 20 of 20.
        places[-1].write_bytes(b"".join(b"%*d\n" % (size - 1, n) for n in range(size)))
    places[0].write_bytes(places[0].read_bytes() * 6)
    files = [place.open("rb") for place in places]
    taken = list(prepared._in_turns(files))
    total = {size: sum(len(line) for line in taken if len(line) == size) for size in (10, 20, 30)}
    # C++ has 400 bytes, and ends it; no kind is more than a document ahead.
    assert total[20] == 400 and max(total.values()) - min(total.values()) <= 30
    for file in files:
        file.close()
