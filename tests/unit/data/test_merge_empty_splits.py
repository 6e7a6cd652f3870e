"""Shards that lack a split or all documents."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merge_shards import FRACTIONS, TEXTS, TRAINED_ON, contents, write_jsonl

from tst_megatron.data.manifest import Manifest, load_manifest
from tst_megatron.data.prepare.merge import merge
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.stream.corpora import open_corpora
from tst_megatron.data.tokens.reader import IndexedReader

# A file without a document is left out only if that is asked for.
OPTIONS = {"workers": 1, "max_rejected_fraction": 0.01, **FRACTIONS}


def prepare_shard(model: Path, folder: Path, name: str, texts: list[str]) -> Manifest:
    source = write_jsonl(folder / f"{name}.jsonl", texts)
    output = folder / name
    return prepare([source], model, output, allow_empty_splits=True, **OPTIONS)


def test_shards_may_lack_a_split_or_all_documents(tokenizer_model: Path, tmp_path: Path) -> None:
    groups = [[TRAINED_ON], [], [text for text in TEXTS if text != TRAINED_ON], [TRAINED_ON + "!"]]
    names = ["a", "b", "c", "d"]
    shards = [
        prepare_shard(tokenizer_model, tmp_path, name, texts)
        for name, texts in zip(names, groups, strict=True)
    ]
    assert shards[0].empty_splits() == ["validation", "test"] and shards[0].train.tokens > 0
    assert shards[1].empty_splits() == ["train", "validation", "test"]
    assert math.copysign(1, shards[1].unigram_entropy_nats) == 1 and shards[2].empty_splits() == []
    assert (tmp_path / "a" / "validation.bin").read_bytes() == b""
    reader = IndexedReader(tmp_path / "a" / "validation")
    reader.check()
    assert (reader.num_documents, reader.num_tokens, len(reader.stretch(0, 9))) == (0, 0, 0)
    sources = [tmp_path / f"{name}.jsonl" for name in names]
    prepare(sources, tokenizer_model, tmp_path / "whole", **OPTIONS)
    merge([tmp_path / name for name in names], tmp_path / "merged")
    whole, merged = contents(tmp_path / "whole"), contents(tmp_path / "merged")
    del whole["manifest.json"], merged["manifest.json"]
    assert merged == whole


def test_several_shards_without_text_are_not_the_same_text(
    tokenizer_model: Path, tmp_path: Path
) -> None:
    for name, texts in (("a", []), ("b", []), ("c", TEXTS)):
        prepare_shard(tokenizer_model, tmp_path, name, texts)
    merged = merge([tmp_path / name for name in "abc"], tmp_path / "merged")
    assert merged.train == replace(
        load_manifest(tmp_path / "c").train, prefix=tmp_path / "merged" / "train"
    )


def test_split_that_is_empty_in_all_shards_is_refused(
    tokenizer_model: Path, tmp_path: Path
) -> None:
    for name, texts in (("a", [TRAINED_ON]), ("b", [])):
        prepare_shard(tokenizer_model, tmp_path, name, texts)
    message = "the 2 shards have 1 train and 0 validation and 0 test documents together"
    with pytest.raises(ValueError, match=message):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_shard_is_reused_as_a_shard_alone(tokenizer_model: Path, tmp_path: Path) -> None:
    prepare_shard(tokenizer_model, tmp_path, "a", [TRAINED_ON])
    assert prepare_shard(tokenizer_model, tmp_path, "a", [TRAINED_ON]).reused
    with pytest.raises(ValueError, match=r"give 1 train and 0 .*\(--allow-empty-splits\)"):
        prepare([tmp_path / "a.jsonl"], tokenizer_model, tmp_path / "a", **OPTIONS)


def test_training_refuses_a_shard_with_an_empty_split(
    tokenizer_model: Path, tmp_path: Path
) -> None:
    prepare_shard(tokenizer_model, tmp_path, "a", [TRAINED_ON])
    prepare_shard(tokenizer_model, tmp_path, "b", TEXTS)
    problems: list[str] = []
    assert open_corpora({tmp_path / "a": 1.0, tmp_path / "b": 1.0}, None, problems) == []
    assert problems == [
        f"data: {tmp_path / 'a'} is a shard without a validation or test document. Merge the "
        "shards first (`tst-megatron data merge`), and name the merged folder"
    ]


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(parts=st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_any_cut_of_a_text_merges_into_the_text(
    tokenizer_model: Path, tmp_path_factory: pytest.TempPathFactory, parts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    cuts = np.cumsum([0, *parts, len(TEXTS) - sum(parts)])
    names = [f"s{number}" for number in range(len(parts) + 1)]
    for number, name in enumerate(names):
        texts = TEXTS[cuts[number] : cuts[number + 1]]
        prepare_shard(tokenizer_model, folder, name, texts)
    sources = [folder / f"{name}.jsonl" for name in names]
    whole = prepare(sources, tokenizer_model, folder / "whole", **OPTIONS)
    merged = merge([folder / name for name in names], folder / "merged")
    for name, split in whole.splits().items():
        assert merged.splits()[name] == replace(split, prefix=folder / "merged" / name)
    assert merged.unigram_entropy_nats == whole.unigram_entropy_nats
