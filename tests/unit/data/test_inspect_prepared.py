"""`data inspect` shows a folder as it is, also what a terminal would hide or obey."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
from forged_folders import documents_of, whole_once, with_bos_once  # noqa: F401
from merge_shards import TEXTS, flip_last_byte, write_jsonl

from tst_megatron.cli.app import main
from tst_megatron.cli.views import inspection as showing
from tst_megatron.data.manifest import load_manifest
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.tokenizer.load import load_tokenizer
from tst_megatron.data.tokens.format import idx_path
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.verify import inspect as inspecting
from tst_megatron.data.verify.inspect import (
    frequent_tokens,
    inspect,
    sample_documents,
    token_text,
    visible,
)

NASTY = (
    "\x1b[31mred\x1b[0m\ttab :smile: [bold]x[/bold] \u202eright to left\u202c nul\x00 del\x7f\r\n"
)


@pytest.fixture
def whole(whole_once: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(whole_once, tmp_path / "whole"))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def run(*arguments):
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["tst-megatron", "data", "inspect", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out, click.unstyle(printed.err)

    return run


def cells(out: str, name: str) -> list[str]:
    (line,) = (line for line in out.splitlines() if line.startswith(f"  {name:<16}"))
    return line.removeprefix(f"  {name:<16}").split()


# --- what is shown -------------------------------------------------------------------------------


def test_tokenizer_rules_and_counts_are_those_of_the_manifest(
    command,
    with_bos_once: Path,  # noqa: F811
) -> None:
    status, out, error = command(with_bos_once)
    assert (status, error) == (0, "")
    manifest = load_manifest(with_bos_once)
    facts = manifest.tokenizer
    assert f"  tokenizer  HuggingFace, {facts.vocab_size} ids, stored as uint16, sha256 " in out
    assert "  document   BOS (0) before every document; EOD (1) after every document\n" in out
    assert "  literal    special-token strings inside text are ordinary text" in out
    assert "  made of    1 file: source.jsonl\n" in out
    splits = manifest.splits()
    assert cells(out, "") == ["train", "validation", "test"]
    assert cells(out, "documents") == [f"{split.documents:,}" for split in splits.values()]
    assert cells(out, "tokens") == [f"{split.tokens:,}" for split in splits.values()]
    lengths = {name: [len(each) for each in documents_of(with_bos_once, name)] for name in splits}
    assert cells(out, "mean length") == [f"{np.mean(each):,.1f}" for each in lengths.values()]
    for name, percent in (("median", 50), ("90th percentile", 90), ("99th percentile", 99)):
        assert cells(out, name) == [
            str(np.percentile(each, percent, method="inverted_cdf")) for each in lengths.values()
        ]
    assert cells(out, "longest") == [str(max(each)) for each in lengths.values()]
    assert cells(out, "below 1,024") == ["100.0", "%"] * 3


def test_histogram_has_a_bar_for_each_doubling(command, whole: Path) -> None:
    _, out, _ = command(whole, "--split", "validation", "--samples", "0")
    lengths = [len(document) for document in documents_of(whole, "validation")]
    table = out.split("lengths of documents in tokens, validation:\n")[1].split("\n\n")[0]
    rows = [line for line in table.splitlines()[1:]]
    for row in rows:
        low, high, *bar, documents, tokens = row.split()
        inside = [n for n in lengths if int(low) <= n <= int(high)]
        assert float(documents) == pytest.approx(100 * len(inside) / len(lengths), abs=0.051)
        assert float(tokens) == pytest.approx(100 * sum(inside) / sum(lengths), abs=0.051)
        assert bool(bar) == bool(inside)
    assert max(len(row.split()[2]) for row in rows) == showing.BAR_CHARACTERS


def test_samples_are_whole_texts_that_the_seed_chooses(command, whole: Path) -> None:
    _, first, _ = command(whole, "--samples", "4", "--seed", "3")
    assert command(whole, "--samples", "4", "--seed", "3")[1] == first
    assert command(whole, "--samples", "4", "--seed", "4")[1] != first
    samples = first.split("\n\n--- train document ")[1:]
    assert len(samples) == 4
    documents = documents_of(whole, "train")
    tokenizer = load_tokenizer(whole / "tokenizer.model")
    for sample in samples:
        head, text = sample.split("\n", 1)
        number, length = head.removesuffix(" tokens").split(", ")
        assert len(documents[int(number)]) == int(length)
        assert text in TEXTS or text.removesuffix("\n") in TEXTS
        assert tokenizer.decode(documents[int(number)]).rstrip("\n") == text.rstrip("\n")


def test_bos_and_eod_are_no_part_of_the_text_but_of_the_tokens(
    with_bos_once: Path,  # noqa: F811
) -> None:
    found = inspect(load_manifest(with_bos_once), split="test", num_samples=1000, seed=0)
    documents = documents_of(with_bos_once, "test")
    assert sorted(sample.document for sample in found.samples) == list(range(len(documents)))
    assert all(sample.text in TEXTS for sample in found.samples)
    num_bytes = sum(len(sample.text) for sample in found.samples)
    assert found.bytes_per_token == num_bytes / sum(len(document) for document in documents)


def test_long_documents_are_cut(
    command, tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "source.jsonl", ["word " * 5000, "x" * 1500])
    settings = {"held_out_fraction": 1e-9, "allow_empty_splits": True, "workers": 1}
    prepare([source], tokenizer_model, tmp_path / "long", **settings)
    _, out, _ = command(tmp_path / "long")
    assert out.count("--- cut after 1,000 characters\n") == 2
    assert "x" * 1001 not in out and "x" * 1000 in out
    monkeypatch.setattr(inspecting, "TOKENS_DECODED", 6)
    found = inspect(load_manifest(tmp_path / "long"), split="train", num_samples=2, seed=0)
    assert all(sample.num_decoded == 6 < sample.num_tokens for sample in found.samples)
    assert all(0 < len(sample.text) < 60 for sample in found.samples)
    tokens = found.samples[0].num_decoded + found.samples[1].num_decoded
    assert found.bytes_per_token == sum(len(sample.text) for sample in found.samples) / tokens
    _, out, _ = command(tmp_path / "long")
    assert out.count("--- cut after ") == 2


def test_terminal_obeys_nothing_of_a_text(command, hugging_face: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "source.jsonl", [NASTY])
    prepare([source], hugging_face, tmp_path / "nasty", workers=1, allow_empty_splits=True)
    _, out, _ = command(tmp_path / "nasty")
    assert (
        "\u241b[31mred\u241b[0m\u2409tab :smile: [bold]x[/bold] <U+202E>right to left<U+202C> "
        "nul\u2400 del\u2421\u240d\n"
    ) in out
    assert not set(out) & set("\x1b\x00\x7f\r\t\u202e")
    # An added token that is not special: it is said, for a text that spells it has its id.
    assert "  added      in text these are their ids: <tool>\n" in out


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\nb c", "a\nb c"),
        ("\u00a0\u200b\ufeff", "<U+00A0><U+200B><U+FEFF>"),
        ("\x85", "<U+0085>"),
    ],
)
def test_invisible_characters_are_seen(text: str, seen: str) -> None:
    assert visible(text) == seen


# --- frequent tokens -----------------------------------------------------------------------------


def test_frequent_tokens_are_those_of_the_whole_split(whole: Path) -> None:
    tokenizer = load_tokenizer(whole / "tokenizer.model")
    num_counted, found = frequent_tokens(IndexedReader(whole / "train"), tokenizer)
    every = [token for document in documents_of(whole, "train") for token in document]
    counts = np.bincount(every)
    assert num_counted == len(every) and len(found) == inspecting.NUM_FREQUENT
    assert [each.fraction for each in found] == sorted(counts / len(every), reverse=True)[:20]
    assert all(each.fraction == counts[each.token] / len(every) for each in found)
    (end,) = (each for each in found if each.token == 2)
    assert end.text == "EOD" and any(each.text.startswith(" ") for each in found)


def test_frequent_tokens_of_a_long_split_are_of_stretches_of_all_of_it(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(whole / "tokenizer.model")
    reader = IndexedReader(whole / "train")
    monkeypatch.setattr(inspecting, "TOKENS_COUNTED", reader.num_tokens // 2)
    monkeypatch.setattr(inspecting, "NUM_STRETCHES", 4)
    taken = []
    monkeypatch.setattr(
        IndexedReader,
        "stretch",
        lambda self, start, stop: taken.append((start, stop)) or self._tokens[start:stop],
    )
    num_counted, _ = frequent_tokens(reader, tokenizer)
    length = reader.num_tokens // 2 // 4
    assert num_counted == 4 * length
    assert taken[0] == (0, length) and taken[-1] == (reader.num_tokens - length, reader.num_tokens)
    assert all(before[1] <= after[0] for before, after in zip(taken, taken[1:], strict=False))


def test_text_of_a_token_has_its_space_and_no_control_character(
    tokenizer_model: Path, hugging_face: Path
) -> None:
    for source in (tokenizer_model, hugging_face):
        tokenizer = load_tokenizer(source)
        texts = {token_text(tokenizer, token) for token in range(tokenizer.facts.vocab_size)}
        assert {"EOD", " the", "\n", "\u2409"} & texts >= {"EOD", "\n"} and " the" in texts
        assert not any(character in text for text in texts for character in "\t\x1b")
    assert token_text(tokenizer, 0) == "BOS"


def test_text_of_a_token_has_its_space_where_a_text_would_lose_it() -> None:
    class Stripping:
        """As SentencePiece models with a dummy prefix decode."""

        facts = SimpleNamespace(eod_id=2, bos_id=None)

        def decode(self, ids: list[int]) -> str:
            return "".join([" the", "x"][token] for token in ids).removeprefix(" ")

    assert [token_text(Stripping(), token) for token in (0, 1)] == [" the", "x"]


# --- refusals and pictures -----------------------------------------------------------------------


def test_split_that_is_not_there_is_refused(command, whole: Path) -> None:
    status, out, error = command(whole, "--split", "dev")
    assert (status, out) == (2, "")
    assert f"--split dev: {whole} has train, validation, test. Name one of these." in error


def test_folder_without_its_tokenizer_or_with_a_damaged_index_is_refused(
    command, whole: Path
) -> None:
    path = idx_path(whole / "train")
    content = bytearray(path.read_bytes())
    content[34:38] = bytes(4)
    path.write_bytes(content)
    status, _, error = command(whole)
    assert status == 2 and "train.idx: document 0 has 0 tokens, so the index is damaged" in error
    flip_last_byte(whole / "tokenizer.model")
    status, _, error = command(whole)
    assert status == 2 and "tokenizer.model: is not the tokenizer that made this text" in error


def test_empty_split_of_a_shard_is_shown(command, tokenizer_model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "few.jsonl", [TEXTS[1]])
    prepare([source], tokenizer_model, tmp_path / "few", workers=1, allow_empty_splits=True)
    status, out, _ = command(tmp_path / "few", "--split", "validation")
    assert status == 0
    assert cells(out, "documents") == ["1", "0"] and cells(out, "median")[1] == "-"
    assert "most frequent" not in out
    picture = tmp_path / "picture.png"
    status, _, error = command(tmp_path / "few", "--split", "validation", "--picture", picture)
    assert status == 2 and "--picture: validation has no document to draw" in error
    assert not picture.exists()


def test_picture_is_drawn_and_nothing_is_left_beside_it(
    command, whole: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "new" / "picture.png"
    status, out, _ = command(whole, "--picture", picture)
    assert status == 0 and out.endswith(f"\n{picture}: lengths of documents, train\n")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list(picture.parent.iterdir()) == [picture]


def test_samples_of_a_huge_split_cost_no_list_of_its_documents(whole: Path) -> None:
    class Huge:
        num_documents = 2 * 10**9
        document_lengths = type("Lengths", (), {"__getitem__": lambda self, number: 3})()

        def tokens(self, document, offset, length):
            return np.array([5, 6, 2], dtype=np.uint16)

    tokenizer = load_tokenizer(whole / "tokenizer.model")
    assert len(sample_documents(Huge(), tokenizer, 5, 0)) == 5
