"""Prepared folders whose hashes are right and whose meaning is not."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from merge_shards import TEXTS, edit, write_jsonl

from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.tokens.fingerprint import fingerprint
from tst_megatron.data.tokens.format import bin_path, idx_path
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.tokens.writer import IndexedWriter
from tst_megatron.system.files import file_sha256

FRACTIONS = {"held_out_fraction": 0.1, "test_fraction": 0.1}


@pytest.fixture(scope="session")
def whole_once(tokenizer_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all three splits and its text beside it, never changed."""
    folder = tmp_path_factory.mktemp("whole")
    source = write_jsonl(folder / "source.jsonl", [*TEXTS, ""])
    prepare([source], tokenizer_model, folder / "own", workers=1, **FRACTIONS)
    return folder / "own"


@pytest.fixture(scope="session")
def with_bos_once(hugging_face: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same text by a Hugging Face tokenizer with BOS."""
    folder = tmp_path_factory.mktemp("with-bos")
    source = write_jsonl(folder / "source.jsonl", TEXTS)
    prepare([source], hugging_face, folder / "own", workers=1, **FRACTIONS)
    return folder / "own"


def documents_of(folder: Path, name: str) -> list[list[int]]:
    reader = IndexedReader(folder / name)
    return [reader.tokens(number).tolist() for number in range(reader.num_documents)]


def forge(folder: Path, name: str, documents: list[list[int]], vocab_size: int = 60_000) -> None:
    """Write other documents into a split, and say in the manifest that they belong there."""
    with IndexedWriter(folder / name, vocab_size=vocab_size) as writer:
        for document in documents:
            writer.add_document(document)
        writer.finish(allow_empty=True)
    record(folder, name)


def record(folder: Path, name: str) -> None:
    """Let the manifest describe the files that are there."""
    files = {"bin": bin_path(folder / name), "idx": idx_path(folder / name)}
    values = {f"{end}_sha256": file_sha256(path) for end, path in files.items()}
    values |= {f"{end}_fingerprint": fingerprint(path) for end, path in files.items()}
    edit(folder / "manifest.json", lambda manifest: manifest["splits"][name].update(values))
    lengths = [len(document) for document in documents_of(folder, name)]
    counts = Counter(token for each in documents_of(folder, name) for token in each)
    shares = [number / sum(lengths) for number in counts.values()]
    entropy = -sum(share * math.log(share) for share in shares)

    def change(manifest: dict) -> None:
        manifest["splits"][name].update(documents=len(lengths), tokens=sum(lengths))
        if name == "train":
            manifest["unigram_entropy_nats"] = entropy

    edit(folder / "manifest.json", change)


def recorded(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())
