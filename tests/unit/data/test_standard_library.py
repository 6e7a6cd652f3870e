import hashlib
import json
from pathlib import Path

import pytest

from tst_megatron.data.text.standard_library import (
    write_python_corpus,
    write_standard_library_corpus,
)


def make_library(folder: Path, *, num_files: int = 120) -> Path:
    """A small library with one file of every kind that is left out."""
    for number in range(num_files):
        write(folder / "package" / f"m{number:03}.py", f"value = {number}\n")
    write(folder / "package" / "tests" / "test_m.py", "assert True\n")
    write(folder / "site-packages" / "foreign.py", "foreign = 1\n")
    write(folder / "_sysconfigdata__linux_.py", "prefix = '/somewhere'\n")
    write(folder / "config-3.12" / "python-config.py", "prefix = '/somewhere'\n")
    write(folder / "copy.py", "value = 7\n")
    write(folder / "empty.py", "\n")
    (folder / "latin.py").write_bytes("caf\u00e9 = 1\n".encode("latin-1"))
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def read(path: Path) -> dict[str, str]:
    documents = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {document["id"]: document["text"] for document in documents}


def test_corpus_holds_the_running_library(tmp_path: Path) -> None:
    facts = write_standard_library_corpus(tmp_path / "corpus.jsonl")
    documents = read(facts.path)
    assert facts.num_documents == len(documents) > 100
    assert list(documents) == sorted(documents, key=lambda name: name.split("/"))
    assert documents["json/__init__.py"] == Path(json.__file__).read_text(encoding="utf-8")
    assert facts.num_text_bytes == sum(len(text.encode()) for text in documents.values())
    assert facts.sha256 == hashlib.sha256(facts.path.read_bytes()).hexdigest()


def test_corpus_is_the_same_file_when_written_twice(tmp_path: Path) -> None:
    library = make_library(tmp_path / "lib")
    first = write_standard_library_corpus(tmp_path / "a.jsonl", library=library)
    second = write_standard_library_corpus(tmp_path / "b.jsonl", library=library)
    assert first.sha256 == second.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "lib"]


def test_corpus_leaves_out_and_counts_unusable_files(tmp_path: Path) -> None:
    library = make_library(tmp_path / "lib")
    facts = write_standard_library_corpus(tmp_path / "a.jsonl", library=library)
    assert (facts.num_not_utf8, facts.num_empty, facts.num_duplicates) == (1, 1, 1)
    names = set(read(facts.path))
    assert names.isdisjoint({"site-packages/foreign.py", "empty.py", "latin.py"})
    assert not any("config" in name for name in names)
    assert facts.num_documents == len(names) == 121


@pytest.mark.parametrize(("num_bytes", "includes_tests"), [(7_900_000, True), (8_000_000, False)])
def test_corpus_takes_tests_only_when_the_rest_is_small(
    tmp_path: Path, num_bytes: int, includes_tests: bool
) -> None:
    library = make_library(tmp_path / "lib")
    write(library / "large.py", "#" * num_bytes)
    facts = write_standard_library_corpus(tmp_path / "a.jsonl", library=library)
    assert facts.includes_tests is includes_tests
    assert ("package/tests/test_m.py" in read(facts.path)) is includes_tests


def test_corpus_refuses_a_library_without_sources(tmp_path: Path) -> None:
    library = make_library(tmp_path / "lib", num_files=3)
    message = r"built-in corpus: 7 Python source files in .*lib, at least 100.*your own JSONL file"
    with pytest.raises(RuntimeError, match=message):
        write_standard_library_corpus(tmp_path / "a.jsonl", library=library)
    assert not (tmp_path / "a.jsonl").exists()


def test_python_corpus_adds_packages_until_it_is_large_enough(tmp_path: Path) -> None:
    library = make_library(tmp_path / "lib")
    packages = tmp_path / "packages"
    for number in range(200):
        write(packages / "p" / f"m{number}.py", f"# {number}\n" + "x = 1\n" * 100)
    write(packages / "p" / "large.py", "y = 2\n" * 50_000)
    small, large, everything = (
        write_python_corpus(
            tmp_path / f"{num_bytes}.jsonl",
            num_bytes=num_bytes,
            library=library,
            packages=packages,
        )
        for num_bytes in (20_000, 60_000, 10**9)
    )
    names = [set(read(facts.path)) for facts in (small, large, everything)]
    assert names[0] < names[1] < names[2]
    assert {name for name in names[0] if not name.startswith("site-packages/")} == {
        name for name in names[2] if not name.startswith("site-packages/")
    }
    assert 20_000 <= small.num_text_bytes < 25_000 and 60_000 <= large.num_text_bytes < 65_000
    assert "site-packages/p/large.py" not in names[2] and "site-packages/p/m7.py" in names[2]
    # No test of the library, and those of packages as they come.
    assert "package/tests/test_m.py" not in names[2]
    again = write_python_corpus(
        tmp_path / "again.jsonl", num_bytes=60_000, library=library, packages=packages
    )
    assert again.sha256 == large.sha256
