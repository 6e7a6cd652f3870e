import gzip
import io
import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from sentencepiece import SentencePieceProcessor

from tst_megatron.data.prepare.prepare import Manifest, load_manifest, prepare
from tst_megatron.data.text import jsonl
from tst_megatron.data.text.split import split_of
from tst_megatron.data.tokenizer.sentencepiece import encode_document
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.verify.recorded_files import changed_files

TEXTS = [f"document {number}\n" + "    some text </s>\n" * (number % 7) for number in range(200)]


def write_jsonl(path: Path, texts: list[str], key: str = "text") -> Path:
    lines = [json.dumps({"id": number, key: text}) for number, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A JSONL file with `TEXTS`."""
    return write_jsonl(tmp_path / "source.jsonl", TEXTS)


def run(source: Path, model: Path, output: Path, fraction: float = 0.1) -> Manifest:
    return prepare([source], model, output, held_out_fraction=fraction, workers=1)


def is_held_out(text: str, fraction: float) -> bool:
    return split_of(text, held_out_fraction=fraction, test_fraction=0.0) == "validation"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_tokens_are_the_encoded_documents_in_order(
    source: Path, tokenizer_model: Path, processor: SentencePieceProcessor, tmp_path: Path
) -> None:
    manifest = run(source, tokenizer_model, tmp_path / "out")
    for split, held_out in ((manifest.train, False), (manifest.validation, True)):
        expected = [
            encode_document(processor, text) for text in TEXTS if is_held_out(text, 0.1) is held_out
        ]
        reader = IndexedReader(split.prefix)
        assert [reader.tokens(n).tolist() for n in range(reader.num_documents)] == expected
        assert split.documents == len(expected) > 0
        assert split.tokens == sum(len(document) for document in expected)


def test_manifest_states_the_contract(
    source: Path, tokenizer_model: Path, processor: SentencePieceProcessor, tmp_path: Path
) -> None:
    manifest = run(source, tokenizer_model, tmp_path / "out")
    out = tmp_path / "out"
    assert manifest.path == out / "manifest.json" and manifest.path.is_absolute()
    assert (manifest.train.prefix, manifest.validation.prefix) == (
        out / "train",
        out / "validation",
    )
    assert manifest.tokenizer_path.read_bytes() == tokenizer_model.read_bytes()
    assert (manifest.tokenizer.vocab_size, manifest.tokenizer.eod_id) == (800, 2)
    assert manifest.dtype == "uint16"
    assert manifest.reused is False
    counts = Counter(
        token
        for text in TEXTS
        if not is_held_out(text, 0.1)
        for token in encode_document(processor, text)
    )
    frequencies = [count / counts.total() for count in counts.values()]
    entropy = -sum(frequency * math.log(frequency) for frequency in frequencies)
    assert manifest.unigram_entropy_nats == pytest.approx(entropy, rel=1e-12)
    values = json.loads(manifest.path.read_text(encoding="utf-8"))
    assert values["rules"]["document"].startswith("no BOS; EOD (2)")
    assert "ordinary text" in values["rules"]["literal"]
    assert str(tmp_path) not in json.dumps(values)


def test_moved_folder_still_loads(source: Path, tokenizer_model: Path, tmp_path: Path) -> None:
    run(source, tokenizer_model, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    manifest = load_manifest(tmp_path / "moved" / "manifest.json")
    assert manifest == load_manifest(tmp_path / "moved")
    assert IndexedReader(manifest.train.prefix).num_tokens == manifest.train.tokens


def test_files_do_not_depend_on_the_number_of_workers(
    source: Path, tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, tokenizer_model, tmp_path / "one")
    monkeypatch.setattr(jsonl, "BATCH_BYTES", 500)
    prepare([source], tokenizer_model, tmp_path / "two", held_out_fraction=0.1, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_side_of_a_document_does_not_depend_on_order(
    source: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", TEXTS[::-1])
    first = IndexedReader(run(source, tokenizer_model, tmp_path / "a").validation.prefix)
    second = IndexedReader(run(other, tokenizer_model, tmp_path / "b").validation.prefix)
    documents = [
        [reader.tokens(n).tolist() for n in range(reader.num_documents)]
        for reader in (first, second)
    ]
    assert documents[0] == documents[1][::-1]


def test_second_call_reuses_the_finished_folder(
    source: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    first = run(source, tokenizer_model, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    second = run(source, tokenizer_model, tmp_path / "out")
    assert second.reused and second == replace(first, reused=True)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_second_call_refuses_other_settings_and_names_them(
    source: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    run(source, tokenizer_model, tmp_path / "out", fraction=0.1)
    before = contents(tmp_path / "out")
    message = r"prepared differently; held_out_fraction: 0\.1 there, 0\.2 wanted.*another output"
    with pytest.raises(ValueError, match=message):
        run(source, tokenizer_model, tmp_path / "out", fraction=0.2)
    write_jsonl(source, TEXTS[:-1])
    with pytest.raises(ValueError, match=r"prepared differently; inputs: .*sha256"):
        run(source, tokenizer_model, tmp_path / "out", fraction=0.1)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("train.bin", b"x", "differs from its sha256 in manifest.json"),
        ("validation.idx", None, "is missing"),
        ("tokenizer.model", b"x", "is not the tokenizer that made this text"),
    ],
)
def test_second_call_refuses_a_damaged_folder(
    source: Path,
    tokenizer_model: Path,
    tmp_path: Path,
    name: str,
    content: bytes | None,
    problem: str,
) -> None:
    run(source, tokenizer_model, tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    if content is not None:
        (tmp_path / "out" / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: {problem}\. Bring"):
        run(source, tokenizer_model, tmp_path / "out")


def test_output_that_holds_something_else_is_refused(
    source: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.bin").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"out: exists and is not a prepared folder.*another"):
        run(source, tokenizer_model, tmp_path / "out")
    assert contents(tmp_path / "out") == {"train.bin": b"precious"}


def test_empty_output_folder_is_used(source: Path, tokenizer_model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run(source, tokenizer_model, tmp_path / "out").train.tokens > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_line_is_named_and_makes_no_output(
    tokenizer_model: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "BATCH_BYTES", 500)
    source = write_jsonl(tmp_path / "source.jsonl", TEXTS)
    with source.open("a") as file:
        file.write("bad\n")
    with pytest.raises(ValueError, match=r"source\.jsonl, line 201: not JSON"):
        prepare([source], tokenizer_model, tmp_path / "out", workers=workers)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parts", "source.jsonl"]


def test_blank_lines_and_empty_texts_are_left_out(tokenizer_model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "source.jsonl", [*TEXTS, "", ""])
    source.write_text("\n" + source.read_text() + " \n")
    manifest = run(source, tokenizer_model, tmp_path / "out")
    assert manifest.left_out.empty == 2
    assert manifest.train.documents + manifest.validation.documents == len(TEXTS)


def test_last_line_without_newline_is_read(tokenizer_model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "source.jsonl", TEXTS)
    source.write_text(source.read_text().rstrip("\n"))
    manifest = run(source, tokenizer_model, tmp_path / "out")
    assert manifest.train.documents + manifest.validation.documents == len(TEXTS)


def test_compressed_input_gives_the_same_tokens(
    source: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "source.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    plain = run(source, tokenizer_model, tmp_path / "a")
    packed = run(tmp_path / "source.jsonl.gz", tokenizer_model, tmp_path / "b")
    assert packed.train.bin_sha256 == plain.train.bin_sha256


def test_unusable_input_is_refused(tokenizer_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: no such file or folder"):
        run(tmp_path / "none.jsonl", tokenizer_model, tmp_path / "out")


def test_text_key_names_the_text(tokenizer_model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "source.jsonl", TEXTS, key="body")
    manifest = prepare(
        [source],
        tokenizer_model,
        tmp_path / "out",
        text_key="body",
        held_out_fraction=0.1,
        workers=1,
    )
    assert manifest.train.documents + manifest.validation.documents == len(TEXTS)


@pytest.mark.parametrize(
    ("num_texts", "fraction", "message"),
    [
        (
            1,
            1e-9,
            r"--held-out-fraction 1e-09 and --test-fraction 0.0: give 1 train and 0 validation",
        ),
        (1, 1 - 1e-9, r"give 0 train and 1 validation documents, each split needs at least one"),
        (0, 0.1, r"source.jsonl: holds no document"),
    ],
)
def test_split_without_documents_is_refused(
    tokenizer_model: Path, tmp_path: Path, num_texts: int, fraction: float, message: str
) -> None:
    source = write_jsonl(tmp_path / "source.jsonl", TEXTS[:num_texts])
    with pytest.raises(ValueError, match=message):
        run(source, tokenizer_model, tmp_path / "out", fraction=fraction)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, math.nan])
def test_all_wrong_settings_are_named_at_once(
    source: Path, tokenizer_model: Path, tmp_path: Path, fraction: float
) -> None:
    message = (
        r"(?s)--held-out-fraction .*: must lie between 0 and 1.*--workers 0: must be at least 1"
    )
    with pytest.raises(ValueError, match=message):
        prepare([source], tokenizer_model, tmp_path / "out", held_out_fraction=fraction, workers=0)


def test_progress_is_drawn_on_the_given_console(
    source: Path, tokenizer_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    prepare(
        [source],
        tokenizer_model,
        tmp_path / "out",
        held_out_fraction=0.1,
        workers=1,
        console=console,
    )
    assert "tokenising" in text.getvalue() and re.search(r"(\d+\.\d)/\1 kB", text.getvalue())
    assert capsys.readouterr().out == ""


def test_preparing_imports_neither_megatron_nor_torch() -> None:
    code = (
        "import sys, tst_megatron.data.prepare.prepare, tst_megatron.data.text.standard_library; "
        "print(sorted({'megatron', 'torch', 'transformers'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_test_split_is_made_when_it_is_asked_for(
    source: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    fractions = {"held_out_fraction": 0.1, "test_fraction": 0.2}
    manifest = prepare([source], tokenizer_model, tmp_path / "out", workers=1, **fractions)
    assert manifest.test is not None and manifest.test.prefix == tmp_path / "out" / "test"
    numbers = [split.documents for split in manifest.splits().values()]
    assert list(manifest.splits()) == ["train", "validation", "test"] and sum(numbers) == 200
    without = run(source, tokenizer_model, tmp_path / "without")
    assert without.test is None and not (tmp_path / "without" / "test.bin").exists()
    assert without.validation.bin_sha256 == manifest.validation.bin_sha256
    assert load_manifest(tmp_path / "out") == manifest


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.1, -0.1), (0.1, 1.0)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(
    source: Path, tokenizer_model: Path, tmp_path: Path, fractions: tuple[float, float]
) -> None:
    held_out, test = fractions
    with pytest.raises(ValueError, match=f"--test-fraction {test}: must be 0 or more, and leave"):
        prepare(
            [source],
            tokenizer_model,
            tmp_path / "out",
            held_out_fraction=held_out,
            test_fraction=test,
        )
    assert not (tmp_path / "out").exists()


def test_file_that_was_written_anew_under_its_name_is_noticed(
    source: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    manifest = run(source, tokenizer_model, tmp_path / "out")
    other = run(
        write_jsonl(tmp_path / "other.jsonl", TEXTS[::-1]), tokenizer_model, tmp_path / "other"
    )
    assert changed_files(manifest) == []
    for name in ("train.bin", "train.idx", "validation.bin"):
        (tmp_path / "out" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    # The reversed text has the same size: content alone tells.
    assert manifest.train.tokens == other.train.tokens
    found = changed_files(manifest)
    assert [problem.split(": ")[0] for problem in found] == [
        str(tmp_path / "out" / name) for name in ("train.bin", "train.idx", "validation.bin")
    ]
    assert "is not what manifest.json recorded" in found[0] and "prepare the text" in found[0]


def test_missing_file_and_another_tokenizer_are_noticed_together(
    source: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    manifest = run(source, tokenizer_model, tmp_path / "out")
    (tmp_path / "out" / "train.bin").unlink()
    manifest.tokenizer_path.write_bytes(b"another")
    missing, tokenizer = changed_files(manifest)
    assert missing.endswith("train.bin: is missing. Prepare the text again")
    assert "is not the tokenizer that made this text" in tokenizer
