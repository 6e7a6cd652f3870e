import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer, sentencepiece_model_pb2
from tokenizers import decoders  # type: ignore[import-untyped, unused-ignore]
from transformers import AutoTokenizer

from tst_megatron.data.tokenizer.train import train_sentencepiece
from tst_megatron.hf.export_warnings import tokenizer_warnings
from tst_megatron.hf.tokenizer import sentencepiece as hf_tokenizer
from tst_megatron.hf.tokenizer.sentencepiece import export_tokenizer
from tst_megatron.hf.tokenizer.sentencepiece_form import exact_merges, read_model

SPACE = "\u2581"


@pytest.fixture(scope="module")
def exported(tokenizer_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the exported files."""
    output = tmp_path_factory.mktemp("exported")
    export_tokenizer(tokenizer_model, output)
    return output


@pytest.fixture(scope="module")
def loaded(exported: Path) -> Any:
    """The exported tokenizer as a user loads it."""
    return AutoTokenizer.from_pretrained(exported)


def changed_model(model_file: Path, output: Path, change: Callable[[Any], object]) -> Path:
    """Write a copy of a model after a change of its fields."""
    model = sentencepiece_model_pb2.ModelProto.FromString(  # type: ignore[attr-defined]
        model_file.read_bytes()
    )
    change(model)
    output.write_bytes(model.SerializeToString())
    return output


def test_export_writes_the_documented_files(exported: Path, tokenizer_model: Path) -> None:
    names = sorted(path.name for path in exported.iterdir())
    assert names == ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    assert (exported / "tokenizer.model").read_bytes() == tokenizer_model.read_bytes()
    config = json.loads((exported / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["split_special_tokens"] is True
    assert config["clean_up_tokenization_spaces"] is False


def test_special_ids_and_size_are_sentencepieces(
    loaded: Any, processor: SentencePieceProcessor
) -> None:
    assert (loaded.unk_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
    assert len(loaded) == processor.get_piece_size()
    pieces = [processor.id_to_piece(index) for index in range(len(loaded))]
    assert loaded.convert_ids_to_tokens(list(range(len(loaded)))) == pieces


def test_ids_are_equal_on_held_out_text(
    loaded: Any, processor: SentencePieceProcessor, held_out_texts: list[str]
) -> None:
    lines = [line for text in held_out_texts for line in text.splitlines(keepends=True)]
    texts = [*held_out_texts, *random.Random(0).sample(lines, 1500)]
    for text in texts:
        ids = loaded.encode(text, add_special_tokens=False)
        assert ids == processor.encode(text)
        assert loaded.decode(ids) == text


FRAGMENTS = st.sampled_from(
    ["</s>", "<s>", "<unk>", "<0x0A>", " ", "    ", "\t", "\n", "\r\n", "def ", "self", "=="]
)
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters=SPACE)


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS | st.text(CHARACTERS, max_size=8), max_size=12).map("".join))
def test_ids_are_equal_on_any_text(
    loaded: Any, processor: SentencePieceProcessor, text: str
) -> None:
    ids = loaded.encode(text, add_special_tokens=False)
    assert ids == processor.encode(text)
    assert loaded.decode(ids) == text


def test_encoding_adds_neither_bos_nor_eos(loaded: Any, processor: SentencePieceProcessor) -> None:
    assert loaded("a </s>")["input_ids"] == processor.encode("a </s>")
    assert loaded.encode("a </s>", split_special_tokens=False)[-1] == 2


@pytest.mark.parametrize("seed", range(6))
def test_ids_are_equal_on_periodic_text(tmp_path: Path, seed: int) -> None:
    """Runs of few letters give the pieces that overlap with themselves, the hard case for BPE."""
    generator = random.Random(seed)
    words = ["a", "ab", "aba", "ba", "abab ", "bab", " ", "  \n"]
    texts = ["".join(generator.choices(words, k=100)) for _ in range(100)]
    processor = train_sentencepiece(texts, tmp_path / "m", vocab_size=320)
    model = read_model(tmp_path / "m")
    tokenizer = hf_tokenizer._build(model, exact_merges(model))
    for _ in range(500):
        text = "".join(generator.choices("ab \n", weights=[6, 6, 1, 1], k=60))
        assert tokenizer.encode(text).ids == processor.encode(text)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen3_moe"])
def test_export_is_exact_beside_a_model_config(
    tokenizer_model: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    export_tokenizer(tokenizer_model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": kind}


def test_further_control_symbols_are_special_in_the_export(
    tokenizer_model: Path, tmp_path: Path
) -> None:
    model = changed_model(
        tokenizer_model,
        tmp_path / "m",
        lambda model: model.pieces.add(piece="<extra>", type=3, score=0.0),
    )
    export_tokenizer(model, tmp_path / "out", probe_texts=["a <extra> b"])
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    extra = len(loaded) - 1
    assert loaded.decode([*loaded.encode("a"), extra], skip_special_tokens=True) == "a"
    assert extra not in loaded.encode("<extra>")


def test_export_names_the_first_text_with_other_ids(
    tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_tokenizer, "exact_merges", lambda model: [])
    with pytest.raises(RuntimeError, match=r"text 'word' gives ids \[.*SentencePiece gives \[.*"):
        export_tokenizer(tokenizer_model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_export_names_the_first_text_that_does_not_come_back(
    tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "Replace", lambda old, new: decoders.Fuse())
    with pytest.raises(RuntimeError, match=r"text ' leading and trailing ' is decoded as"):
        export_tokenizer(tokenizer_model, tmp_path)


def test_export_compares_the_texts_it_is_given(
    tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_tokenizer, "PROBES", ())
    monkeypatch.setattr(hf_tokenizer, "exact_merges", lambda model: [])
    with pytest.raises(RuntimeError, match=r"text 'return x'"):
        export_tokenizer(tokenizer_model, tmp_path, probe_texts=["q", "return x"])


CHANGES: dict[str, Callable[[Any], object]] = {
    "its type is not BPE": lambda model: setattr(model.trainer_spec, "model_type", 1),
    "it puts spaces behind words": lambda model: setattr(
        model.trainer_spec, "treat_whitespace_as_suffix", True
    ),
    "it adds a space in front of text": lambda model: setattr(
        model.normalizer_spec, "add_dummy_prefix", True
    ),
    "it changes spaces": lambda model: setattr(
        model.normalizer_spec, "remove_extra_whitespaces", True
    ),
    "it has user-defined or unused pieces": lambda model: setattr(model.pieces[-1], "type", 5),
    "a special token is a single character": lambda model: setattr(model.pieces[1], "piece", "Q"),
    "two pieces have the same score": lambda model: setattr(
        model.pieces[-1], "score", model.pieces[-2].score
    ),
    "characters ['\u2603'] are inside pieces": lambda model: setattr(
        model.pieces[-1], "piece", "\u2603e"
    ),
    "is not joined from two pieces with better scores": lambda model: setattr(
        model.pieces[-1], "piece", "eeeeeee"
    ),
}


@pytest.mark.parametrize("message", CHANGES)
def test_export_refuses_a_model_it_cannot_express(
    tokenizer_model: Path, tmp_path: Path, message: str
) -> None:
    model = changed_model(tokenizer_model, tmp_path / "m", CHANGES[message])
    pattern = rf"m: no exact Hugging Face form: .*{re.escape(message)}.*Train the tokenizer with"
    with pytest.raises(ValueError, match=pattern):
        export_tokenizer(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (warning,) = tokenizer_warnings(model)
    assert warning.startswith(f"export will refuse the tokenizer {model}, which has no exact ")
    assert message in warning
    assert "`tst-megatron data tokenizer` trains, before training if you want" in warning


def test_tokenizer_that_can_be_exported_is_not_warned_of(
    tokenizer_model: Path, tmp_path: Path
) -> None:
    assert tokenizer_warnings(tokenizer_model) == []


@pytest.mark.parametrize("content", [None, b"", b"junk", b"\x0a\x03abc"])
def test_tokenizer_that_is_none_is_left_to_those_who_read_it(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "m").write_bytes(content)
    assert tokenizer_warnings(tmp_path / "m") == []


def test_export_refuses_a_model_without_byte_fallback(tmp_path: Path) -> None:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["one two three four five"] * 10),
        model_writer=model,
        model_type="bpe",
        vocab_size=32,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "m").write_bytes(model.getvalue())
    message = r"it has no byte fallback; it normalises text \(nmt_nfkc\); it adds a space"
    with pytest.raises(ValueError, match=message):
        export_tokenizer(tmp_path / "m", tmp_path / "out")
    (warning,) = tokenizer_warnings(tmp_path / "m")
    assert re.search(message, warning)
