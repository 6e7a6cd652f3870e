"""Documents of the source text stand where they must in the token files."""

import shutil
import sys
from collections import Counter
from pathlib import Path

import click
import pytest
from forged_folders import documents_of, forge, whole_once, with_bos_once  # noqa: F401
from merge_shards import TEXTS, edit, write_jsonl
from rich.console import Console

from tst_megatron.cli.app import main
from tst_megatron.cli.views import prepared
from tst_megatron.data.manifest import load_manifest
from tst_megatron.data.prepare.merge import merge
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.tokenizer.load import load_tokenizer
from tst_megatron.data.verify import source_text
from tst_megatron.data.verify.source_text import compare_with_inputs, compare_with_texts


@pytest.fixture
def whole(whole_once: Path, tmp_path: Path) -> Path:  # noqa: F811
    shutil.copyfile(whole_once.parent / "source.jsonl", tmp_path / "source.jsonl")
    return Path(shutil.copytree(whole_once, tmp_path / "whole"))


def compared(folder: Path, texts: list[str] = TEXTS, sample: float = 1.0) -> source_text.Comparison:
    manifest = load_manifest(folder)
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    return compare_with_texts(manifest, tokenizer, texts, sample=sample)


@pytest.mark.parametrize("name", ["whole_once", "with_bos_once"])
def test_all_documents_are_those_of_the_text(request: pytest.FixtureRequest, name: str) -> None:
    folder = request.getfixturevalue(name)
    assert compared(folder) == source_text.Comparison(len(TEXTS), [])


def test_merged_shards_are_compared_with_all_their_files(
    shards: list[Path], tmp_path: Path
) -> None:
    manifest = merge(shards, tmp_path / "merged")
    parts = [tmp_path / f"part{number}.jsonl" for number in range(2)]
    assert compare_with_inputs(manifest, parts, sample=1.0) == source_text.Comparison(
        len(TEXTS), []
    )


def test_deduplicated_text_is_compared_without_its_copies(
    tokenizer_model: Path, tmp_path: Path
) -> None:
    # Copies in one shard are left out, those of other shards are there.
    sources = [
        write_jsonl(tmp_path / f"d{number}.jsonl", [f"{t} {number // 2}" for t in TEXTS] * 2)
        for number in range(3)
    ]
    write_jsonl(sources[2], [*(f"{t} 1" for t in TEXTS), f"{TEXTS[0]} 0"])
    options = {"workers": 1, "deduplicate": True, "held_out_fraction": 0.1}
    folders = [tmp_path / f"d{number}" for number in range(2)]
    for files, folder in zip((sources[:2], sources[2:]), folders, strict=True):
        prepare(files, tokenizer_model, folder, **options)
    alone = load_manifest(folders[0])
    assert alone.left_out.duplicates == 3 * len(TEXTS)
    expected = source_text.Comparison(len(TEXTS), [])
    assert compare_with_inputs(alone, sources[:2], sample=1.0) == expected
    merge(folders, tmp_path / "two")
    more = write_jsonl(tmp_path / "more.jsonl", [*(f"{t} 1" for t in TEXTS), "another"])
    prepare([more], tokenizer_model, tmp_path / "more", **options)
    nested = merge([tmp_path / "two", tmp_path / "more"], tmp_path / "nested")
    found = compare_with_inputs(nested, [*sources, more], sample=1.0)
    assert found == source_text.Comparison(3 * len(TEXTS) + 2, [])


def test_sample_has_its_share_of_every_split_and_is_the_same_each_time(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(source_text, "_compare", lambda place, _, text, number: seen.append(text))
    found = compared(whole, sample=0.4)
    first, seen[:] = list(seen), []
    compared(whole, sample=0.4)
    assert seen == first and found.num_compared == len(first)
    assert 60 < len(first) < 130
    manifest = load_manifest(whole)
    sampled = Counter(source_text._split_of(manifest, text) for text in first)
    for name, split in manifest.splits().items():
        assert 0 < sampled[name] < split.documents


def test_progress_counts_the_documents(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_text, "DOCUMENTS_PER_STEP", 100)
    steps: list[int] = []
    manifest = load_manifest(whole)
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    compare_with_texts(manifest, tokenizer, TEXTS, sample=0.1, advance=steps.append)
    assert steps == [100, 100]


# --- damage --------------------------------------------------------------------------------------


def test_one_changed_token_is_found_with_its_place(whole: Path) -> None:
    documents = documents_of(whole, "train")
    documents[7][3] += 1
    forge(whole, "train", documents)
    found = compared(whole)
    (problem,) = found.problems
    assert found.num_compared == len(TEXTS)
    assert problem.startswith(f"{whole}/train.bin: 1 sampled document differs from the text;")
    assert "the text; the first: document 7 (" in problem
    length = len(documents[7])
    assert (
        f"has {length} tokens and the text gives {length}, the first 3 of them the same" in problem
    )
    assert problem.endswith("if they are, prepare the text again.")


def test_exchanged_documents_are_found(whole: Path) -> None:
    documents = documents_of(whole, "train")
    forge(whole, "train", [documents[1], documents[0], *documents[2:]])
    (problem,) = compared(whole).problems
    assert "2 sampled documents differ from the text; the first: document 0 (" in problem


@pytest.mark.parametrize("cut", [1, -1])
def test_document_that_is_cut_or_longer_is_found(whole: Path, cut: int) -> None:
    *documents, last = documents_of(whole, "test")
    changed = [*last[:-2], last[-1]] if cut == 1 else [*last, last[-1]]
    forge(whole, "test", [*documents, changed])
    (problem,) = compared(whole).problems
    same = len(last) - 2 if cut == 1 else len(last)
    # What follows the cut may be equal by chance, but not its place.
    assert f"document {len(documents)} (" in problem
    assert f"has {len(changed)} tokens and the text gives {len(last)}, the first {same} " in problem


def test_missing_and_additional_documents_are_found(whole: Path) -> None:
    documents = documents_of(whole, "validation")
    forge(whole, "validation", documents[:-1])
    (problem,) = compared(whole).problems
    assert (
        f"validation.bin: {len(documents) - 1} documents, the text has {len(documents)}" in problem
    )
    forge(whole, "validation", [*documents, documents[0]])
    (problem,) = compared(whole).problems
    assert (
        f"{len(documents) + 1} documents, the text has {len(documents)}. Name the files" in problem
    )


# --- inputs --------------------------------------------------------------------------------------


def test_other_inputs_than_the_recorded_ones_are_refused(whole: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    manifest = load_manifest(whole)
    copy = Path(shutil.copy(source, tmp_path / "copy.jsonl"))
    (problem,) = compare_with_inputs(manifest, [source, copy], sample=1.0).problems
    assert problem == (
        f"--against: 2 files, {whole} was made of 1. Name all of them, in the order of "
        "manifest.json."
    )
    size = source.stat().st_size
    other = write_jsonl(tmp_path / "other.jsonl", TEXTS[:9])
    (problem,) = compare_with_inputs(manifest, [other], sample=1.0).problems
    assert problem.startswith("--against: file 1 is other.jsonl of ")
    assert f"was made of source.jsonl of {size:,}. Name the files in the order" in problem
    absent = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    first, second = compare_with_inputs(manifest, absent, sample=1.0).problems
    assert "a.jsonl: no such file or folder." in first and "b.jsonl" in second


def test_input_that_cannot_be_read_is_a_problem(whole: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    source.write_bytes(source.read_bytes().replace(b'{"text"', b'{"test"', 1))
    (problem,) = compare_with_inputs(load_manifest(whole), [source], sample=1.0).problems
    assert "source.jsonl, line 1: keys ['test']" in problem


# --- command -------------------------------------------------------------------------------------


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def run(*arguments):
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["tst-megatron", "data", "verify", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out, click.unstyle(printed.err)

    return run


def test_command_compares_and_says_how_many(verify, whole: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    status, out, _ = verify(whole, "--against", source, "--sample", "1")
    assert status == 0
    assert "  note: 240 of 240 documents were encoded again: the tokens are the same.\n" in out
    status, out, _ = verify(whole, "--against", source, "--sample", "0")
    assert status == 0 and "0 of 240 documents" in out and "larger --sample" in out


def test_command_fails_where_the_text_differs(verify, whole: Path, tmp_path: Path) -> None:
    documents = documents_of(whole, "train")
    forge(whole, "train", documents[::-1])
    status, out, _ = verify(whole, "--against", tmp_path / "source.jsonl", "--sample", "1")
    assert status == 1
    assert f"{whole}: 1 problem\n" in out and "sampled documents differ from the text" in out


def test_damaged_folder_is_not_compared(verify, whole: Path, tmp_path: Path) -> None:
    edit(whole / "manifest.json", lambda values: values.update(unigram_entropy_nats=1.0))
    status, out, _ = verify(whole, "--against", tmp_path / "source.jsonl")
    assert status == 1 and "unigram entropy" in out
    assert "note: not compared with the text: that needs files without a fault." in out


def test_text_belongs_to_one_folder_and_a_sample_to_a_text(verify, whole: Path) -> None:
    status, out, error = verify(whole, whole, "--against", "a.jsonl")
    assert (status, out) == (2, "")
    assert "--against: the text of one folder, and 2 are given. Verify them one by one" in error
    status, out, error = verify(whole, "--sample", "0.1")
    assert (status, out) == (2, "") and "--sample: a share of no text" in error


def test_sample_is_a_thousandth_by_default(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = []

    def compare(manifest, inputs, *, sample, advance):
        samples.append(sample)
        return source_text.Comparison(1, [])

    monkeypatch.setattr(prepared, "compare_with_inputs", compare)
    for sample in (None, 0.0, 0.5):
        assert prepared.verify([whole], Console(quiet=True), against=[tmp_path], sample=sample)
    assert samples == [0.001, 0.0, 0.5]
