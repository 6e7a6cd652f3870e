"""A preparation that was killed, stopped or refused goes on from what is done."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard
from merge_shards import contents, flip_last_byte, write_jsonl
from rich.console import Console
from typer.testing import CliRunner

from tst_megatron.cli import app
from tst_megatron.data import build, encode, fast_tokenizer
from tst_megatron.data import parts as parts_module
from tst_megatron.data.indexed import IndexedReader
from tst_megatron.data.parts import begin_parts, delete_parts, locked, parts_folder
from tst_megatron.data.prepare import prepare
from tst_megatron.data.tokenizer import load_tokenizer

NUM_FILES = 12
OPTIONS = {"held_out_fraction": 0.1, "workers": 1}


def write_folder(folder: Path, texts: list[str]) -> Path:
    """Files of text, a fifth of the texts in each."""
    folder.mkdir()
    for number in range(NUM_FILES):
        some = [f"{number}\n{text}" for text in texts[number % 5 :: 5]]
        write_jsonl(folder / f"{number:02d}.jsonl", some)
    return folder


@pytest.fixture
def folder(training_texts: list[str], tmp_path: Path) -> Path:
    """Files of text that are encoded in a moment."""
    return write_folder(tmp_path / "text", [text[:900] for text in training_texts])


def parts_of(output: Path) -> dict[Path, int]:
    """The parts that are done, and when each was."""
    files = output.with_name(f"{output.name}.parts").glob("[!.]*/part.json")
    return {file.parent: file.stat().st_mtime_ns for file in files}


NEVER_DONE = """
import time
from tst_megatron.cli import app
from tst_megatron.data import build
build.write_manifest = lambda *arguments, **options: time.sleep(600)
app()
"""
"""A command that encodes and joins, and then waits to be killed."""


def run_until(output: Path, command: list[str], num_parts: int, delay: float) -> None:
    """Start a preparation, and kill all its processes once so many parts are done."""
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(parts_of(output)) < num_parts and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_at_random_and_started_again_gives_the_same_files(
    training_texts: list[str], tokenizer_model: Path, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "text", [text[:20_000] for text in training_texts])
    whole, output = tmp_path / "whole", tmp_path / "output"
    prepare([folder], tokenizer_model, whole, **OPTIONS)
    command = ["data", "prepare", str(folder), "--tokenizer", str(tokenizer_model)]
    command += ["--output", str(output), "--held-out-fraction", "0.1", "--workers", "2"]
    chance = random.Random(8)
    for _ in range(3):
        before = parts_of(output)
        wanted = min(len(before) + chance.randrange(1, 4), NUM_FILES)
        run_until(output, [sys.executable, "-c", NEVER_DONE, *command], wanted, chance.random() / 4)
        after = parts_of(output)
        assert not output.exists() and len(after) >= wanted
        assert before.items() <= after.items(), "what was done is not done again"
    done = subprocess.run(
        [sys.executable, "-m", "tst_megatron", *command], capture_output=True, text=True, check=True
    )
    assert f"going on: {len(after)} of {NUM_FILES} units are there" in done.stdout
    assert contents(output) == contents(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "text", "whole"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_stopped_while_joining_keeps_the_parts(
    folder: Path, tokenizer_model: Path, tmp_path: Path, monkeypatch, error: type[BaseException]
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_manifest", stop)
        with pytest.raises(error):
            prepare([folder], tokenizer_model, tmp_path / "output", **OPTIONS)
    parts = parts_of(tmp_path / "output")
    assert len(parts) == NUM_FILES and not (tmp_path / "output").exists()
    monkeypatch.setattr(build, "encode_unit", lambda *arguments: pytest.fail("encoded again"))
    prepare([folder], tokenizer_model, tmp_path / "output", **OPTIONS)
    monkeypatch.undo()
    prepare([folder], tokenizer_model, tmp_path / "whole", **OPTIONS)
    assert contents(tmp_path / "output") == contents(tmp_path / "whole")


def test_all_that_cannot_be_read_is_named_at_once_and_the_rest_is_kept(
    folder: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    good = (folder / "03.jsonl").read_bytes()
    packed = zstandard.ZstdCompressor().compress(good)
    (folder / "03.jsonl").unlink()
    (folder / "03.jsonl.zst").write_bytes(packed[: len(packed) // 2])
    (folder / "05.jsonl").write_bytes(b"")
    with (folder / "07.jsonl").open("a") as file:
        file.write("{}\n[1]\n")
    output = tmp_path / "output"
    with pytest.raises(ValueError) as caught:
        prepare([folder], tokenizer_model, output, held_out_fraction=0.1, workers=2)
    lines = str(caught.value).splitlines()
    number = len(good.splitlines())
    starts = [
        f"{folder}/03.jsonl.zst: packed file is damaged or cut short (the last frame has no end)",
        f"{folder}/05.jsonl: holds no document.",
        f"{folder}/07.jsonl, line {number + 1}: keys [], a JSON object with the key 'text'",
        f"{folder}/07.jsonl, line {number + 2}: no object, a JSON object with the key 'text'",
        "--max-rejected-fraction leaves out lines that hold no document.",
        f"What is done is kept in {output}.parts",
    ]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    before = parts_of(output)
    assert len(before) == NUM_FILES - 1 and not output.exists()
    # Mended, and with a file more: what was right is not made again.
    (folder / "03.jsonl.zst").write_bytes(packed)
    (folder / "05.jsonl").unlink()
    (folder / "07.jsonl").write_bytes((folder / "07.jsonl").read_bytes()[: -len("{}\n[1]\n")])
    write_jsonl(folder / "00-first.jsonl", ["another text\n" * 9])
    text = io.StringIO()
    prepare([folder], tokenizer_model, output, **OPTIONS, console=Console(file=text))
    assert f"going on: {NUM_FILES - 3} of {NUM_FILES} units are there" in text.getvalue()
    prepare([folder], tokenizer_model, tmp_path / "whole", **OPTIONS)
    assert contents(output) == contents(tmp_path / "whole")


def test_many_problems_end_the_search(folder: Path, tokenizer_model: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        path.write_text("{}\n" * 30)
    with pytest.raises(ValueError) as caught:
        prepare([folder], tokenizer_model, tmp_path / "output", **OPTIONS)
    lines = str(caught.value).splitlines()
    assert len(lines) == 23 and lines[20] == "... and 10 more"
    assert len(parts_of(tmp_path / "output")) == 1


def test_unit_with_hardly_any_document_is_given_up(tokenizer_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [f"text {number}" for number in range(10_050)], key="body")
    with pytest.raises(ValueError, match=r"10,050 of 10,050 lines hold no document\. The first: "):
        prepare(
            [tmp_path / "a.jsonl"],
            tokenizer_model,
            tmp_path / "output",
            max_rejected_fraction=0.999,
            **OPTIONS,
        )


def test_rejected_lines_are_left_out_and_listed_if_allowed(
    folder: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    prepare([folder], tokenizer_model, tmp_path / "whole", **OPTIONS)
    (folder / "empty.jsonl").write_bytes(b"")
    for name in ("04.jsonl", "11.jsonl"):
        text = (folder / name).read_text()
        (folder / name).write_text("nothing\n" + text)
    num_lines = 2 + sum(len(path.read_text().splitlines()) for path in folder.iterdir()) - 2
    output = tmp_path / "output"
    allowed = {"max_rejected_fraction": 2 / num_lines, **OPTIONS}
    with pytest.raises(ValueError, match=rf": 2 of {num_lines:,} lines hold no document"):
        prepare(
            [folder],
            tokenizer_model,
            output,
            **{**allowed, "max_rejected_fraction": 1.9 / num_lines},
        )
    parts = parts_of(output)
    assert len(parts) == NUM_FILES + 1
    manifest = prepare([folder], tokenizer_model, output, **allowed)
    assert manifest.left_out.rejected == 3
    listed = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert [(each["file"], each["line"]) for each in listed] == [
        ("04.jsonl", 1),
        ("11.jsonl", 1),
        ("empty.jsonl", 0),
    ]
    assert "not JSON in UTF-8" in listed[0]["problem"]
    assert prepare([folder], tokenizer_model, output, **allowed).reused
    with pytest.raises(ValueError, match=r"was prepared without 3 lines or files .*rejected.jsonl"):
        prepare([folder], tokenizer_model, output, **OPTIONS)
    for name in ("train.bin", "train.idx", "validation.bin", "validation.idx"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_settings_begin_anew_and_leave_what_is_done(
    folder: Path, tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    with pytest.raises(ValueError, match=r"no column|keys .*--text-key"):
        prepare([folder], tokenizer_model, output, text_key="body", **OPTIONS)
    other = {**OPTIONS, "held_out_fraction": 1e-9}
    with pytest.raises(ValueError, match="each split needs at least one"):
        prepare([folder], tokenizer_model, output, **other)
    assert len(parts_of(output)) >= NUM_FILES, "they serve with --allow-empty-splits"
    monkeypatch.setattr(build, "append", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare([folder], tokenizer_model, output, **OPTIONS)
    monkeypatch.undo()
    prepare([folder], tokenizer_model, output, **OPTIONS)
    prepare([folder], tokenizer_model, tmp_path / "whole", **OPTIONS)
    assert contents(output) == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "text", "whole"]


def test_foreign_folder_in_the_place_of_the_parts_is_left_alone(
    folder: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "output.parts").mkdir()
    (tmp_path / "output.parts" / "precious").write_text("")
    with pytest.raises(ValueError, match=r"output\.parts: exists and is no folder of parts"):
        prepare([folder], tokenizer_model, tmp_path / "output", **OPTIONS)
    assert list(contents(tmp_path / "output.parts")) == ["precious"]


@pytest.mark.parametrize("name", ["train.bin", "train.idx", "part.json"])
def test_damaged_part_is_noticed(
    folder: Path, tokenizer_model: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "output"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "write_manifest", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare([folder], tokenizer_model, output, **OPTIONS)
    damaged = sorted(parts_of(output))[4]
    flip_last_byte(damaged / name)
    with pytest.raises(ValueError, match=rf"{damaged.name}.*damaged.*Delete"):
        prepare([folder], tokenizer_model, output, **OPTIONS)
    for file in damaged.iterdir():
        file.unlink()
    damaged.rmdir()
    prepare([folder], tokenizer_model, output, **OPTIONS)
    prepare([folder], tokenizer_model, tmp_path / "whole", **OPTIONS)
    assert contents(output) == contents(tmp_path / "whole")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_text_that_changes_meanwhile_is_refused_and_no_part_of_it_stays(
    folder: Path, tokenizer_model: Path, tmp_path: Path, monkeypatch, moment: str
) -> None:
    changed = folder / "02.jsonl"
    text, status = changed.read_bytes(), changed.stat()
    read_unit = encode.read_unit

    def read_other_text(unit, text_key, advance):
        if unit.path == changed:
            changed.write_text(json.dumps({"text": "POISON"}) + "\n")
        yield from read_unit(unit, text_key, advance)
        if unit.path == changed and moment == "before":
            # Back again; the part is of the other text.
            changed.write_bytes(text)
            os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))

    with monkeypatch.context() as patch:
        patch.setattr(encode, "read_unit", read_other_text)
        with pytest.raises(ValueError, match=r"02\.jsonl: was changed while it was read"):
            prepare([folder], tokenizer_model, tmp_path / "output", **OPTIONS)
    assert not (tmp_path / "output").exists()
    assert len(parts_of(tmp_path / "output")) == NUM_FILES - 1
    changed.write_bytes(text)
    prepare([folder], tokenizer_model, tmp_path / "output", **OPTIONS)
    assert b"POISON" not in decoded(tmp_path / "output", tokenizer_model)


def decoded(output: Path, tokenizer_model: Path) -> bytes:
    tokens = IndexedReader(output / "train")
    tokenizer = load_tokenizer(tokenizer_model)
    return "".join(
        tokenizer.decode(tokens.tokens(n).tolist()) for n in range(tokens.num_documents)
    ).encode()


def test_two_preparations_of_one_output_are_refused(
    folder: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    parts = parts_folder(tmp_path / "output")
    begin_parts(parts, {})
    with locked(parts), pytest.raises(ValueError, match="another preparation of this output is"):
        prepare([folder], tokenizer_model, tmp_path / "output", **OPTIONS)
    prepare([folder], tokenizer_model, tmp_path / "output", **OPTIONS)


@pytest.mark.parametrize("moment", ["begin", "delete"])
def test_kill_while_parts_are_begun_or_deleted_is_got_over(
    folder: Path, tokenizer_model: Path, tmp_path: Path, monkeypatch, moment: str
) -> None:
    output = tmp_path / "output"
    parts = parts_folder(output)
    if moment == "begin":
        parts.mkdir()
        (parts / ".PARTS.host.7").write_text("")
    else:
        with monkeypatch.context() as patch:
            patch.setattr(parts_module.shutil, "rmtree", lambda path, **options: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                begin_parts(parts, {})
                delete_parts(parts)
        assert not parts.exists() and list(tmp_path.glob(".output.parts.*.deleted"))
    prepare([folder], tokenizer_model, output, **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "text"]


def test_output_that_is_a_link_is_made_where_it_leads(
    folder: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "output").symlink_to(tmp_path / "disk" / "own")
    prepare([folder], tokenizer_model, tmp_path / "output", **OPTIONS)
    assert (tmp_path / "disk" / "own" / "manifest.json").is_file()
    assert (tmp_path / "output").is_symlink()


def test_output_that_is_not_apart_from_the_text_is_refused(
    folder: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    for given, output in ((folder, folder / "out"), (tmp_path, tmp_path / "out")):
        with pytest.raises(ValueError, match="is not apart from the text"):
            prepare([given], tokenizer_model, output, **OPTIONS)
    with pytest.raises(ValueError, match="is not apart from the text"):
        prepare([f"{tmp_path}/*/*.jsonl"], tokenizer_model, folder, **OPTIONS)
    with pytest.raises(ValueError, match="is a mount point"):
        prepare([folder], tokenizer_model, Path("/proc"), **OPTIONS)


def test_full_disk_ends_it_at_once_and_is_no_fault_of_the_input(
    folder: Path, tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "encode_unit", full)
    with pytest.raises(OSError, match=r"No space left on device \(.*output\.parts"):
        prepare([folder], tokenizer_model, tmp_path / "output", **OPTIONS)


def test_parts_of_a_finished_output_are_deleted(
    folder: Path, tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    with monkeypatch.context() as patch:
        patch.setattr(build, "delete_parts", lambda parts: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare([folder], tokenizer_model, output, **OPTIONS)
    assert output.is_dir() and parts_of(output)
    assert prepare([folder], tokenizer_model, output, **OPTIONS).reused
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "text"]


def test_tokenizer_is_named_as_it_was_given(
    folder: Path, hugging_face: Path, tmp_path: Path
) -> None:
    for name in ("none.model", "none"):
        with pytest.raises(
            FileNotFoundError, match=rf"{name}: no such file\. Give a SentencePiece"
        ):
            prepare([folder], tmp_path / name, tmp_path / "output", **OPTIONS)
    with pytest.raises(FileNotFoundError, match=r"text: no file of a Hugging Face tokenizer"):
        prepare([folder], folder, tmp_path / "output", **OPTIONS)
    copy = Path(shutil.copytree(hugging_face, tmp_path / "copy"))
    (copy / "tokenizer.json").write_text("{}")
    for eod_token in (None, "<|turn|>"):
        with pytest.raises(ValueError, match=rf"^{copy}: transformers cannot read"):
            prepare([folder], copy, tmp_path / "output", eod_token=eod_token, **OPTIONS)
    with pytest.raises(ValueError, match=r"--eod-token 'x': not among the tokenizer's added"):
        prepare([folder], hugging_face, tmp_path / "output", eod_token="x", **OPTIONS)
    assert not (tmp_path / "output").exists()


def test_hugging_face_tokenizer_gives_the_same_files_with_any_number_of_workers(
    folder: Path, hugging_face: Path, tmp_path: Path
) -> None:
    one = prepare([folder], hugging_face, tmp_path / "one", eod_token="<|turn|>", **OPTIONS)
    options = {**OPTIONS, "workers": 2}
    prepare([folder], hugging_face, tmp_path / "two", eod_token="<|turn|>", **options)
    assert contents(tmp_path / "one" / "tokenizer") == contents(tmp_path / "two" / "tokenizer")
    for path in sorted((tmp_path / "one").glob("*.*")):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert (one.tokenizer.bos_id, one.tokenizer.eod_id) == (0, 2)
    assert one.recipe["eod_token"] == "<|turn|>"
    tokens = IndexedReader(one.train.prefix)
    assert all(tokens.tokens(n)[0] == 0 and tokens.tokens(n)[-1] == 2 for n in range(20))


def test_killed_worker_and_missing_fast_encoder_are_said_with_status_1(
    folder: Path, hugging_face: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["data", "prepare", str(folder), "--tokenizer", str(hugging_face)]
    words += ["--output", str(tmp_path / "output"), "--workers", "1"]
    monkeypatch.setattr(fast_tokenizer, "import_if_there", lambda name: None)
    result = CliRunner().invoke(app, [*words, "--fast"])
    assert result.exit_code == 1 and "pip install 'tst-megatron[fast]'" in result.stderr

    def killed(*arguments: object, **options: object) -> None:
        raise RuntimeError("a worker process was killed")

    monkeypatch.setattr(build, "in_order", killed)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1 and result.stderr == "a worker process was killed\n"


def test_fast_encoder_gives_the_same_files(
    folder: Path, hugging_face: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gigatoken")
    slow = prepare([folder], hugging_face, tmp_path / "slow", **OPTIONS)
    options = {**OPTIONS, "workers": 2}
    fast = prepare([folder], hugging_face, tmp_path / "fast", fast=True, **options)
    assert fast.train.bin_sha256 == slow.train.bin_sha256
    assert fast.validation.idx_sha256 == slow.validation.idx_sha256
    assert "gigatoken" in fast.versions and "gigatoken" not in slow.versions
    right = fast_tokenizer.FastTokenizer._documents

    def documents(self, data):
        pairs = zip(right(self, data), data, strict=True)
        return [ids[::-1] if b"Google" in text else ids for ids, text in pairs]

    monkeypatch.setattr(fast_tokenizer.FastTokenizer, "_documents", documents)
    with pytest.raises(RuntimeError, match=r"gigatoken .* gives other ids than tokenizers"):
        prepare([folder], hugging_face, tmp_path / "wrong", fast=True, **OPTIONS)
    assert not (tmp_path / "wrong").exists()


def test_share_that_is_allowed_may_be_many_lines(tokenizer_model: Path, tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "a.jsonl", [f"text {number}" for number in range(600)])
    with good.open("a") as file:
        file.write("{}\n" * 400)
    options = {**OPTIONS, "max_rejected_fraction": 0.41}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "MOST_REJECTED", 100)
        manifest = prepare([good], tokenizer_model, tmp_path / "output", **options)
    assert manifest.left_out.rejected == 400
