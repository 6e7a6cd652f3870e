"""`data adopt`: a pair of another tool becomes a prepared folder, and its tokens stay in place."""

import json
import os
import struct
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hugging_face_tokenizers import EOS, OTHER, build_hugging_face
from merge_shards import TEXTS, flip_last_byte, write_jsonl
from streams import corpus_of, make_plan, open_stream

from tst_megatron.cli.app import main
from tst_megatron.cli.views.inspection import lines
from tst_megatron.data.adopt import decide_splits, foreign_sample
from tst_megatron.data.adopt.adopt import adopt
from tst_megatron.data.manifest import Manifest, load_manifest
from tst_megatron.data.prepare.merge import merge
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.stream.corpora import Corpus
from tst_megatron.data.stream.stream import HeldOutPositions
from tst_megatron.data.tokenizer.load import load_tokenizer
from tst_megatron.data.tokenizer.train import BOS_ID
from tst_megatron.data.tokens import gaps
from tst_megatron.data.tokens.format import HEADER, bin_path, idx_path
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.tokens.writer import IndexedWriter
from tst_megatron.data.verify.inspect import inspect
from tst_megatron.data.verify.recorded_files import changed_files
from tst_megatron.data.verify.source_text import compare_with_inputs
from tst_megatron.data.verify.verify import num_bytes_to_read, verify_folder

FRACTIONS = {"held_out_fraction": 0.1, "test_fraction": 0.1}
INT32 = 70_000


def encoded(tokenizer: Path, texts: list[str]) -> list[list[int]]:
    return [ids.tolist() for ids in load_tokenizer(tokenizer).encode(texts)]


def write_pair(prefix: Path, documents: list[list[int]], vocab_size: int = 800) -> Path:
    """What Megatron's builder writes, byte for byte (test_indexed_dataset.py)."""
    with IndexedWriter(prefix, vocab_size=vocab_size) as writer:
        for document in documents:
            writer.add_document(document)
        writer.finish()
    return prefix


def write_index(
    prefix: Path, sequences: list[int], documents: list[int], *, code: int = 8, more: bytes = b""
) -> None:
    """Any index: tokens of each sequence, and the sequences at which documents end."""
    size = {8: 2, 4: 4}.get(code, 8)
    lengths = np.array(sequences, dtype="<i4")
    offsets = (np.cumsum(lengths, dtype="<i8") - lengths) * size
    numbers = np.array([0, *documents], dtype="<i8")
    header = HEADER.pack(b"MMIDIDX\x00\x00", 1, code, len(lengths), len(numbers))
    parts = (header, lengths.tobytes(), offsets.tobytes(), numbers.tobytes(), more)
    idx_path(prefix).write_bytes(b"".join(parts))


@pytest.fixture(scope="session")
def pair(tokenizer_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents of a text in one pair, as Megatron's tool makes it."""
    folder = tmp_path_factory.mktemp("pair")
    write_jsonl(folder / "source.jsonl", TEXTS)
    return write_pair(folder / "foreign.text_document", encoded(tokenizer_model, TEXTS))


@pytest.fixture(scope="session")
def prepared(pair: Path, tokenizer_model: Path) -> Manifest:
    """The same text by `prepare`."""
    source, output = pair.with_name("source.jsonl"), pair.with_name("prepared")
    return prepare([source], tokenizer_model, output, workers=1, **FRACTIONS)


@pytest.fixture
def adopted(pair: Path, tokenizer_model: Path, tmp_path: Path) -> Manifest:
    return adopt(pair, tokenizer_model, tmp_path / "adopted", workers=1, **FRACTIONS)


@pytest.fixture
def own_pair(pair: Path, tmp_path: Path) -> Path:
    """A copy of the pair, to change."""
    for path in (bin_path, idx_path):
        path(tmp_path / "own").write_bytes(path(pair).read_bytes())
    return tmp_path / "own"


def documents_of(manifest: Manifest, name: str) -> list[list[int]]:
    reader = manifest.splits()[name].reader()
    reader.check()
    return [reader.tokens(number).tolist() for number in range(reader.num_documents)]


def refusal(pair: Path, tokenizer: Path, output: Path, **options) -> str:
    with pytest.raises(ValueError) as caught:
        adopt(pair, tokenizer, output, workers=1, **(FRACTIONS | options))
    assert not output.exists()
    assert not [path for path in output.parent.iterdir() if output.name in path.name]
    return str(caught.value)


# --- the same text --------------------------------------------------------------------------------


def test_adopted_splits_are_those_of_prepare_and_no_token_is_copied(adopted, prepared, pair):
    for name, split in adopted.splits().items():
        assert documents_of(adopted, name) == documents_of(prepared, name)
        assert (split.documents, split.tokens) == (
            prepared.splits()[name].documents,
            prepared.splits()[name].tokens,
        )
        assert bin_path(split.prefix).readlink() == bin_path(pair)
    assert adopted.unigram_entropy_nats == prepared.unigram_entropy_nats
    assert adopted.tokenizer == prepared.tokenizer
    files = [path for path in adopted.path.parent.iterdir() if not path.is_symlink()]
    assert not [path for path in files if path.suffix == ".bin"]


@pytest.mark.parametrize("tokens_per_range", [1, 1000])
def test_ranges_of_any_size_in_several_processes_give_the_same_folder(
    adopted, pair, tokenizer_model, tmp_path, monkeypatch, tokens_per_range
):
    monkeypatch.setattr(decide_splits, "TOKENS_PER_RANGE", tokens_per_range)
    workers = 1 if tokens_per_range == 1 else 2
    adopt(pair, tokenizer_model, tmp_path / "other", workers=workers, **FRACTIONS)
    for name in ("train.idx", "validation.idx", "test.idx", "manifest.json"):
        other = (tmp_path / "other" / name).read_bytes()
        assert other == (adopted.path.parent / name).read_bytes()


def batches(manifest: Manifest, cache: Path) -> list[list[int]]:
    split = manifest.train
    corpus = corpus_of(split)
    corpus = Corpus(
        folder=corpus.folder, weight=1.0, manifest=corpus.manifest, cache=cache / "index"
    )
    entries = [(4, 3), (1, 1.0)]
    plan = make_plan([corpus], entries, num_steps=8, length=64, batch=2, max_epochs=4)
    stream = open_stream(plan, [corpus])
    return [stream.tokens(sample).tolist() for sample in range(16)]


def test_adopted_text_gives_the_batches_and_evaluations_of_prepare(adopted, prepared, tmp_path):
    ours = batches(adopted, tmp_path / "a")
    assert ours == batches(prepared, tmp_path / "b")
    for name in ("validation", "test"):
        samples = []
        for manifest in (adopted, prepared):
            split = manifest.splits()[name]
            held_out = HeldOutPositions([split], [1.0], num_samples=7, num_latent_positions=33)
            samples.append([held_out.tokens(number).tolist() for number in range(7)])
        assert samples[0] == samples[1]


@pytest.mark.parametrize("documents_per_place", [1, 3, 2**14])
def test_positions_with_gaps_are_those_of_the_documents_in_a_row(
    adopted, prepared, monkeypatch, documents_per_place
):
    monkeypatch.setattr(gaps, "_DOCUMENTS_PER_PLACE", documents_per_place)
    for name in ("train", "validation"):
        split, whole = (each.splits()[name].reader() for each in (adopted, prepared))
        for position in (0, 1, whole.num_tokens // 2, whole.num_tokens - 1, whole.num_tokens):
            assert split.document_at(position) == whole.document_at(position)
            there = split.stretch(position, position + 500)
            assert there.tolist() == whole.stretch(position, position + 500).tolist()
        for first, stop in ((0, 1), (3, 9), (0, whole.num_documents)):
            assert split.starts(first, stop).tolist() == whole.starts(first, stop).tolist()


def test_verify_inspect_and_against_take_an_adopted_folder(adopted, prepared, pair):
    steps: list[int] = []
    findings = verify_folder(adopted, lambda: nullcontext(steps.append))
    assert (findings.problems, findings.notes) == ([], [])
    assert sum(steps) == num_bytes_to_read(adopted)
    compared = compare_with_inputs(adopted, [pair.with_name("source.jsonl")], sample=1.0)
    assert (compared.num_compared, compared.problems) == (len(TEXTS), [])
    shown = [inspect(each, split="train", num_samples=2, seed=0) for each in (adopted, prepared)]
    assert shown[0].frequent == shown[1].frequent and shown[0].samples == shown[1].samples
    assert "foreign.text_document.bin" in next(row for row in lines(shown[0]) if "made of" in row)


def test_int32_tokens_of_a_small_vocabulary_are_read_as_they_are(
    adopted, tokenizer_model, tmp_path
):
    wide = write_pair(tmp_path / "wide", encoded(tokenizer_model, TEXTS), vocab_size=INT32)
    manifest = adopt(wide, tokenizer_model, tmp_path / "out", workers=1, **FRACTIONS)
    assert manifest.dtype == "int32" and adopted.dtype == "uint16"
    assert documents_of(manifest, "train") == documents_of(adopted, "train")
    assert verify_folder(manifest).problems == []


def test_documents_without_text_are_left_out_as_prepare_does(tmp_path):
    """Megatron's tool lists an empty text without a sequence, or as BOS and EOD alone."""
    tokenizer = build_hugging_face(tmp_path / "tokenizer", TEXTS)
    source = write_jsonl(tmp_path / "source.jsonl", ["", *TEXTS[:40], "", *TEXTS[40:]])
    ours = prepare([source], tokenizer, tmp_path / "ours", workers=1, **FRACTIONS)
    documents = encoded(tokenizer, [*TEXTS[:40], "", *TEXTS[40:]])
    pair = write_pair(tmp_path / "pair", documents)
    lengths = [len(each) for each in documents]
    write_index(pair, lengths, [0, *range(1, len(lengths) + 1)])
    theirs = adopt(pair, tokenizer, tmp_path / "theirs", workers=1, **FRACTIONS)
    for name in ours.splits():
        assert documents_of(theirs, name) == documents_of(ours, name)
    assert theirs.left_out.empty == ours.left_out.empty == 2
    assert verify_folder(theirs).problems == []


def test_special_tokens_in_text_and_another_eod_are_taken_where_they_are_named(tmp_path):
    tokenizer = build_hugging_face(tmp_path / "tokenizer", TEXTS)
    texts = [f"{text}{OTHER} again {EOS} and on" for text in TEXTS]
    source = write_jsonl(tmp_path / "source.jsonl", texts)
    options = FRACTIONS | {"special_tokens_in_text": True, "eod_token": OTHER}
    ours = prepare([source], tokenizer, tmp_path / "ours", workers=1, **options)
    ids = load_tokenizer(ours.tokenizer_path, special_tokens_in_text=True).encode(texts)
    pair = write_pair(tmp_path / "pair", [each.tolist() for each in ids])
    theirs = adopt(pair, tokenizer, tmp_path / "theirs", workers=1, **options)
    assert documents_of(theirs, "train") == documents_of(ours, "train")
    assert verify_folder(theirs).problems == []
    text = refusal(pair, tokenizer, tmp_path / "no")
    assert "EOD" in text and "--eod-token" in text and "--special-tokens-in-text" in text


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["bin", "idx"])
def test_pair_may_be_named_by_either_file_and_both_must_be_there(
    own_pair, tokenizer_model, tmp_path, end
):
    given = own_pair.with_name(f"own.{end}")
    adopt(given, tokenizer_model, tmp_path / "out", workers=1, **FRACTIONS)
    assert "is a folder" in refusal(Path("/"), tokenizer_model, tmp_path / "no")
    given.unlink()
    text = refusal(given, tokenizer_model, tmp_path / "no")
    assert text == f"{given}: no such file. Give the common path of .bin and .idx."


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


def poke(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


DAMAGED = {
    "cut .bin": (lambda p: cut(bin_path(p), 2), "its index describes"),
    "cut .idx": (lambda p: cut(idx_path(p), 8), "its header says"),
    "short .idx": (lambda p: idx_path(p).write_bytes(b"MMIDIDX"), "too short"),
    "empty .idx": (lambda p: idx_path(p).write_bytes(b""), "too short"),
    "no index": (lambda p: poke(idx_path(p), 0, b"PK"), "Only such pairs can be adopted"),
    "version 2": (lambda p: poke(idx_path(p), 9, b"\2"), "and version 2"),
    "int64": (lambda p: poke(idx_path(p), 17, b"\5"), "tokens are int64, uint16 and int32"),
    "float": (lambda p: poke(idx_path(p), 17, b"\7"), "tokens are float32"),
    "other type": (lambda p: poke(idx_path(p), 17, b"\63"), "unknown type 51"),
    "a wrong length": (lambda p: poke(idx_path(p), 34, struct.pack("<i", 1)), "document 1 is"),
    "an empty one": (lambda p: poke(idx_path(p), 34, struct.pack("<i", 0)), "document 0 is empty"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_pair_is_refused_in_a_sentence(own_pair, tokenizer_model, tmp_path, kind):
    damage, sentence = DAMAGED[kind]
    damage(own_pair)
    text = refusal(own_pair, tokenizer_model, tmp_path / "no")
    assert sentence in text and len(text.splitlines()) == 1


def test_other_shapes_of_an_index_are_refused_by_their_names(own_pair, tokenizer_model, tmp_path):
    lengths = IndexedReader(own_pair).document_lengths.tolist()
    number = len(lengths)
    write_index(own_pair, lengths, [*range(2, number + 1)])
    text = refusal(own_pair, tokenizer_model, tmp_path / "no")
    assert f"1 of {number - 1:,} documents have several sequences" in text
    assert "--split-sentences" in text
    write_index(own_pair, lengths, [*range(1, number + 1)], more=bytes(number))
    assert "multimodal" in refusal(own_pair, tokenizer_model, tmp_path / "no")
    write_index(own_pair, lengths, [*range(1, number)])
    assert "its documents end at sequence" in refusal(own_pair, tokenizer_model, tmp_path / "no")
    write_index(own_pair, lengths, [5, *range(2, number + 1)])
    assert "list of documents is damaged" in refusal(own_pair, tokenizer_model, tmp_path / "no")
    write_index(own_pair, [], [])
    assert "holds no document" in refusal(own_pair, tokenizer_model, tmp_path / "no")


def test_tokens_of_another_rule_are_refused_with_everything_that_tells(
    tokenizer_model, tmp_path, training_texts
):
    documents = encoded(tokenizer_model, TEXTS)
    eod = documents[0][-1]
    pair = write_pair(tmp_path / "a", [each[:-1] for each in documents])
    text = refusal(pair, tokenizer_model, tmp_path / "no")
    assert f"do not end with EOD ({eod})" in text and "--append-eod" in text
    assert len(text.splitlines()) == 2
    pair = write_pair(tmp_path / "b", [[*each[:3], eod, *each[3:]] for each in documents])
    assert "have EOD" in refusal(pair, tokenizer_model, tmp_path / "no")
    pair = write_pair(tmp_path / "c", [[900, *each] for each in documents], vocab_size=1000)
    assert "the largest is 900" in refusal(pair, tokenizer_model, tmp_path / "no")
    # Same EOD, same vocabulary, other pieces.
    pair = write_pair(tmp_path / "d", [[*each[:-1][::-1], eod] for each in documents])
    assert "encodes to other ids" in refusal(pair, tokenizer_model, tmp_path / "no")
    other = build_hugging_face(tmp_path / "other", training_texts, vocab_size=900)
    text = refusal(write_pair(tmp_path / "e", documents, vocab_size=1000), other, tmp_path / "no")
    assert f"240 do not end with EOD (1), 240 of them end with id {eod}" in text
    assert "--eod-token" in text
    assert "do not begin with BOS (0)" in text and "encodes to other ids" in text


def test_sentencepiece_pair_with_bos_is_told_what_is_wrong_and_not_what_cannot_be(
    tokenizer_model, tmp_path
):
    documents = [[BOS_ID, *each] for each in encoded(tokenizer_model, TEXTS)]
    pair = write_pair(tmp_path / "pair", documents)
    text = refusal(pair, tokenizer_model, tmp_path / "no")
    assert f"begin with the model's BOS ({BOS_ID})" in text and "make it again without" in text
    assert "--special-tokens-in-text" not in text and "another tokenizer made" not in text
    # Both faults at once are both named.
    turned = [[BOS_ID, *each[1:-1][::-1], each[-1]] for each in documents]
    text = refusal(write_pair(tmp_path / "turned", turned), tokenizer_model, tmp_path / "no")
    assert "begin with the model's BOS" in text and "encodes to other ids" in text
    assert "--special-tokens-in-text" not in text


def test_one_wrong_document_that_no_sample_has_is_found(tokenizer_model, tmp_path, monkeypatch):
    monkeypatch.setattr(foreign_sample, "NUM_DOCUMENTS", 1)
    documents = encoded(tokenizer_model, TEXTS)
    eod, sampled = documents[0][-1], next(foreign_sample._chosen(range_of(documents)))
    wrong = 0 if sampled else 1
    for number, (change, kind) in enumerate(
        (
            (lambda ids: ids[:-1], f"no EOD ({eod}) at the end of a document, 1 time"),
            (lambda ids: [eod, *ids], f"EOD ({eod}) inside a document, 1 time"),
            (lambda ids: [950, *ids], "an id outside the vocabulary (0 to 799), 1 time"),
        )
    ):
        changed = [change(ids) if n == wrong else ids for n, ids in enumerate(documents)]
        pair = write_pair(tmp_path / f"pair-{number}", changed, vocab_size=1000)
        text = refusal(pair, tokenizer_model, tmp_path / "no")
        assert kind in text and f"first in document {wrong}" in text


def range_of(documents):
    """What `_chosen` reads of a reader."""
    lengths = np.array([len(each) for each in documents])
    return SimpleNamespace(num_documents=len(documents), document_lengths=lengths)


def test_settings_outputs_and_pair_are_judged_together(own_pair, tokenizer_model, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    cut(bin_path(own_pair), 2)
    with pytest.raises(ValueError) as caught:
        adopt(own_pair, tokenizer_model, tmp_path / "there", workers=1)
    assert len(str(caught.value).splitlines()) == 2
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]
    with pytest.raises(ValueError, match="--held-out-fraction 2") as caught:
        adopt(own_pair, tokenizer_model, tmp_path / "no", held_out_fraction=2.0, workers=0)
    assert "--workers 0" in str(caught.value)


def test_split_without_a_document_is_refused(tokenizer_model, tmp_path):
    pair = write_pair(tmp_path / "pair", encoded(tokenizer_model, TEXTS[1:3]))
    text = refusal(pair, tokenizer_model, tmp_path / "no", held_out_fraction=1e-9)
    assert "each split needs at least one" in text


def test_pair_that_changes_while_it_is_read_is_refused(
    own_pair, tokenizer_model, tmp_path, monkeypatch
):
    read_range = decide_splits._read_range

    def touch(*arguments):
        os.utime(bin_path(own_pair), ns=(1, 1))
        return read_range(*arguments)

    monkeypatch.setattr(decide_splits, "_read_range", touch)
    text = refusal(own_pair, tokenizer_model, tmp_path / "no")
    assert "was changed while it was read" in text


# --- afterwards -----------------------------------------------------------------------------------


def test_original_that_is_gone_or_another_is_noticed_through_the_link(
    own_pair, tokenizer_model, tmp_path
):
    manifest = adopt(own_pair, tokenizer_model, tmp_path / "out", workers=1, **FRACTIONS)
    mode = bin_path(own_pair).stat().st_mode
    original = bin_path(own_pair).read_bytes()
    flip_last_byte(bin_path(own_pair))
    found = (changed_files(manifest), verify_folder(manifest).problems)
    assert all(str(bin_path(own_pair)) in "\n".join(problems) for problems in found)
    assert "differs from its sha256" in found[1][0]
    bin_path(own_pair).write_bytes(original[:-2])
    found = (changed_files(manifest), verify_folder(manifest).problems)
    assert all(str(bin_path(own_pair)) in "\n".join(problems) for problems in found)
    bin_path(own_pair).unlink()
    for problems in (changed_files(manifest), verify_folder(manifest).problems):
        missing = [problem for problem in problems if "is missing" in problem]
        assert len(missing) == 3 and all(f"(a link to {own_pair}.bin)" in each for each in missing)
    with pytest.raises(FileNotFoundError, match="a link to"):
        manifest.train.reader()
    bin_path(own_pair).write_bytes(original)
    bin_path(own_pair).chmod(mode)
    assert changed_files(manifest) == [] and verify_folder(manifest).problems == []


def test_rights_of_the_original_stay_what_they_were(own_pair, tokenizer_model, tmp_path):
    bin_path(own_pair).chmod(0o400)
    idx_path(own_pair).chmod(0o440)
    adopt(own_pair, tokenizer_model, tmp_path / "out", workers=1, **FRACTIONS)
    assert bin_path(own_pair).stat().st_mode & 0o777 == 0o400
    assert idx_path(own_pair).stat().st_mode & 0o777 == 0o440


@pytest.mark.parametrize("kind", ["overlap", "odd", "length", "end"])
def test_damaged_index_of_an_adopted_split_is_found_without_its_hash(adopted, kind):
    split, number = adopted.train, adopted.train.documents
    path = idx_path(split.prefix)
    offsets = HEADER.size + 4 * number
    first, second = struct.unpack("<qq", path.read_bytes()[offsets : offsets + 16])
    if kind == "overlap":
        poke(path, offsets + 8, struct.pack("<q", second - 2))
        poke(path, HEADER.size, struct.pack("<i", (second - first) // 2))
    elif kind == "odd":
        poke(path, offsets + 8 * (number - 2), struct.pack("<q", second + 10**4 + 1))
    elif kind == "length":
        poke(path, HEADER.size + 4, struct.pack("<i", 1))
    else:
        poke(path, offsets + 8 * (number - 1), struct.pack("<q", 2**40))
    with pytest.raises(ValueError, match="dopt"):
        split.reader().check()


def test_gaps_in_an_ordinary_folder_are_still_damage(adopted):
    path = adopted.path
    values = json.loads(path.read_text())
    del values["recipe"]["adopted"]
    path.write_text(json.dumps(values))
    problems = verify_folder(load_manifest(path)).problems
    assert any("bytes, its index describes" in problem for problem in problems)


def test_merge_refuses_adopted_folders_and_another_split_is_another_text(
    adopted, prepared, pair, tokenizer_model, tmp_path
):
    with pytest.raises(ValueError, match="made by `data adopt`") as caught:
        merge([prepared.path.parent, adopted.path.parent], tmp_path / "merged")
    assert len(str(caught.value).splitlines()) == 1
    other = adopt(pair, tokenizer_model, tmp_path / "other", held_out_fraction=0.3, workers=1)
    assert other.train.bin_sha256 == adopted.train.bin_sha256
    assert other.train.text_sha256 != adopted.train.text_sha256


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tst-megatron", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    code = caught.value.code
    return code if isinstance(code, int) else 1


def test_command_shows_documents_as_text_and_refuses_with_status_2(
    pair, tokenizer_model, tmp_path, monkeypatch, capsys
):
    command = ("data", "adopt", f"{pair}.idx", "--tokenizer", str(tokenizer_model))
    options = ("--output", str(tmp_path / "out"), "--test-fraction", "0.1", "--workers", "1")
    more = ("--held-out-fraction", "0.1")
    assert run(monkeypatch, *command, *options, *more) == 0
    said = capsys.readouterr().out
    assert said.count("--- document ") == 3 and "sampled documents encode to the same ids" in said
    assert "is adopted" in said
    assert run(monkeypatch, *command, *options, *more) == 2
    assert f"{tmp_path / 'out'}: exists" in capsys.readouterr().err
    with pytest.raises(ValueError, match="data adopt"):
        load_manifest(pair)
