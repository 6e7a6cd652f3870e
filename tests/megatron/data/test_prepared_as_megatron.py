"""Prepared text against Megatron's own tokenizers and writer, token for token."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hugging_face_tokenizers import build_hugging_face
from megatron.core.datasets.indexed_dataset import (  # type: ignore[import-untyped, unused-ignore]
    DType,
    IndexedDataset,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)
from megatron.core.tokenizers import MegatronTokenizer
from streams import make_plan, open_stream

from tst_megatron.data.adopt.adopt import adopt
from tst_megatron.data.manifest import Manifest
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.stream.corpora import Corpus
from tst_megatron.data.stream.stream import HeldOutPositions
from tst_megatron.data.text.split import split_of
from tst_megatron.data.tokenizer.train import train_sentencepiece

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
        ids = list(theirs.tokenize(text))
        # A text without tokens is listed without a sequence.
        ids += [theirs.eod] if ids else []
        builder.add_document(np.array(ids), [len(ids)] if ids else [])
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


def batches(manifest: Manifest) -> list[list[int]]:
    """What all steps and an evaluation read."""
    folder = manifest.path.parent
    corpora = [Corpus(folder=folder, weight=1.0, manifest=manifest, cache=folder / "index")]
    plan = make_plan(corpora, [(4, 4), (1, 1.0)], num_steps=12, length=64, batch=4, max_epochs=2)
    stream = open_stream(plan, corpora)
    held_out = HeldOutPositions([manifest.validation], [1.0], num_samples=5, num_latent_positions=9)
    samples = [stream.tokens(sample).tolist() for sample in range(plan.num_samples)]
    return samples + [held_out.tokens(sample).tolist() for sample in range(5)]


def test_adopted_pair_of_megatrons_tool_gives_the_batches_of_prepare_and_is_a_pair_of_megatrons(
    tokenizer: Path, tmp_path: Path
) -> None:
    texts = [*TEXTS[:9], "", *TEXTS[9:]]
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ours = prepare([source], tokenizer, tmp_path / "ours", held_out_fraction=0.2, workers=1)
    write_as_megatron(tmp_path / "theirs", tokenizer, texts)
    adopted = adopt(
        tmp_path / "theirs", tokenizer, tmp_path / "adopted", held_out_fraction=0.2, workers=1
    )
    assert batches(adopted) == batches(ours)
    assert adopted.left_out == ours.left_out
    for name in ("train", "validation"):
        dataset, reader = IndexedDataset(str(tmp_path / "adopted" / name)), ours.splits()[name]
        expected = [reader.reader().tokens(number).tolist() for number in range(reader.documents)]
        assert [dataset[number].tolist() for number in range(len(dataset))] == expected
