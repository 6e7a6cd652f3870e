"""Prepared text against Megatron's own tokenizers and writer, token for token."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hugging_face_tokenizers import build_hugging_face
from megatron.core.datasets.indexed_dataset import (  # type: ignore[import-untyped, unused-ignore]
    DType,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)
from megatron.core.tokenizers import MegatronTokenizer

from tst_megatron.data.prepare import prepare
from tst_megatron.data.split import split_of
from tst_megatron.data.train_tokenizer import train_sentencepiece

TEXTS = [
    Path(module.__file__).read_text(encoding="utf-8") + "naïve 中文\t\x00 end"
    for module in (json, sys.modules["pathlib"], sys.modules["inspect"], sys.modules["typing"])
] + [f"text {number}\n" * number for number in range(1, 60)]


@pytest.fixture(params=["HuggingFace", "HuggingFace with BOS", "SentencePiece"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tokenizer of each kind."""
    if request.param == "SentencePiece":
        train_sentencepiece(TEXTS, tmp_path / "own.model", vocab_size=700)
        return tmp_path / "own.model"
    single = None if request.param == "HuggingFace" else "<|begin|> $A"
    return build_hugging_face(tmp_path / "own", TEXTS, single=single)


def write_as_megatron(prefix: Path, tokenizer: Path, texts: list[str]) -> None:
    """What Megatron-LM's tools/preprocess_data.py does with --append-eod."""
    library = "huggingface" if tokenizer.is_dir() else "sentencepiece"
    theirs = MegatronTokenizer.from_pretrained(
        tokenizer_path=str(tokenizer), metadata_path={"library": library}
    )
    dtype = DType.optimal_dtype(theirs.vocab_size)
    builder = IndexedDatasetBuilder(get_bin_path(str(prefix)), dtype=dtype)
    for text in texts:
        ids = [*theirs.tokenize(text), theirs.eod]
        builder.add_document(np.array(ids), [len(ids)])
    builder.finalize(get_idx_path(str(prefix)))


def test_files_are_those_of_megatrons_tokenizer_and_writer(tokenizer: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    prepare([source], tokenizer, tmp_path / "ours", held_out_fraction=0.2, workers=1)
    for split in ("train", "validation"):
        texts = [t for t in TEXTS if split_of(t, held_out_fraction=0.2, test_fraction=0.0) == split]
        assert texts
        write_as_megatron(tmp_path / split, tokenizer, texts)
        for end in ("bin", "idx"):
            theirs = (tmp_path / f"{split}.{end}").read_bytes()
            assert (tmp_path / "ours" / f"{split}.{end}").read_bytes() == theirs
