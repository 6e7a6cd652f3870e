import errno
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from tst_megatron.cli import app
from tst_megatron.data import merge as merging
from tst_megatron.data.corpora import open_corpora
from tst_megatron.data.encode import split_of
from tst_megatron.data.indexed import IndexedReader
from tst_megatron.data.manifest import Manifest, changed_files, load_manifest
from tst_megatron.data.merge import merge
from tst_megatron.data.prepare import prepare
from tst_megatron.data.tokenizer import train_sentencepiece

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


@pytest.fixture
def shards(tokenizer_model: Path, tmp_path: Path) -> list[Path]:
    """Two prepared folders with all three splits."""
    folders = []
    for part in write_parts(tmp_path, 2):
        prepare([part], tokenizer_model, tmp_path / part.stem, workers=1, **FRACTIONS)
        folders.append(tmp_path / part.stem)
    return folders


@pytest.mark.parametrize("fractions", [FRACTIONS, {"held_out_fraction": 0.1}], ids=str)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_merged_folder_is_the_one_that_preparing_all_at_once_makes(
    tokenizer_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    fractions: dict[str, float],
) -> None:
    monkeypatch.setattr(merging, "BLOCK_BYTES", 512)
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
    assert values == wanted and merged.empty_documents == number
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


# --- refusals ------------------------------------------------------------------------------------


def test_all_mismatches_are_named_at_once(
    tokenizer_model: Path, training_texts: list[str], shards: list[Path], tmp_path: Path
) -> None:
    train_sentencepiece(training_texts, tmp_path / "other.model", vocab_size=900)
    source = write_jsonl(tmp_path / "different.jsonl", TEXTS[::2], key="body")
    prepare(
        [source],
        tmp_path / "other.model",
        tmp_path / "different",
        text_key="body",
        held_out_fraction=0.3,
        workers=1,
    )
    edit(shards[1] / "manifest.json", lambda values: values["rules"].update(split="by chance"))
    edit(shards[1] / "manifest.json", lambda values: values["tokenizer"].update(dtype="int32"))
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "precious").write_text("")
    (shards[0] / "test.idx").unlink()
    absent = tmp_path / "absent"
    given = [*shards, tmp_path / "different", absent, shards[0] / ".." / "part0"]
    with pytest.raises(ValueError) as caught:
        merge(given, tmp_path / "output")
    lines = str(caught.value).splitlines()
    starts = [
        f"{absent}: no such manifest.",
        f"{shards[1]}: token type is 'int32', in {shards[0]} it is 'uint16'.",
        f"{shards[1]}: its split rule is 'by chance', this version's is",
        f"{tmp_path / 'different'}: tokenizer sha256 is ",
        f"{tmp_path / 'different'}: vocabulary size is 900, in",
        f"{tmp_path / 'different'}: splits is ['train', 'validation'], in",
        f"{tmp_path / 'different'}: text_key is 'body', in",
        f"{tmp_path / 'different'}: held_out_fraction is 0.3, in",
        f"{tmp_path / 'different'}: test_fraction is 0.0, in",
        f"{given[-1]}: is the same folder as {shards[0]}.",
        f"{tmp_path / 'output'}: exists and is not a prepared folder",
        f"{shards[0] / 'test.idx'}: no such file.",
        f"{given[-1] / 'test.idx'}: no such file.",
    ]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    assert list(contents(tmp_path / "output")) == ["precious"]


def test_same_text_twice_is_refused(
    tokenizer_model: Path, shards: list[Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in contents(shards[0]).items():
        (copy / name).write_bytes(content)
    more = write_jsonl(tmp_path / "more.jsonl", [text + "!" for text in TEXTS])
    inputs = [more, tmp_path / "part1.jsonl"]
    prepare(inputs, tokenizer_model, tmp_path / "overlap", workers=1, **FRACTIONS)
    with pytest.raises(ValueError) as caught:
        merge([*shards, copy, tmp_path / "overlap"], tmp_path / "merged")
    same, overlap = str(caught.value).splitlines()
    assert same.startswith(
        f"{copy}: holds the same tokens as {shards[0]}. Each text is merged once"
    )
    assert overlap.startswith(
        f"{tmp_path / 'overlap'}: was made of part1.jsonl, as {shards[1]} was"
    )
    assert not (tmp_path / "merged").exists()


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 0xFF]))


def test_damaged_files_are_all_named_and_nothing_is_left(
    shards: list[Path], tmp_path: Path
) -> None:
    # Sizes stay, so only the content tells; the last id of a .bin becomes one of no vocabulary.
    damaged = [shards[0] / "train.bin", shards[1] / "train.idx", shards[1] / "test.bin"]
    for path in damaged:
        flip_last_byte(path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError) as caught:
        merge(shards, tmp_path / "merged")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(path) for path in damaged]
    assert all("is not what manifest.json recorded" in line for line in lines)
    assert sorted(tmp_path.iterdir()) == before


def test_missing_and_mixed_files_are_named_before_anything_is_copied(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "built_beside", lambda output: pytest.fail("it was begun"))
    (shards[0] / "train.bin").unlink()
    (shards[0] / "tokenizer.model").write_bytes(b"another")
    (shards[1] / "tokenizer.model").unlink()
    with (shards[1] / "test.bin").open("ab") as file:
        file.write(b"x")
    for end in ("bin", "idx"):
        (shards[1] / f"train.{end}").write_bytes((shards[1] / f"validation.{end}").read_bytes())
    with pytest.raises(ValueError) as caught:
        merge(shards, tmp_path / "merged")
    names = [line.split(": ")[0] for line in str(caught.value).splitlines()]
    assert names == [
        *(str(shards[0] / name) for name in ("tokenizer.model", "train.bin")),
        *(str(shards[1] / name) for name in ("tokenizer.model", "train.idx", "test.bin")),
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_merge_that_stops_half_way_leaves_nothing(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    copied: list[Path] = []

    def stop_at_the_third(*arguments: object) -> list[str]:
        copied.append(tmp_path)
        if len(copied) == 3:
            assert list(tmp_path.glob("merged.partial-*"))
            raise error
        return add(*arguments)

    add = merging._add
    monkeypatch.setattr(merging, "_add", stop_at_the_third)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error):
        merge(shards, tmp_path / "merged")
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.setattr(merging, "_add", add)
    assert not merge(shards, tmp_path / "merged").reused


def test_too_little_space_is_said_before_anything_is_copied(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [*shards[0].glob("*.*"), *shards[1].glob("*.*")]
    needed = sum(path.stat().st_size for path in files if path.suffix in (".bin", ".idx"))
    usage = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"GB are free, the merged folder needs .*another disk") as e:
        merge(shards, tmp_path / "merged")
    assert e.value.errno == errno.ENOSPC and not (tmp_path / "merged").exists()
    usage.free = needed
    merge(shards, tmp_path / "merged")


def test_nothing_to_merge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folders to merge"):
        merge([], tmp_path / "merged")


# --- shards with an empty split ------------------------------------------------------------------


def prepare_shard(model: Path, folder: Path, name: str, texts: list[str]) -> Manifest:
    source = write_jsonl(folder / f"{name}.jsonl", texts)
    output = folder / name
    return prepare([source], model, output, workers=1, allow_empty_splits=True, **FRACTIONS)


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
    prepare(sources, tokenizer_model, tmp_path / "whole", workers=1, **FRACTIONS)
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
    with pytest.raises(ValueError, match=r"give 1 train and 0 validation .*\(--shard\)"):
        prepare([tmp_path / "a.jsonl"], tokenizer_model, tmp_path / "a", workers=1, **FRACTIONS)


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
    whole = prepare(sources, tokenizer_model, folder / "whole", workers=1, **FRACTIONS)
    merged = merge([folder / name for name in names], folder / "merged")
    for name, split in whole.splits().items():
        assert merged.splits()[name] == replace(split, prefix=folder / "merged" / name)
    assert merged.unigram_entropy_nats == whole.unigram_entropy_nats


# --- command -------------------------------------------------------------------------------------


def test_command_merges_shards(tokenizer_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [TRAINED_ON])
    write_jsonl(tmp_path / "b.jsonl", [text for text in TEXTS if text != TRAINED_ON])
    for name in "ab":
        words = ["data", "prepare", str(tmp_path / f"{name}.jsonl"), "--workers", "1", "--shard"]
        words += ["--tokenizer", str(tokenizer_model), "--output", str(tmp_path / name)]
        words += ["--held-out-fraction", "0.1"]
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
    assert "merging" in text.getvalue() and "100%" in text.getvalue()
