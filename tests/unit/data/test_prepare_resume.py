"""A preparation that was killed, stopped or refused goes on from what is done."""

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
from merge_shards import contents, flip_last_byte
from text_folder import NUM_FILES, OPTIONS, parts_of, write_folder
from typer.testing import CliRunner

from tst_megatron.cli.app import app
from tst_megatron.data.prepare import encode_unit, join_parts, make_parts
from tst_megatron.data.prepare import parts as parts_module
from tst_megatron.data.prepare.parts import begin_parts, delete_parts, parts_folder
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.tokenizer import fast as fast_tokenizer
from tst_megatron.data.tokenizer.load import load_tokenizer
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.system.processes.lock import held

NEVER_DONE = """
import time
from tst_megatron.cli.app import app
from tst_megatron.data.prepare import join_parts as build
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
    texts: Path,
    tokenizer_model: Path,
    tmp_path: Path,
    monkeypatch,
    error: type[BaseException],
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(join_parts, "write_manifest", stop)
        with pytest.raises(error):
            prepare([texts], tokenizer_model, tmp_path / "output", **OPTIONS)
    parts = parts_of(tmp_path / "output")
    assert len(parts) == NUM_FILES and not (tmp_path / "output").exists()
    monkeypatch.setattr(make_parts, "encode_unit", lambda *arguments: pytest.fail("encoded again"))
    prepare([texts], tokenizer_model, tmp_path / "output", **OPTIONS)
    monkeypatch.undo()
    prepare([texts], tokenizer_model, tmp_path / "whole", **OPTIONS)
    assert contents(tmp_path / "output") == contents(tmp_path / "whole")


def test_other_settings_begin_anew_and_leave_what_is_done(
    texts: Path, tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    with pytest.raises(ValueError, match=r"no column|keys .*--text-key"):
        prepare([texts], tokenizer_model, output, text_key="body", **OPTIONS)
    other = {**OPTIONS, "held_out_fraction": 1e-9}
    with pytest.raises(ValueError, match="each split needs at least one"):
        prepare([texts], tokenizer_model, output, **other)
    assert len(parts_of(output)) >= NUM_FILES, "they serve with --allow-empty-splits"
    monkeypatch.setattr(join_parts, "append", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare([texts], tokenizer_model, output, **OPTIONS)
    monkeypatch.undo()
    prepare([texts], tokenizer_model, output, **OPTIONS)
    prepare([texts], tokenizer_model, tmp_path / "whole", **OPTIONS)
    assert contents(output) == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "text", "whole"]


def test_foreign_folder_in_the_place_of_the_parts_is_left_alone(
    texts: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "output.parts").mkdir()
    (tmp_path / "output.parts" / "precious").write_text("")
    with pytest.raises(ValueError, match=r"output\.parts: exists and is no folder of parts"):
        prepare([texts], tokenizer_model, tmp_path / "output", **OPTIONS)
    assert list(contents(tmp_path / "output.parts")) == ["precious"]


@pytest.mark.parametrize("name", ["train.bin", "train.idx", "part.json"])
def test_damaged_part_is_noticed(
    texts: Path, tokenizer_model: Path, tmp_path: Path, name: str
) -> None:
    output = tmp_path / "output"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(join_parts, "write_manifest", lambda *arguments, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare([texts], tokenizer_model, output, **OPTIONS)
    damaged = sorted(parts_of(output))[4]
    flip_last_byte(damaged / name)
    with pytest.raises(ValueError, match=rf"{damaged.name}.*damaged.*Delete"):
        prepare([texts], tokenizer_model, output, **OPTIONS)
    for file in damaged.iterdir():
        file.unlink()
    damaged.rmdir()
    prepare([texts], tokenizer_model, output, **OPTIONS)
    prepare([texts], tokenizer_model, tmp_path / "whole", **OPTIONS)
    assert contents(output) == contents(tmp_path / "whole")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_text_that_changes_meanwhile_is_refused_and_no_part_of_it_stays(
    texts: Path, tokenizer_model: Path, tmp_path: Path, monkeypatch, moment: str
) -> None:
    changed = texts / "02.jsonl"
    text, status = changed.read_bytes(), changed.stat()
    read_unit = encode_unit.read_unit

    def read_other_text(unit, text_key, advance):
        if unit.path == changed:
            changed.write_text(json.dumps({"text": "POISON"}) + "\n")
        yield from read_unit(unit, text_key, advance)
        if unit.path == changed and moment == "before":
            # Back again; the part is of the other text.
            changed.write_bytes(text)
            os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))

    with monkeypatch.context() as patch:
        patch.setattr(encode_unit, "read_unit", read_other_text)
        with pytest.raises(ValueError, match=r"02\.jsonl: was changed while it was read"):
            prepare([texts], tokenizer_model, tmp_path / "output", **OPTIONS)
    assert not (tmp_path / "output").exists()
    assert len(parts_of(tmp_path / "output")) == NUM_FILES - 1
    changed.write_bytes(text)
    prepare([texts], tokenizer_model, tmp_path / "output", **OPTIONS)
    assert b"POISON" not in decoded(tmp_path / "output", tokenizer_model)


def decoded(output: Path, tokenizer_model: Path) -> bytes:
    tokens = IndexedReader(output / "train")
    tokenizer = load_tokenizer(tokenizer_model)
    return "".join(
        tokenizer.decode(tokens.tokens(n).tolist()) for n in range(tokens.num_documents)
    ).encode()


def test_two_preparations_of_one_output_are_refused(
    texts: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    parts = parts_folder(tmp_path / "output")
    begin_parts(parts, {})
    with held(parts), pytest.raises(ValueError, match="in use by process"):
        prepare([texts], tokenizer_model, tmp_path / "output", **OPTIONS)
    prepare([texts], tokenizer_model, tmp_path / "output", **OPTIONS)


@pytest.mark.parametrize("moment", ["begin", "delete"])
def test_kill_while_parts_are_begun_or_deleted_is_got_over(
    texts: Path, tokenizer_model: Path, tmp_path: Path, monkeypatch, moment: str
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
    prepare([texts], tokenizer_model, output, **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "text"]


def test_output_that_is_a_link_is_made_where_it_leads(
    texts: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "output").symlink_to(tmp_path / "disk" / "own")
    prepare([texts], tokenizer_model, tmp_path / "output", **OPTIONS)
    assert (tmp_path / "disk" / "own" / "manifest.json").is_file()
    assert (tmp_path / "output").is_symlink()


def test_output_that_is_not_apart_from_the_text_is_refused(
    texts: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    for given, output in ((texts, texts / "out"), (tmp_path, tmp_path / "out")):
        with pytest.raises(ValueError, match="is not apart from the text"):
            prepare([given], tokenizer_model, output, **OPTIONS)
    with pytest.raises(ValueError, match="is not apart from the text"):
        prepare([f"{tmp_path}/*/*.jsonl"], tokenizer_model, texts, **OPTIONS)
    with pytest.raises(ValueError, match="is a mount point"):
        prepare([texts], tokenizer_model, Path("/proc"), **OPTIONS)


def test_full_disk_ends_it_at_once_and_is_no_fault_of_the_input(
    texts: Path, tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(make_parts, "encode_unit", full)
    with pytest.raises(OSError, match=r"No space left on device \(.*output\.parts"):
        prepare([texts], tokenizer_model, tmp_path / "output", **OPTIONS)


def test_parts_of_a_finished_output_are_deleted(
    texts: Path, tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    with monkeypatch.context() as patch:
        patch.setattr(join_parts, "delete_parts", lambda parts: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare([texts], tokenizer_model, output, **OPTIONS)
    assert output.is_dir() and parts_of(output)
    assert prepare([texts], tokenizer_model, output, **OPTIONS).reused
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "text"]


def test_tokenizer_is_named_as_it_was_given(
    texts: Path, hugging_face: Path, tmp_path: Path
) -> None:
    for name in ("none.model", "none"):
        with pytest.raises(
            FileNotFoundError, match=rf"{name}: no such file\. Give a SentencePiece"
        ):
            prepare([texts], tmp_path / name, tmp_path / "output", **OPTIONS)
    with pytest.raises(FileNotFoundError, match=r"text: no file of a Hugging Face tokenizer"):
        prepare([texts], texts, tmp_path / "output", **OPTIONS)
    copy = Path(shutil.copytree(hugging_face, tmp_path / "copy"))
    (copy / "tokenizer.json").write_text("{}")
    for eod_token in (None, "<|turn|>"):
        with pytest.raises(ValueError, match=rf"^{copy}: transformers cannot read"):
            prepare([texts], copy, tmp_path / "output", eod_token=eod_token, **OPTIONS)
    with pytest.raises(ValueError, match=r"--eod-token 'x': not among the tokenizer's added"):
        prepare([texts], hugging_face, tmp_path / "output", eod_token="x", **OPTIONS)
    assert not (tmp_path / "output").exists()


def test_hugging_face_tokenizer_gives_the_same_files_with_any_number_of_workers(
    texts: Path, hugging_face: Path, tmp_path: Path
) -> None:
    one = prepare([texts], hugging_face, tmp_path / "one", eod_token="<|turn|>", **OPTIONS)
    options = {**OPTIONS, "workers": 2}
    prepare([texts], hugging_face, tmp_path / "two", eod_token="<|turn|>", **options)
    assert contents(tmp_path / "one" / "tokenizer") == contents(tmp_path / "two" / "tokenizer")
    for path in sorted((tmp_path / "one").glob("*.*")):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert (one.tokenizer.bos_id, one.tokenizer.eod_id) == (0, 2)
    assert one.recipe["eod_token"] == "<|turn|>"
    tokens = IndexedReader(one.train.prefix)
    assert all(tokens.tokens(n)[0] == 0 and tokens.tokens(n)[-1] == 2 for n in range(20))


def test_killed_worker_and_missing_fast_encoder_are_said_with_status_1(
    texts: Path, hugging_face: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["data", "prepare", str(texts), "--tokenizer", str(hugging_face)]
    words += ["--output", str(tmp_path / "output"), "--workers", "1"]
    monkeypatch.setattr(fast_tokenizer, "import_if_there", lambda name: None)
    result = CliRunner().invoke(app, [*words, "--fast"])
    assert result.exit_code == 1 and "pip install 'tst-megatron[fast]'" in result.stderr

    def killed(*arguments: object, **options: object) -> None:
        raise RuntimeError("a worker process was killed")

    monkeypatch.setattr(make_parts, "in_order", killed)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1 and result.stderr == "a worker process was killed\n"


def test_fast_encoder_gives_the_same_files(
    texts: Path, hugging_face: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gigatoken")
    slow = prepare([texts], hugging_face, tmp_path / "slow", **OPTIONS)
    options = {**OPTIONS, "workers": 2}
    fast = prepare([texts], hugging_face, tmp_path / "fast", fast=True, **options)
    assert fast.train.bin_sha256 == slow.train.bin_sha256
    assert fast.validation.idx_sha256 == slow.validation.idx_sha256
    assert "gigatoken" in fast.versions and "gigatoken" not in slow.versions
    right = fast_tokenizer.FastTokenizer._documents

    def documents(self, data):
        pairs = zip(right(self, data), data, strict=True)
        return [ids[::-1] if b"Google" in text else ids for ids, text in pairs]

    monkeypatch.setattr(fast_tokenizer.FastTokenizer, "_documents", documents)
    with pytest.raises(RuntimeError, match=r"gigatoken .* gives other ids than tokenizers"):
        prepare([texts], hugging_face, tmp_path / "wrong", fast=True, **OPTIONS)
    assert not (tmp_path / "wrong").exists()
