"""A shard of a text, `data prepare --shard I/N`, and the text that the shards of it make."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from merge_shards import FRACTIONS, TEXTS, edit, write_jsonl
from typer.testing import CliRunner

from tst_megatron.cli.app import app
from tst_megatron.data.manifest import load_manifest
from tst_megatron.data.prepare.merge import merge
from tst_megatron.data.prepare.parts import begin_parts
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.text.inputs import Input, Shard, files_of_shard, shard_named
from tst_megatron.data.verify.source_text import compare_with_inputs
from tst_megatron.data.verify.split_shares import share_notes

NUM_SHARDS = 3
OPTIONS = {"workers": 1, **FRACTIONS}


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
    prepare([text], tokenizer, output, shard=Shard(number, of), **OPTIONS)
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
    whole = prepare([text], tokenizer_model, tmp_path / "whole", **OPTIONS)
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


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([1], r"shard1: shards 0, 2 of the 3 of its text missing\. Name all"),
        ([0, 2], r"shard0: shard 1 of the 3 of its text missing"),
        ([2, 0, 1], r"shard2: the shards of its text come as 2, 0, 1\. Name them in their order"),
    ],
)
def test_shards_that_are_not_a_text_in_order_are_refused(shards, tmp_path, given, problem):
    with pytest.raises(ValueError, match=problem):
        merge([shards[number] for number in given], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_text_that_is_there_twice_is_refused(text, shards, tokenizer_model, tmp_path):
    merge(shards, tmp_path / "merged")
    with pytest.raises(ValueError, match=r"shard 1 of its text given more than once"):
        merge([tmp_path / "merged", shards[1]], tmp_path / "twice")
    halves = [text.with_name(f"half{number}") for number in range(2)]
    for number, half in enumerate(halves):
        prepare([text], tokenizer_model, half, shard=Shard(number, 2), **OPTIONS)
    problem = rf"is one of 3 shards of a text, and {halves[0]} is one of 2\. Each text is merged"
    with pytest.raises(ValueError, match=problem):
        merge([*shards, *halves], tmp_path / "twice")


def test_shard_that_cannot_be_read_is_not_called_missing(shards, tmp_path):
    with pytest.raises(ValueError, match="no such manifest") as caught:
        merge([shards[0], tmp_path / "misspelt", shards[2]], tmp_path / "merged")
    assert len(str(caught.value).splitlines()) == 1


def test_shard_of_a_text_that_has_a_file_more_is_not_of_the_same_text(
    text, shards, tokenizer_model, tmp_path
):
    write_jsonl(text / "a" / "9.jsonl", ["one more"])
    problem = r"shard2: was prepared differently; .*shard: 2/3 of a text with other files \(names"
    with pytest.raises(ValueError, match=problem):
        prepare_shard(text, tokenizer_model, 2)
    with pytest.raises(ValueError, match=r"shard2: was prepared differently; .*shard: 2/3 there, "):
        prepare([text], tokenizer_model, shards[2], shard=Shard(1, 4), **OPTIONS)
    compared = compare_with_inputs(load_manifest(shards[2]), [text], sample=1)
    assert "is shard 2/3 of a text with other files than these" in compared.problems[0]
    for file in shards[2].iterdir():
        file.unlink()
    prepare_shard(text, tokenizer_model, 2)
    with pytest.raises(ValueError) as caught:
        merge(shards, tmp_path / "merged")
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{shards[0]}: shard 2 of the 3 of its text missing. ")
    assert second.startswith(f"{shards[2]}: shards 0, 1 of the 3 of its text missing. ")
    assert "when the text had other files (names or sizes)" in first


def test_shard_is_compared_with_its_own_files_too(text, shards, tmp_path):
    manifest = load_manifest(shards[1])
    own = [text / entry["name"] for entry in manifest.recipe["inputs"]]
    assert {file.parent.name for file in own} == {"a", "b"}
    compared = compare_with_inputs(manifest, own, sample=1)
    assert compared.problems == [] and compared.num_compared > 0
    assert share_notes(manifest)[-1] == "this is shard 1/3 of a text, to merge."


def test_text_that_prepare_wrote_is_no_text(text, shards, tokenizer_model, tmp_path):
    unfinished = tmp_path / "shard9.parts" / "joined"
    begin_parts(unfinished.parent, {})
    unfinished.mkdir()
    for place in (shards[0], unfinished):
        write_jsonl(place / "rejected.jsonl", ["what was no document"])
        with pytest.raises(ValueError, match=r"was made by `data prepare`, and files in it"):
            prepare([f"{tmp_path}/**/*.jsonl"], tokenizer_model, tmp_path / "output")
        (place / "rejected.jsonl").unlink()


def test_merged_shards_are_merged_with_another_text(shards, tokenizer_model, tmp_path):
    merge(shards, tmp_path / "merged")
    write_jsonl(tmp_path / "other.jsonl", [f"other\n{text}" for text in TEXTS])
    prepare([tmp_path / "other.jsonl"], tokenizer_model, tmp_path / "other", **FRACTIONS)
    both = merge([tmp_path / "other", tmp_path / "merged"], tmp_path / "both")
    flat = merge([tmp_path / "other", *shards], tmp_path / "flat")
    assert both.recipe == flat.recipe and both.train.bin_sha256 == flat.train.bin_sha256
    # Were a shard missing in it, it would be told.
    edit(tmp_path / "merged" / "manifest.json", lambda values: values["recipe"]["shards"].pop(1))
    with pytest.raises(ValueError, match="merged: shard 1 of the 3 of its text missing"):
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
