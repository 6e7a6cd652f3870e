"""Write the built-in corpora: sources of Python's standard library, and of installed packages too.

Real text without a download: tutorials, tests and the first steps of a new user read it. That of
the library is small (about 12 MB) and depends on the Python version, so it serves to exercise the
code. With the packages it is long enough for two arms of a toy that read no text twice.
"""

import hashlib
import platform
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tst_megatron.data.text.write import write_jsonl

MIN_FILES = 100
MIN_BYTES_WITHOUT_TESTS = 8_000_000
_MOST_BYTES_OF_A_FILE = 200_000
"""Larger source files are mostly written by programs."""

_PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
# Written when the interpreter was compiled: they hold the paths of that machine.
_BUILD_PREFIXES = ("_sysconfigdata", "config-")


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusFacts:
    """Report of a corpus that was written: what it holds and what was left out."""

    path: Path
    num_documents: int
    num_text_bytes: int
    """UTF-8 bytes of the documents, without the JSON around them."""
    num_not_utf8: int
    num_duplicates: int
    num_empty: int
    includes_tests: bool
    """True where tests are among the sources: the library's own, where they were needed to reach
    `MIN_BYTES_WITHOUT_TESTS`, or those of packages."""
    python_version: str
    sha256: str
    """Of the JSONL file."""


def write_standard_library_corpus(path: Path, *, library: Path | None = None) -> CorpusFacts:
    """Write the standard library's sources as JSONL, one document per file.

    A line is `{"id": path inside the library, "text": source}`, sorted by id. Installed packages,
    files written when Python was compiled, files that are not UTF-8, empty files and exact
    duplicates are left out; the library's tests too, where at least `MIN_BYTES_WITHOUT_TESTS` bytes
    remain without them. The same installation always gives the same file.

    Args:
        path: the JSONL file; written beside and renamed, so an existing file is replaced at once.
        library: folder to read instead of the running interpreter's standard library.

    Raises:
        RuntimeError: fewer than `MIN_FILES` source files were found.
    """
    library = Path(sysconfig.get_paths()["stdlib"]) if library is None else library
    files = _source_files(library)
    if len(files) < MIN_FILES:
        raise RuntimeError(
            f"built-in corpus: {len(files)} Python source files in {library}, at least {MIN_FILES} "
            "are needed (this Python keeps its library in an archive or without sources). "
            'Give your own JSONL file with one {"text": ...} per line instead.'
        )
    without_tests = [name for name in files if not _TEST_FOLDERS.intersection(name.parts)]
    num_bytes = sum((library / name).stat().st_size for name in without_tests)
    includes_tests = num_bytes < MIN_BYTES_WITHOUT_TESTS
    chosen = files if includes_tests else without_tests
    documents, skipped = _read_documents({name: library / name for name in chosen})
    return _write(path, documents, skipped, includes_tests=includes_tests)


def _write(
    path: Path, documents: dict[str, str], skipped: Counter[str], *, includes_tests: bool
) -> CorpusFacts:
    sha256 = write_jsonl(path, documents.items())
    return CorpusFacts(
        path=path.absolute(),
        num_documents=len(documents),
        num_text_bytes=sum(len(text.encode()) for text in documents.values()),
        num_not_utf8=skipped["not utf-8"],
        num_duplicates=skipped["duplicate"],
        num_empty=skipped["empty"],
        includes_tests=includes_tests,
        python_version=platform.python_version(),
        sha256=sha256,
    )


def write_python_corpus(
    path: Path, *, num_bytes: int, library: Path | None = None, packages: Path | None = None
) -> CorpusFacts:
    """Write the sources of the standard library and of installed packages, to a given size.

    As `write_standard_library_corpus`, with files of the packages added in the order of a hash of
    their names, so that no package comes first, until the corpus is large enough. Names of packages
    begin with `site-packages/`. The same installation always gives the same file.

    Args:
        path: the JSONL file; written beside and renamed.
        num_bytes: of source files to take, at least; all where there are fewer.
        library: folder to read instead of the running interpreter's standard library.
        packages: folder to read instead of the running interpreter's installed packages.
    """
    library = Path(sysconfig.get_paths()["stdlib"]) if library is None else library
    packages = Path(sysconfig.get_paths()["purelib"]) if packages is None else packages
    files = {
        name: library / name
        for name in _source_files(library)
        if not _TEST_FOLDERS.intersection(name.parts)
    }
    total = sum(file.stat().st_size for file in files.values())
    names = [
        PurePosixPath(file.relative_to(packages).as_posix()) for file in packages.rglob("*.py")
    ]
    for name in sorted(names, key=lambda name: hashlib.sha256(str(name).encode()).digest()):
        file = packages / name
        if total >= num_bytes:
            break
        if file.is_file() and 0 < file.stat().st_size <= _MOST_BYTES_OF_A_FILE:
            files["site-packages" / name] = file
            total += file.stat().st_size
    documents, skipped = _read_documents(dict(sorted(files.items())))
    return _write(path, documents, skipped, includes_tests=True)


def _source_files(library: Path) -> list[PurePosixPath]:
    names = (PurePosixPath(file.relative_to(library).as_posix()) for file in library.rglob("*.py"))
    return sorted(name for name in names if not _is_foreign(name) and (library / name).is_file())


def _is_foreign(name: PurePosixPath) -> bool:
    is_package = not _PACKAGE_FOLDERS.isdisjoint(name.parts)
    return is_package or any(part.startswith(_BUILD_PREFIXES) for part in name.parts)


def _read_documents(files: dict[PurePosixPath, Path]) -> tuple[dict[str, str], Counter[str]]:
    """Return the text of each file by its name, without what is left out, and counts of that."""
    documents: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    seen: set[str] = set()
    for name, file in files.items():
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            skipped["not utf-8"] += 1
            continue
        if not text.strip():
            skipped["empty"] += 1
        elif text in seen:
            skipped["duplicate"] += 1
        else:
            seen.add(text)
            documents[str(name)] = text
    return documents, skipped
