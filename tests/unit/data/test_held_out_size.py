"""A held-out text that is too small to measure on is said when it is prepared, with what to do."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
from merge_shards import TEXTS, write_jsonl

from tst_megatron.cli.app import main
from tst_megatron.data.manifest import Manifest, Split, load_manifest
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.stream.corpora import Corpus, held_out_problems
from tst_megatron.data.verify.held_out_size import fraction_for, held_out_warnings, num_sequences


def manifest_of(**splits: tuple[int, int]) -> Manifest:
    """A folder whose splits have so many documents and tokens."""
    made = {
        name: Split(
            prefix=Path(name),
            documents=documents,
            tokens=tokens,
            bin_sha256="",
            idx_sha256="",
            bin_fingerprint="",
            idx_fingerprint="",
        )
        for name, (documents, tokens) in splits.items()
    }
    return Manifest(
        path=Path("text/manifest.json"),
        train=made["train"],
        validation=made["validation"],
        test=made.get("test"),
        unigram_entropy_nats=1.0,
        tokenizer=SimpleNamespace(),  # type: ignore[arg-type]
        tokenizer_path=Path("t"),
        dtype="uint16",
        left_out=SimpleNamespace(),  # type: ignore[arg-type]
        recipe={"held_out_fraction": 0.01, "test_fraction": 0.02},
        rules={},
        versions={},
    )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def run(*arguments: str | Path) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["tst-megatron", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        assert caught.value.code in (None, 0), printed.err
        return click.unstyle(printed.out).splitlines()

    return run


@pytest.mark.parametrize(
    ("tokens", "length", "expected"), [(0, 8, 0), (8, 8, 0), (9, 8, 1), (16, 8, 1), (17, 8, 2)]
)
def test_sequences_need_a_token_of_look_ahead(tokens: int, length: int, expected: int) -> None:
    assert num_sequences(tokens, length) == expected


def test_two_documents_are_warned_of_with_counts_and_the_fraction_that_is_enough() -> None:
    (warning,) = held_out_warnings(manifest_of(train=(612, 1_500_000), validation=(2, 4_696)))
    assert warning == (
        "the validation text is small: 2 documents with 4,696 tokens, which are 2 of 2,048 or 1 of "
        "4,096 positions each. Every validation loss rests on these alone, and `check` refuses an "
        "evaluation (global-batch-size x eval-iters sequences) that reads more. Prepare the text "
        "into another folder with --held-out-fraction 0.12 (now 0.01), which keeps about 64 "
        "sequences of 2,048, or use more text"
    )


@pytest.mark.parametrize(
    ("documents", "tokens", "is_small"),
    [(30, 131_073, False), (30, 131_072, True), (29, 10_000_000, True), (10_000, 50_000, True)],
)
def test_warning_is_for_few_sequences_or_few_documents(
    documents: int, tokens: int, is_small: bool
) -> None:
    manifest = manifest_of(train=(100_000, 10**9), validation=(documents, tokens))
    assert bool(held_out_warnings(manifest)) == is_small


def test_test_split_is_judged_by_its_own_option() -> None:
    splits = {"train": (10_000, 9_000_000), "validation": (500, 450_000), "test": (1, 900)}
    (warning,) = held_out_warnings(manifest_of(**splits))
    assert "the test text is small: 1 document with 900 tokens" in warning
    assert "--test-fraction 0.03 (now 0.02)" in warning


def test_text_that_is_too_small_in_all_needs_more_text_and_no_fraction() -> None:
    (warning,) = held_out_warnings(manifest_of(train=(200, 20_000), validation=(10, 900)))
    assert "Half of this text would not hold 64 sequences of 2,048: use more text" in warning
    assert "fraction" not in warning.partition("Half")[2]


def test_shards_are_not_judged() -> None:
    small = manifest_of(train=(200, 20_000), validation=(10, 900))
    assert held_out_warnings(replace(small, recipe={"shard": {"number": 0}})) == []
    assert held_out_warnings(manifest_of(train=(200, 20_000), validation=(0, 0))) == []


@pytest.mark.parametrize("wanted", [1, 64, 512])
def test_fraction_holds_out_enough_in_nearly_all_draws(wanted: int) -> None:
    lengths = np.random.RandomState(0).lognormal(6, 0.5, 20_000).astype(int)
    manifest = manifest_of(
        train=(len(lengths) - 200, int(lengths[200:].sum())),
        validation=(200, int(lengths[:200].sum())),
    )
    manifest = replace(manifest, recipe={"held_out_fraction": 1e-5})
    fraction = fraction_for(manifest, "validation", wanted, 2048)
    assert fraction is not None
    draws = np.random.RandomState(1)
    held = [lengths[draws.rand(len(lengths)) < fraction].sum() for _ in range(200)]
    assert np.mean([num_sequences(int(n), 2048) >= wanted for n in held]) > 0.9
    # No more than is needed: the margin is that of chance.
    assert np.mean(held) < 2 * max(wanted * 2048, 30 * lengths.mean()) + 2048


def test_evaluation_that_reads_too_much_names_the_fraction_that_is_enough() -> None:
    manifest = manifest_of(train=(10_000, 9_000_000), validation=(100, 90_000), test=(100, 90_000))
    corpus = Corpus(folder=Path("text"), weight=1.0, manifest=manifest, cache=Path("c"))
    problems = held_out_problems([corpus], num_samples=64, num_latent_positions=2048)
    assert problems == [
        "eval-iters: an evaluation reads 64 sequences of the validation text of text, which has "
        "43. Lower eval-iters, or prepare with a larger held-out fraction (--held-out-fraction "
        "0.017)",
        "eval-iters: an evaluation reads 64 sequences of the test text of text, which has 43. "
        "Lower eval-iters, or prepare with a larger test fraction (--test-fraction 0.03)",
    ]


def test_prepare_and_merge_end_with_the_warning_and_a_shard_does_not(
    tokenizer_model: Path, tmp_path: Path, command
) -> None:
    source = write_jsonl(tmp_path / "source.jsonl", TEXTS)
    half = write_jsonl(tmp_path / "half.jsonl", [f"other {text}" for text in TEXTS])
    options = ("--tokenizer", tokenizer_model, "--held-out-fraction", "0.1", "--workers", "1")
    said = command("prepare", source, "--output", tmp_path / "a", *options)
    assert said[-2].startswith(f"{tmp_path / 'a'} is prepared: ")
    assert said[-1].startswith("warning: the validation text is small: ")
    said = command("prepare", half, "--output", tmp_path / "b", *options, "--allow-empty-splits")
    assert said[-1].startswith(f"{tmp_path / 'b'} is prepared: ")
    assert command("prepare", half, "--output", tmp_path / "c", *options, "--shard", "0/1")[
        -1
    ].startswith(f"{tmp_path / 'c'} is prepared: ")
    said = command("merge", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "all")
    assert said[-2].startswith(f"{tmp_path / 'all'} is merged: ")
    assert said[-1].startswith("warning: the validation text is small: ")
    assert f"warning: {held_out_warnings(load_manifest(tmp_path / 'all'))[0]}" in command(
        "inspect", tmp_path / "all"
    )


def test_prepare_warns_of_a_tokenizer_that_cannot_be_exported_before_it_works(
    tokenizer_model: Path, tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    said_by_then = []
    monkeypatch.setattr(
        "tst_megatron.hf.export_warnings.tokenizer_warnings",
        lambda tokenizer: said_by_then.append(tokenizer) or ["no form"],
    )

    def work(*arguments, **options):
        assert said_by_then == [tokenizer_model]
        return prepare(*arguments, **options)

    monkeypatch.setattr("tst_megatron.data.prepare.prepare.prepare", work)
    source = write_jsonl(tmp_path / "source.jsonl", TEXTS)
    options = ("--tokenizer", tokenizer_model, "--held-out-fraction", "0.1", "--workers", "1")
    assert command("prepare", source, "--output", tmp_path / "a", *options)[0] == "warning: no form"
