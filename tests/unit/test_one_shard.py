"""A shard of a text, `data prepare --shard I/N`, and the text that the shards of it make."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from merge_shards import FRACTIONS, TEXTS, edit, write_jsonl
from typer.testing import CliRunner

from tst_megatron.cli import app
from tst_megatron.data.against import compare_with_inputs
from tst_megatron.data.inputs import Input, Shard, files_of_shard, shard_named
from tst_megatron.data.manifest import load_manifest
from tst_megatron.data.merge import merge
from tst_megatron.data.prepare import prepare

NUM_SHARDS = 3


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Seven files of different sizes in two folders."""
    for number in range(7):
        folder = tmp_path / "text" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / f"{number}.jsonl", TEXTS[number**2 * 4 : (number + 1) ** 2 * 4])
    return tmp_path / "text"


def prepare_shard(text: Path, tokenizer: Path, number: int, of: int = NUM_SHARDS) -> Path:
    output = text.with_name(f"shard{number}")
    prepare([text], tokenizer, output, workers=1, shard=Shard(number, of), **FRACTIONS)
    return output


@pytest.fixture
def shards(text: Path, tokenizer_model: Path) -> list[Path]:
    return [prepare_shard(text, tokenizer_model, number) for number in range(NUM_SHARDS)]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60), st.data())
def test_shards_are_the_files_in_their_order_and_alike_in_size(sizes, data):
    files = [Input(Path(str(n)), str(n), size, 0) for n, size in enumerate(sizes)]
    of = data.draw(st.integers(1, len(files)))
    shards = [files_of_shard(files, Shard(number, of)) for number in range(of)]
    assert all(shards) and [file for shard in shards for file in shard] == files
    fair = sum(sizes) / of + max(sizes)
    assert all(sum(file.num_bytes for file in shard) <= fair for shard in shards)


def test_shards_together_are_the_whole_text(text, shards, tokenizer_model, tmp_path):
    whole = prepare([text], tokenizer_model, tmp_path / "whole", workers=1, **FRACTIONS)
    merged = merge(shards, tmp_path / "merged")
    assert merged.splits().keys() == whole.splits().keys()
    for name, split in whole.splits().items():
        assert merged.splits()[name].bin_sha256 == split.bin_sha256
        assert merged.splits()[name].idx_sha256 == split.idx_sha256
    assert merged.recipe["inputs"] == whole.recipe["inputs"] and len(whole.recipe["inputs"]) == 7
    # The folder is all that it takes to compare, a shard as the whole.
    for manifest in (merged, *map(load_manifest, shards)):
        compared = compare_with_inputs(manifest, [text], sample=1)
        documents = sum(split.documents for split in manifest.splits().values())
        assert compared.problems == [] and compared.num_compared == documents > 0


def test_shard_may_lack_a_split(text, tokenizer_model):
    manifest = load_manifest(prepare_shard(text, tokenizer_model, 0, of=7))
    assert manifest.empty_splits() and manifest.train.documents


def test_missing_shards_are_named(shards, tmp_path):
    with pytest.raises(ValueError, match=r"shards 0 and 2 of the 3 of a text are missing"):
        merge(shards[1:2], tmp_path / "merged")
    with pytest.raises(ValueError, match=r"shard 1 of the 3 of a text is missing"):
        merge([shards[0], shards[2]], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_shard_of_a_text_that_has_a_file_more_is_not_of_the_same_text(
    text, shards, tokenizer_model, tmp_path
):
    write_jsonl(text / "a" / "9.jsonl", ["one more"])
    with pytest.raises(ValueError, match=r"shard2: was prepared differently; .*shard: "):
        prepare_shard(text, tokenizer_model, 2)
    for file in [*shards[2].iterdir()]:
        file.unlink()
    prepare_shard(text, tokenizer_model, 2)
    with pytest.raises(ValueError) as caught:
        merge(shards, tmp_path / "merged")
    problems = str(caught.value).splitlines()
    assert [problem.partition(": ")[0] for problem in problems] == [
        str(shards[0]),
        str(shards[2]),
    ]
    assert "shard 2 of the 3 of a text is missing" in problems[0]
    assert "shards 0 and 1 of the 3 of a text are missing" in problems[1]
    assert all("Files were added, removed or changed" in problem for problem in problems)


def test_merged_shards_are_merged_with_another_text(shards, tokenizer_model, tmp_path):
    merge(shards, tmp_path / "merged")
    write_jsonl(tmp_path / "other.jsonl", [f"other\n{text}" for text in TEXTS])
    prepare([tmp_path / "other.jsonl"], tokenizer_model, tmp_path / "other", **FRACTIONS)
    both = merge([tmp_path / "other", tmp_path / "merged"], tmp_path / "both")
    flat = merge([tmp_path / "other", *shards], tmp_path / "flat")
    assert both.recipe == flat.recipe and both.train.bin_sha256 == flat.train.bin_sha256
    # Were a shard missing in it, it would be told.
    edit(tmp_path / "merged" / "manifest.json", lambda values: values["recipe"]["shards"].pop(1))
    with pytest.raises(ValueError, match="merged: shard 1 of the 3 of a text is missing"):
        merge([tmp_path / "other", tmp_path / "merged"], tmp_path / "again")


@pytest.mark.parametrize(
    ("shard", "problem"),
    [
        (Shard(3, 3), r"--shard 3/3: counts from 0, so the last is 2/3\."),
        (Shard(-1, 3), r"--shard -1/3: counts from 0"),
        (Shard(0, 0), r"--shard 0/0: there is at least one shard\. Try 0/1\."),
        (Shard(0, 8), r"--shard 0/8: the text has 7 files, each in one shard\. .* at most 7"),
    ],
)
def test_shard_that_does_not_exist_is_refused(text, tokenizer_model, tmp_path, shard, problem):
    with pytest.raises(ValueError, match=problem):
        prepare([text], tokenizer_model, tmp_path / "output", shard=shard)
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_command_prepares_a_shard(text, tokenizer_model, shards, tmp_path):
    words = ["data", "prepare", str(text), "--workers", "1", "--shard", "1/3"]
    words += ["--held-out-fraction", "0.1", "--test-fraction", "0.2"]
    words += ["--tokenizer", str(tokenizer_model), "--output", str(tmp_path / "output")]
    assert CliRunner().invoke(app, words).exit_code == 0
    made, known = (folder / "manifest.json" for folder in (tmp_path / "output", shards[1]))
    assert made.read_bytes() == known.read_bytes()
    for wrong in ("1", "1/", "one/3", "1/3/5", ""):
        with pytest.raises(ValueError, match=rf"--shard {wrong}: give I/N, such as 0/100"):
            shard_named(wrong)
