"""A folder of text to prepare, and the parts that are done of it."""

from pathlib import Path

import pytest
from merge_shards import write_jsonl

NUM_FILES = 12
OPTIONS = {"held_out_fraction": 0.1, "workers": 1}


def write_folder(folder: Path, texts: list[str]) -> Path:
    """Files of text, a fifth of the texts in each."""
    folder.mkdir()
    for number in range(NUM_FILES):
        some = [f"{number}\n{text}" for text in texts[number % 5 :: 5]]
        write_jsonl(folder / f"{number:02d}.jsonl", some)
    return folder


@pytest.fixture
def texts(training_texts: list[str], tmp_path: Path) -> Path:
    """Files of text that are encoded in a moment."""
    return write_folder(tmp_path / "text", [text[:900] for text in training_texts])


def parts_of(output: Path) -> dict[Path, int]:
    """The parts that are done, and when each was."""
    files = output.with_name(f"{output.name}.parts").glob("[!.]*/part.json")
    return {file.parent: file.stat().st_mtime_ns for file in files}
