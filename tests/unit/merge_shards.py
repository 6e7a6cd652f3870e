"""Prepared folders to merge, and ways to spoil them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.text.split import split_of

TEXTS = [f"document {number}\n" + "    some text </s>\n" * (number % 7) for number in range(240)]
FRACTIONS = {"held_out_fraction": 0.1, "test_fraction": 0.2}
TRAINED_ON = next(
    text
    for text in TEXTS
    if split_of(text, held_out_fraction=0.1, test_fraction=0.2) == "train" and len(text) > 50
)


def write_jsonl(path: Path, texts: list[str], key: str = "text") -> Path:
    lines = [json.dumps({key: text}) + "\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_parts(folder: Path, number: int) -> list[Path]:
    """The texts in so many files of different sizes, with an empty text in each."""
    cuts = [0, *(len(TEXTS) * part**2 // number**2 for part in range(1, number + 1))]
    return [
        write_jsonl(folder / f"part{part}.jsonl", [*TEXTS[cuts[part] : cuts[part + 1]], ""])
        for part in range(number)
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def edit(manifest: Path, change: Callable[[dict], None]) -> None:
    values = json.loads(manifest.read_text())
    change(values)
    manifest.write_text(json.dumps(values))


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 0xFF]))


@pytest.fixture
def shards(tokenizer_model: Path, tmp_path: Path) -> list[Path]:
    """Two prepared folders with all three splits."""
    folders = []
    for part in write_parts(tmp_path, 2):
        prepare([part], tokenizer_model, tmp_path / part.stem, workers=1, **FRACTIONS)
        folders.append(tmp_path / part.stem)
    return folders
