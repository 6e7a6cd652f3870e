"""Text that cannot be read: all of it is named at once, or left out where that is allowed."""

import io
import json
from pathlib import Path

import pytest
import zstandard
from merge_shards import contents, write_jsonl
from rich.console import Console
from text_folder import NUM_FILES, OPTIONS, parts_of

from tst_megatron.data.prepare import encode_unit
from tst_megatron.data.prepare.prepare import prepare


def test_all_that_cannot_be_read_is_named_at_once_and_the_rest_is_kept(
    texts: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    good = (texts / "03.jsonl").read_bytes()
    packed = zstandard.ZstdCompressor().compress(good)
    (texts / "03.jsonl").unlink()
    (texts / "03.jsonl.zst").write_bytes(packed[: len(packed) // 2])
    (texts / "05.jsonl").write_bytes(b"")
    with (texts / "07.jsonl").open("a") as file:
        file.write("{}\n[1]\n")
    output = tmp_path / "output"
    with pytest.raises(ValueError) as caught:
        prepare([texts], tokenizer_model, output, held_out_fraction=0.1, workers=2)
    lines = str(caught.value).splitlines()
    number = len(good.splitlines())
    starts = [
        f"{texts}/03.jsonl.zst: packed file is damaged or cut short (the last frame has no end)",
        f"{texts}/05.jsonl: holds no document.",
        f"{texts}/07.jsonl, line {number + 1}: keys [], a JSON object with the key 'text'",
        f"{texts}/07.jsonl, line {number + 2}: no object, a JSON object with the key 'text'",
        "--max-rejected-fraction leaves out lines that hold no document.",
        f"What is done is kept in {output}.parts",
    ]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    before = parts_of(output)
    assert len(before) == NUM_FILES - 1 and not output.exists()
    # Mended, and with a file more: what was right is not made again.
    (texts / "03.jsonl.zst").write_bytes(packed)
    (texts / "05.jsonl").unlink()
    (texts / "07.jsonl").write_bytes((texts / "07.jsonl").read_bytes()[: -len("{}\n[1]\n")])
    write_jsonl(texts / "00-first.jsonl", ["another text\n" * 9])
    text = io.StringIO()
    prepare([texts], tokenizer_model, output, **OPTIONS, console=Console(file=text))
    assert f"going on: {NUM_FILES - 3} of {NUM_FILES} units are there" in text.getvalue()
    prepare([texts], tokenizer_model, tmp_path / "whole", **OPTIONS)
    assert contents(output) == contents(tmp_path / "whole")


def test_many_problems_end_the_search(texts: Path, tokenizer_model: Path, tmp_path: Path) -> None:
    for path in texts.iterdir():
        path.write_text("{}\n" * 30)
    with pytest.raises(ValueError) as caught:
        prepare([texts], tokenizer_model, tmp_path / "output", **OPTIONS)
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
    texts: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    prepare([texts], tokenizer_model, tmp_path / "whole", **OPTIONS)
    (texts / "empty.jsonl").write_bytes(b"")
    for name in ("04.jsonl", "11.jsonl"):
        text = (texts / name).read_text()
        (texts / name).write_text("nothing\n" + text)
    num_lines = 2 + sum(len(path.read_text().splitlines()) for path in texts.iterdir()) - 2
    output = tmp_path / "output"
    allowed = {"max_rejected_fraction": 2 / num_lines, **OPTIONS}
    with pytest.raises(ValueError, match=rf": 2 of {num_lines:,} lines hold no document"):
        prepare(
            [texts],
            tokenizer_model,
            output,
            **{**allowed, "max_rejected_fraction": 1.9 / num_lines},
        )
    parts = parts_of(output)
    assert len(parts) == NUM_FILES + 1
    manifest = prepare([texts], tokenizer_model, output, **allowed)
    assert manifest.left_out.rejected == 3
    listed = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert [(each["file"], each["line"]) for each in listed] == [
        ("04.jsonl", 1),
        ("11.jsonl", 1),
        ("empty.jsonl", 0),
    ]
    assert "not JSON in UTF-8" in listed[0]["problem"]
    assert prepare([texts], tokenizer_model, output, **allowed).reused
    with pytest.raises(ValueError, match=r"was prepared without 3 lines or files .*rejected.jsonl"):
        prepare([texts], tokenizer_model, output, **OPTIONS)
    for name in ("train.bin", "train.idx", "validation.bin", "validation.idx"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_share_that_is_allowed_may_be_many_lines(tokenizer_model: Path, tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "a.jsonl", [f"text {number}" for number in range(600)])
    with good.open("a") as file:
        file.write("{}\n" * 400)
    options = {**OPTIONS, "max_rejected_fraction": 0.41}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_unit, "MOST_REJECTED", 100)
        manifest = prepare([good], tokenizer_model, tmp_path / "output", **options)
    assert manifest.left_out.rejected == 400
