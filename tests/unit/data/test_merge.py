"""A merged folder is the one that preparing all texts at once makes."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from merge_shards import (
    FRACTIONS,
    TEXTS,
    TRAINED_ON,
    contents,
    edit,
    flip_last_byte,
    write_jsonl,
    write_parts,
)
from rich.console import Console
from typer.testing import CliRunner

from tst_megatron.cli.app import app
from tst_megatron.data.manifest import load_manifest
from tst_megatron.data.prepare.merge import merge
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.tokens import append
from tst_megatron.data.verify.recorded_files import changed_files


@pytest.mark.parametrize("fractions", [FRACTIONS, {"held_out_fraction": 0.1}], ids=str)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_merged_folder_is_the_one_that_preparing_all_at_once_makes(
    tokenizer_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    fractions: dict[str, float],
) -> None:
    monkeypatch.setattr(append, "BLOCK_BYTES", 512)
    parts = write_parts(tmp_path, number)
    whole = prepare(parts, tokenizer_model, tmp_path / "whole", workers=1, **fractions)
    for part in parts:
        prepare([part], tokenizer_model, tmp_path / part.stem, workers=1, **fractions)
    merged = merge([tmp_path / part.stem for part in parts], tmp_path / "merged")
    assert (whole.test is not None) == ("test_fraction" in fractions)
    expected, found = contents(tmp_path / "whole"), contents(tmp_path / "merged")
    assert list(found) == list(expected)
    assert all(found[name] == expected[name] for name in expected if name != "manifest.json")
    # The manifests too, but for what the shards were.
    values, wanted = json.loads(found["manifest.json"]), json.loads(expected["manifest.json"])
    origin = values["recipe"].pop("shards")
    assert values == wanted and merged.left_out.empty == number
    assert [shard["num_inputs"] for shard in origin] == [1] * number
    first = load_manifest(tmp_path / "part0")
    assert origin[0]["sha256"]["train.bin"] == first.train.bin_sha256
    assert str(tmp_path) not in json.dumps(origin)
    assert changed_files(merged) == [] and not merged.reused


def test_order_of_the_shards_is_the_order_of_the_documents(
    shards: list[Path], tmp_path: Path
) -> None:
    merge(shards[::-1], tmp_path / "merged")
    expected = b"".join((shard / "train.bin").read_bytes() for shard in shards[::-1])
    assert (tmp_path / "merged" / "train.bin").read_bytes() == expected


def test_merged_folders_can_be_merged(
    tokenizer_model: Path, shards: list[Path], tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "more.jsonl", [text + "!" for text in TEXTS])
    prepare([source], tokenizer_model, tmp_path / "more", workers=1, **FRACTIONS)
    merge(shards, tmp_path / "two")
    nested = merge([tmp_path / "two", tmp_path / "more"], tmp_path / "nested")
    flat = merge([*shards, tmp_path / "more"], tmp_path / "flat")
    assert nested.recipe["inputs"] == flat.recipe["inputs"] and len(flat.recipe["inputs"]) == 3
    for name, split in nested.splits().items():
        same = replace(flat.splits()[name], prefix=split.prefix)
        assert split == same
    assert nested.unigram_entropy_nats == flat.unigram_entropy_nats


def test_shards_that_share_a_file_are_merged_and_it_is_noted(
    tokenizer_model: Path, shards: list[Path], tmp_path: Path
) -> None:
    more = write_jsonl(tmp_path / "more.jsonl", [text + "!" for text in TEXTS])
    blanks = [tmp_path / f"blank{number}.jsonl" for number in range(3)]
    for blank in blanks:
        blank.write_text("\n")
    options = {"workers": 1, "max_rejected_fraction": 0.01, **FRACTIONS}
    texts = [tmp_path / "part0.jsonl", tmp_path / "part1.jsonl", more]
    inputs = [list(pair) for pair in zip(texts, blanks, strict=True)]
    for number, files in enumerate(inputs):
        prepare(files, tokenizer_model, tmp_path / f"s{number}", **options)
    text = io.StringIO()
    console = Console(file=text)
    merge([tmp_path / f"s{number}" for number in range(3)], tmp_path / "merged", console=console)
    notes = [line for line in text.getvalue().splitlines() if line.startswith("note: ")]
    assert notes == [
        f"note: {tmp_path}/s{number}: 1 of its 2 files have the content of files of earlier "
        f"shards, blank{number}.jsonl that of one of {tmp_path}/s0. Documents in them are there "
        "twice."
        for number in (1, 2)
    ]
    merge(shards, tmp_path / "others", console=console)
    assert text.getvalue().count("note: ") == 2
    # As preparing all at once does.
    prepare(
        [file for files in inputs for file in files], tokenizer_model, tmp_path / "w", **options
    )
    for name in ("train.bin", "train.idx", "rejected.jsonl"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "w" / name).read_bytes()


def test_merge_says_that_a_shard_of_an_earlier_version_drops_the_contents_of_all(
    shards: list[Path], tmp_path: Path
) -> None:
    def merged_with_output(name: str) -> tuple[bool, str]:
        text = io.StringIO()
        console = Console(file=text, width=1000)
        return merge(shards, tmp_path / name, console=console).contents is None, text.getvalue()

    assert merged_with_output("all")[0] is False and "warning" not in merged_with_output("b")[1]
    edit(shards[0] / "manifest.json", lambda values: values.pop("contents"))
    is_dropped, text = merged_with_output("dropped")
    assert is_dropped
    assert f"warning: 1 of {len(shards)} shards, the first {shards[0]}, were prepared by" in text
    for shard in shards[1:]:
        edit(shard / "manifest.json", lambda values: values.pop("contents"))
    # Nothing is lost where none has any.
    assert "warning" not in merged_with_output("none")[1]


def test_deduplicated_shards_are_merged_step_by_step(tokenizer_model: Path, tmp_path: Path) -> None:
    for number in range(3):
        source = write_jsonl(tmp_path / f"d{number}.jsonl", [f"{t} {number}" for t in TEXTS] * 2)
        options = {"workers": 1, "deduplicate": True, **FRACTIONS}
        prepare([source], tokenizer_model, tmp_path / f"d{number}", **options)
    one, two, three = (tmp_path / f"d{number}" for number in range(3))
    merge([one, two], tmp_path / "two")
    nested = merge([tmp_path / "two", three], tmp_path / "nested")
    flat = merge([one, two, three], tmp_path / "flat")
    assert nested.train.bin_sha256 == flat.train.bin_sha256
    assert nested.left_out.duplicates == 3 * len(TEXTS)
    assert nested.recipe["deduplicate"] == flat.recipe["deduplicate"] == "each shard"
    prepare([tmp_path / "d0.jsonl"], tokenizer_model, tmp_path / "all", workers=1, **FRACTIONS)
    with pytest.raises(ValueError, match="all: deduplicate is False, in .*two it is True"):
        merge([tmp_path / "two", tmp_path / "all"], tmp_path / "mixed")


# --- reuse ---------------------------------------------------------------------------------------


def test_second_call_reuses_the_finished_folder(shards: list[Path], tmp_path: Path) -> None:
    first = merge(shards, tmp_path / "merged")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "merged").iterdir()}
    # Nor are the shards' tokens needed for it.
    (shards[0] / "train.bin").unlink()
    second = merge(shards, tmp_path / "merged")
    assert second.reused and second == replace(first, reused=True)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "merged").iterdir()}


def test_damaged_output_is_not_reused(shards: list[Path], tmp_path: Path) -> None:
    merge(shards, tmp_path / "merged")
    flip_last_byte(tmp_path / "merged" / "train.bin")
    with pytest.raises(ValueError, match=r"merged/train\.bin: differs from its sha256"):
        merge(shards, tmp_path / "merged")


def test_output_of_other_shards_is_refused(shards: list[Path], tmp_path: Path) -> None:
    merge(shards, tmp_path / "merged")
    before = contents(tmp_path / "merged")
    message = r"merged: was prepared differently; inputs: number 1 is .*part0.* there, .*part1"
    with pytest.raises(ValueError, match=message):
        merge(shards[::-1], tmp_path / "merged")
    # The same inputs, but the tokens of one shard are others.
    edit(
        shards[1] / "manifest.json", lambda values: values["splits"]["train"].update(bin_sha256="")
    )
    with pytest.raises(ValueError, match="shards: number 2 is .* there"):
        merge(shards, tmp_path / "merged")
    with pytest.raises(ValueError, match="part0: was prepared differently; .*shards: number 1"):
        merge(shards[:1], shards[0])
    assert contents(tmp_path / "merged") == before


# --- command -------------------------------------------------------------------------------------


def test_command_merges_shards(tokenizer_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [TRAINED_ON])
    write_jsonl(tmp_path / "b.jsonl", [text for text in TEXTS if text != TRAINED_ON])
    for name in "ab":
        words = ["data", "prepare", str(tmp_path / f"{name}.jsonl"), "--workers", "1"]
        words += ["--tokenizer", str(tokenizer_model), "--output", str(tmp_path / name)]
        words += ["--held-out-fraction", "0.1", "--allow-empty-splits"]
        assert CliRunner().invoke(app, words).exit_code == 0
    words = ["data", "merge", str(tmp_path / "a"), str(tmp_path / "b")]
    words += ["--output", str(tmp_path / "merged")]
    result = CliRunner().invoke(app, words)
    manifest = load_manifest(tmp_path / "merged")
    assert result.exit_code == 0 and "merged is merged: " in result.output.replace("\n", " ")
    assert f"{manifest.train.tokens:,} tokens to train on" in result.output
    assert "merged is up to date: " in CliRunner().invoke(app, words).output


def test_progress_is_drawn_on_the_given_console(shards: list[Path], tmp_path: Path) -> None:
    text = io.StringIO()
    merge(shards, tmp_path / "merged", console=Console(file=text, force_terminal=True, width=80))
    assert "merging" in text.getvalue() and re.search(r"(\d+\.\d)/\1 kB", text.getvalue())
