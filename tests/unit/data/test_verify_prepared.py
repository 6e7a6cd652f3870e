"""`data verify` finds every kind of damage, by hashes and without them."""

import io
import math
import re
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import click
import numpy as np
import pytest
from forged_folders import documents_of, forge, record, whole_once, with_bos_once  # noqa: F401
from hugging_face_tokenizers import build_hugging_face
from merge_shards import TEXTS, edit, flip_last_byte, write_jsonl
from rich.console import Console

from tst_megatron.cli.app import main
from tst_megatron.cli.views import prepared
from tst_megatron.data.manifest import load_manifest
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.tokenizer.load import load_tokenizer
from tst_megatron.data.tokens.format import bin_path, idx_path
from tst_megatron.data.verify import split_shares
from tst_megatron.data.verify import verify as verifying
from tst_megatron.data.verify.held_out_copies import keeps_text
from tst_megatron.data.verify.split_shares import share_notes
from tst_megatron.data.verify.verify import verify_folder
from tst_megatron.system.files import file_sha256


@pytest.fixture
def whole(whole_once: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(whole_once, tmp_path / "whole"))


@pytest.fixture
def with_bos(with_bos_once: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(with_bos_once, tmp_path / "with-bos"))


def problems_of(folder: Path) -> list[str]:
    return verify_folder(load_manifest(folder)).problems


def change_manifest(folder: Path, **values) -> None:
    edit(folder / "manifest.json", lambda manifest: manifest.update(values))


# --- whole ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["whole", "with_bos"])
def test_what_prepare_made_is_whole_and_every_byte_is_read_once(
    request: pytest.FixtureRequest, name: str
) -> None:
    folder = request.getfixturevalue(name)
    steps: list[int] = []
    findings = verify_folder(load_manifest(folder), lambda: nullcontext(steps.append))
    assert (findings.problems, findings.notes) == ([], [])
    files = [path for path in folder.iterdir() if path.suffix in (".bin", ".idx")]
    assert len(files) == 6 and sum(steps) == sum(path.stat().st_size for path in files)


def test_empty_split_of_a_shard_is_noted(tokenizer_model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "few.jsonl", [TEXTS[1]])
    prepare([source], tokenizer_model, tmp_path / "few", workers=1, allow_empty_splits=True)
    findings = verify_folder(load_manifest(tmp_path / "few"))
    assert findings.problems == []
    assert findings.notes == ["validation has no document: the folder is to be merged with others."]


def test_text_that_another_folder_holds_out_is_noted(tokenizer_model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "source.jsonl", [f"{n} {text}" for n, text in enumerate(TEXTS)])
    call = {"tokenizer": tokenizer_model, "workers": 1}
    for name, fraction in (("few", 0.2), ("many", 0.6), ("again", 0.2)):
        prepare([source], output=tmp_path / name, held_out_fraction=fraction, **call)
    console = Console(file=io.StringIO(), width=10_000)
    assert prepared.verify([tmp_path / "few", tmp_path / "many"], console)
    few, many = (load_manifest(tmp_path / name) for name in ("few", "many"))
    number = many.validation.documents - few.validation.documents
    assert number > 0
    notes = [line for line in console.file.getvalue().splitlines() if "note" in line]
    assert notes == [
        f"  note: {number:,} of its train documents are held out in {tmp_path / 'many'} "
        "(validation), so a run of both would be evaluated on text that it trains on. Prepare both "
        "with the same fractions."
    ]
    console = Console(file=io.StringIO(), width=10_000)
    assert prepared.verify([tmp_path / "few", tmp_path / "again"], console)
    assert "note" not in console.file.getvalue()


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "validation", "test"])
@pytest.mark.parametrize("end", ["bin", "idx"])
def test_missing_file_is_named_once(whole: Path, name: str, end: str) -> None:
    (whole / f"{name}.{end}").unlink()
    assert problems_of(whole) == [
        f"{whole}/{name}.{end}: is missing. Bring the file back, or delete the folder and prepare "
        "the text again."
    ]


def test_changed_byte_of_any_token_file_is_found(whole: Path) -> None:
    # Above the vocabulary, in a training text that decides the entropy.
    flip_last_byte(whole / "train.bin")
    digest, *meaning = problems_of(whole)
    assert digest.startswith(f"{whole}/train.bin: differs from its sha256 in manifest.json. Bring")
    assert len(meaning) == 3
    assert any(
        "an id outside the vocabulary (0 to 799), 1 time, first in" in each for each in meaning
    )
    assert any("no EOD (2) at the end of a document, 1 time, first in" in each for each in meaning)
    assert any("unigram entropy" in each for each in meaning)


def test_changed_token_is_found_by_the_hash_alone(whole: Path) -> None:
    tokens = np.fromfile(whole / "validation.bin", dtype="<u2")
    tokens[0] ^= 1
    tokens.tofile(whole / "validation.bin")
    (problem,) = problems_of(whole)
    assert "validation.bin: differs from its sha256" in problem


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (0, r"magic .* are unknown"),
        (34, "document 1 is empty or does not start where"),
        (-1, "its document index skips or repeats a sequence at document"),
    ],
)
def test_damaged_index_is_found_with_and_without_its_hash(
    whole: Path, place: int, message: str
) -> None:
    path = idx_path(whole / "test")
    content = bytearray(path.read_bytes())
    content[place] ^= 0x40
    path.write_bytes(content)
    digest, meaning = problems_of(whole)
    assert digest.startswith(f"{path}: differs from its sha256")
    assert meaning.startswith(f"{path}: ") and re.search(message, meaning)


def test_tokens_are_hashed_where_the_index_is_no_use(whole: Path) -> None:
    idx_path(whole / "test").write_bytes(b"junk")
    flip_last_byte(bin_path(whole / "test"))
    found = problems_of(whole)
    assert [each.split(": ")[0].rsplit("/")[-1] for each in found] == [
        *("test.idx", "test.idx", "test.bin"),
    ]
    assert "4 bytes are too few" in found[1] and "differs from its sha256" in found[2]


def test_pair_of_different_sizes_is_found(whole: Path) -> None:
    content = bin_path(whole / "test").read_bytes()
    bin_path(whole / "test").write_bytes(content[:-2])
    sizes, digest = problems_of(whole)
    assert "its index describes" in sizes and "test.bin: differs from its sha256" in digest


@pytest.mark.parametrize("end", ["bin", "idx"])
def test_wrong_fingerprint_is_found_before_training_refuses_the_folder(
    whole: Path, end: str
) -> None:
    edit(
        whole / "manifest.json",
        lambda values: values["splits"]["train"].update({f"{end}_fingerprint": "0"}),
    )
    (problem,) = problems_of(whole)
    assert f"train.{end}: is whole, but has another fingerprint in manifest.json, so" in problem


def test_file_that_cannot_be_read_is_a_problem_and_no_end(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(reader, *_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(verifying, "scan", fail)
    found = problems_of(whole)
    assert len(found) == 3
    assert found[0].endswith("test.bin: cannot be read ([Errno 5] Input/output error).")


# --- meaning, where all hashes are right ---------------------------------------------------------


def test_document_without_eod_is_found(whole: Path) -> None:
    documents = documents_of(whole, "train")
    forge(whole, "train", [*documents[:5], documents[5][:-1], *documents[6:]])
    (problem,) = problems_of(whole)
    assert "train.bin: no EOD (2) at the end of a document, 1 time, first in document 5" in problem


def test_eod_inside_a_document_is_found(whole: Path) -> None:
    first, *others = documents_of(whole, "validation")
    forge(whole, "validation", [[5, 2, *first], *others])
    (problem,) = problems_of(whole)
    assert "validation.bin: EOD (2) inside a document, 1 time, first in document 0" in problem


def test_document_without_bos_is_found(with_bos: Path) -> None:
    documents = documents_of(with_bos, "test")
    forge(with_bos, "test", [*documents[:-1], documents[-1][1:]])
    (problem,) = problems_of(with_bos)
    last = len(documents) - 1
    assert (
        f"test.bin: no BOS (0) at the start of a document, 1 time, first in document {last} "
        in (problem)
    )


def test_id_outside_the_vocabulary_is_found(whole: Path) -> None:
    first, *others = documents_of(whole, "test")
    forge(whole, "test", [[800, *first], *others])
    (problem,) = problems_of(whole)
    assert (
        "test.bin: an id outside the vocabulary (0 to 799), 1 time, first in document 0" in problem
    )


@pytest.mark.parametrize("key", ["documents", "tokens"])
def test_counts_of_the_manifest_are_compared(whole: Path, key: str) -> None:
    edit(
        whole / "manifest.json",
        lambda values: values["splits"]["validation"].update(
            {key: values["splits"]["validation"][key] + 1}
        ),
    )
    (problem,) = problems_of(whole)
    assert "validation.idx: " in problem and "manifest.json has " in problem


def test_entropy_of_the_manifest_is_compared(whole: Path) -> None:
    entropy = load_manifest(whole).unigram_entropy_nats
    change_manifest(whole, unigram_entropy_nats=entropy * (1 + 1e-12))
    assert problems_of(whole) == []
    change_manifest(whole, unigram_entropy_nats=entropy + 1e-3)
    (problem,) = problems_of(whole)
    assert f"unigram entropy {entropy:.6f} nats, manifest.json has {entropy + 1e-3:.6f}" in problem


def test_dtype_is_compared_with_the_vocabulary_and_the_files(whole: Path) -> None:
    change_manifest(whole, dtype="int32")
    first, *others = problems_of(whole)
    assert "dtype int32, a vocabulary of 800 ids has uint16" in first
    assert len(others) == 3
    assert all("tokens are uint16, manifest.json has int32" in each for each in others)


def test_tokens_of_another_dtype_are_found(whole: Path) -> None:
    forge(whole, "test", documents_of(whole, "test"), vocab_size=200_000)
    (problem,) = problems_of(whole)
    assert "test.idx: tokens are int32, manifest.json has uint16" in problem


# --- tokenizer -----------------------------------------------------------------------------------


def test_missing_and_other_tokenizers_are_found(whole: Path) -> None:
    flip_last_byte(whole / "tokenizer.model")
    (problem,) = problems_of(whole)
    assert "tokenizer.model: is not the tokenizer that made this text" in problem
    (whole / "tokenizer.model").unlink()
    (problem,) = problems_of(whole)
    assert "tokenizer.model: is missing" in problem


def test_tokenizer_that_cannot_be_loaded_is_found(whole: Path) -> None:
    (whole / "tokenizer.model").write_bytes(b"junk")
    sha256 = file_sha256(whole / "tokenizer.model")
    edit(whole / "manifest.json", lambda values: values["tokenizer"].update(sha256=sha256))
    (problem,) = problems_of(whole)
    assert "tokenizer.model: not a SentencePiece model" in problem


def test_facts_of_the_manifest_are_compared_with_the_tokenizer(with_bos: Path) -> None:
    edit(
        with_bos / "manifest.json", lambda values: values["tokenizer"].update(eod_id=7, bos_id=None)
    )
    (problem,) = problems_of(with_bos)
    assert problem == (
        f"{with_bos}/manifest.json: bos_id is None, the tokenizer has 0; eod_id is 7, the "
        "tokenizer has 1. Bring manifest.json back."
    )


# --- splits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["validation", "test"])
def test_held_out_document_that_is_trained_on_is_found(whole: Path, name: str) -> None:
    train, held_out = documents_of(whole, "train"), documents_of(whole, name)
    forge(whole, "train", [*train[:3], held_out[2], *train[3:], held_out[0]])
    (problem,) = problems_of(whole)
    assert problem.startswith(
        f"2 train documents are in {name} too, the first is document 3 of train"
    )
    assert f" and 2 of {name}. A text has one split: prepare the text again." in problem


def test_equal_hashes_of_different_documents_are_no_repetition(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tst_megatron.data.verify.token_scan._BASE", 1)
    assert problems_of(whole) == []


def test_repetition_is_only_noted_where_the_tokenizer_normalises(
    training_texts: list[str], tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, normalizers

    folder = build_hugging_face(tmp_path / "tokenizer", training_texts)
    plain = load_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.save(str(folder / "tokenizer.json"))
    assert keeps_text(plain) and not keeps_text(load_tokenizer(folder))
    texts = [f"\ufb01ne {number}" for number in range(50)] + [f"fine {n}" for n in range(50)]
    source = write_jsonl(tmp_path / "source.jsonl", texts)
    prepare([source], folder, tmp_path / "out", workers=1, held_out_fraction=0.5)
    findings = verify_folder(load_manifest(tmp_path / "out"))
    assert findings.problems == []
    (note,) = findings.notes
    assert "train documents are in validation too, the first is document" in note
    assert "The tokenizer gives different texts the same tokens" in note


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_added_token_that_takes_in_spaces_does_not_keep_text(
    training_texts: list[str], tmp_path: Path, side: str
) -> None:
    from tokenizers import AddedToken, Tokenizer

    folder = build_hugging_face(tmp_path / "tokenizer", training_texts)

    def add(token: AddedToken) -> None:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_tokens([token])
        tokenizer.save(str(folder / "tokenizer.json"))

    add(AddedToken("<é>", normalized=False))
    assert keeps_text(load_tokenizer(folder))
    add(AddedToken("<mask>", normalized=False, **{side: True}))
    assert not keeps_text(load_tokenizer(folder))


def test_sentencepiece_keeps_text(tokenizer_model: Path) -> None:
    assert keeps_text(load_tokenizer(tokenizer_model))


def test_improbable_share_of_a_split_is_noted_and_is_no_fault(whole: Path) -> None:
    manifest = load_manifest(whole)
    assert share_notes(manifest) == []
    edit(whole / "manifest.json", lambda values: values["recipe"].update(held_out_fraction=0.4))
    (note,) = share_notes(load_manifest(whole))
    assert "of 240 documents, held_out_fraction 0.4 gives about 96" in note
    edit(whole / "manifest.json", lambda values: values["recipe"].update(held_out_fraction=0.001))
    (note,) = share_notes(load_manifest(whole))
    assert "held_out_fraction 0.001 gives about 0" in note


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.3])
@pytest.mark.parametrize("total", [1, 30, 1000, 20_000])
def test_shares_are_noted_by_the_tails_of_the_binomial_distribution(
    fraction: float, total: int
) -> None:
    numbers = np.arange(total + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    logarithms = factorials[total] - factorials - factorials[::-1]
    logarithms += numbers * math.log(fraction) + numbers[::-1] * math.log1p(-fraction)
    exact = np.exp(logarithms)
    tails = np.where(numbers < total * fraction, exact.cumsum(), exact[::-1].cumsum()[::-1])
    noted = np.array([split_shares._is_improbable(int(n), total, fraction) for n in numbers])
    assert tails[noted].max(initial=0.0) < 1e-6
    # The bound is less than exact: what it leaves out is still very improbable.
    assert tails[~noted].min() > 1e-9
    assert not split_shares._is_improbable(0, 0, fraction)


# --- command -------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def run(*arguments):
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["tst-megatron", "data", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out, click.unstyle(printed.err)

    return run


def test_whole_folders_have_a_line_each_and_status_0(command, whole: Path, with_bos: Path) -> None:
    status, out, error = command("verify", whole, with_bos / "manifest.json")
    assert (status, error) == (0, "")
    first, second = out.splitlines()
    train = load_manifest(whole).train
    assert first.startswith(
        f"{whole}: whole: train {train.documents} documents, {train.tokens:,} tokens; validation "
    )
    assert second.startswith(f"{with_bos}/manifest.json: whole: train ")


def test_all_problems_of_all_folders_are_listed_and_status_is_1(
    command, whole: Path, with_bos: Path, tmp_path: Path
) -> None:
    (with_bos / "train.bin").unlink()
    flip_last_byte(with_bos / "tokenizer" / "tokenizer.json")
    status, out, error = command("verify", with_bos, whole, tmp_path / "absent")
    assert (status, error) == (1, "")
    lines = out.splitlines()
    assert lines[0] == f"{with_bos}: 2 problems"
    assert "tokenizer: is not the tokenizer that made" in lines[1] and "is missing" in lines[2]
    assert lines[3].startswith(f"{whole}: whole: ")
    assert lines[4] == f"{tmp_path}/absent: 1 problem"
    assert "absent: no such manifest" in lines[5]


@pytest.mark.parametrize("end", ["", ".bin", ".idx"])
@pytest.mark.parametrize("name", ["verify", "inspect"])
def test_pair_of_another_tool_is_refused(command, whole: Path, name: str, end: str) -> None:
    (whole / "manifest.json").unlink()
    status, out, error = command(name, f"{whole}/train{end}")
    assert status == (1 if name == "verify" else 2)
    assert f"{whole}/train{end}: a .bin/.idx pair, which has no manifest of its own. Give" in (
        out + error
    )


def test_progress_counts_the_bytes(whole: Path) -> None:
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=True, width=200)
    assert prepared.verify([whole], console)
    assert (
        "reading whole" in printed.getvalue()
        and "100" not in ""
        and "whole: train" in (printed.getvalue())
    )


def test_time_in_which_the_tokenizer_loads_is_not_time_of_reading(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def load_slowly(*arguments, **options):
        now[0] += 100.0
        return load_tokenizer(*arguments, **options)

    monkeypatch.setattr(verifying, "load_tokenizer", load_slowly)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    printed = io.StringIO()
    assert prepared.verify([whole], Console(file=printed, width=200))
    # A first line would tell a speed of a few bytes in a minute, and hours that are left.
    assert now == [100.0] and "left" not in printed.getvalue()


def test_record_changes_nothing_of_a_whole_folder(whole: Path) -> None:
    before = load_manifest(whole)
    for name in before.splits():
        record(whole, name)
    assert load_manifest(whole).splits() == before.splits()
