import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from tst_megatron.data.tokenizer.sentencepiece import encode_document, load_sentencepiece
from tst_megatron.data.tokenizer.train import BOS_ID, EOS_ID, UNKNOWN_ID, train_sentencepiece

SPACE = "\u2581"


def train_other(model_file: Path, **options: Any) -> Path:
    """A model that train_sentencepiece would not make."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["one two three four five"] * 10),
        model_writer=model,
        vocab_size=32,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    model_file.write_bytes(model.getvalue())
    return model_file


def test_special_ids_stand_at_fixed_places(processor: SentencePieceProcessor) -> None:
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id()) == (
        UNKNOWN_ID,
        BOS_ID,
        EOS_ID,
    )
    pieces = [processor.id_to_piece(index) for index in range(3)]
    assert pieces == ["<unk>", "<s>", "</s>"]
    assert processor.is_control(BOS_ID) and processor.is_control(EOS_ID)


def test_document_ends_with_eos_and_has_no_bos(processor: SentencePieceProcessor) -> None:
    ids = encode_document(processor, "def f(x):\n    return x\n")
    assert ids[-1] == EOS_ID and BOS_ID not in ids and ids.count(EOS_ID) == 1
    assert encode_document(processor, "") == [EOS_ID]


@pytest.mark.parametrize("literal", ["</s>", "<s>", "<unk>", "<0x0A>", "a</s>b", "<s></s>"])
def test_literal_special_tokens_stay_text(processor: SentencePieceProcessor, literal: str) -> None:
    ids = encode_document(processor, literal)[:-1]
    assert not {UNKNOWN_ID, BOS_ID, EOS_ID, processor.piece_to_id("<0x0A>")}.intersection(ids)
    assert processor.decode(ids) == literal


@pytest.mark.parametrize(
    "text",
    ["  lead and trail  ", "\t\ta\n\n\r\n b", " " * 300, "\U0001f600 e\u0301\u200d", "\x00\x1b"],
)
def test_text_comes_back_unchanged(processor: SentencePieceProcessor, text: str) -> None:
    assert processor.decode(encode_document(processor, text)[:-1]) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters=SPACE)))
def test_any_text_comes_back_unchanged(processor: SentencePieceProcessor, text: str) -> None:
    ids = encode_document(processor, text)
    assert not {UNKNOWN_ID, BOS_ID}.intersection(ids) and ids.count(EOS_ID) == 1
    assert processor.decode(ids[:-1]) == text


def test_space_sign_comes_back_as_space(processor: SentencePieceProcessor) -> None:
    assert processor.decode(encode_document(processor, f"a{SPACE}b")[:-1]) == "a b"


def test_newlines_and_indentation_are_learned(processor: SentencePieceProcessor) -> None:
    pieces = {processor.id_to_piece(index) for index in range(processor.get_piece_size())}
    assert {":\n", SPACE * 4, SPACE * 8} <= pieces


def test_same_texts_train_the_same_file(training_texts: list[str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_sentencepiece(training_texts[:20], tmp_path / name, vocab_size=400)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_training_uses_text_behind_very_long_lines(tmp_path: Path) -> None:
    text = "y" * 20_000 + "wxyz " * 4_000
    processor = train_sentencepiece([text], tmp_path / "m", vocab_size=275)
    assert len(encode_document(processor, "wxyz")) == 2


def test_training_stops_at_the_byte_limit(tmp_path: Path) -> None:
    texts = ["abab " * 100, "cdcd " * 100]
    processor = train_sentencepiece(texts, tmp_path / "m", vocab_size=266, max_text_bytes=400)
    pieces = {processor.id_to_piece(index) for index in range(266)}
    assert "b" in pieces and "c" not in pieces


def test_spaces_have_an_id_when_the_text_has_none(tmp_path: Path) -> None:
    text = "\u4e2d\u6587\u5b57\u7b26" * 50
    processor = train_sentencepiece([text], tmp_path / "m", vocab_size=267)
    assert processor.decode(encode_document(processor, " a b\n")[:-1]) == " a b\n"


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (["abc"], 260, r"vocab_size 260: at least 261 ids are needed.*larger vocabulary"),
        (["abc"], 500, r"vocab_size 500: .*too high.*Give more text, or a vocabulary size"),
        (["", ""], 300, r"texts: no text to train on"),
        (["abc", "d\ud800"], 300, r"text 1: holds half a surrogate pair.*Repair or remove"),
    ],
)
def test_training_refuses_what_cannot_work(
    tmp_path: Path, texts: list[str], vocab_size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train_sentencepiece(texts, tmp_path / "m", vocab_size=vocab_size)
    assert list(tmp_path.iterdir()) == []


def test_loading_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.model: no such file.*\.model file"):
        load_sentencepiece(tmp_path / "none.model")


@pytest.mark.parametrize("content", [b"", b"junk", b"<unk>\t0\n<s>\t0\n"])
def test_loading_refuses_a_foreign_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.vocab").write_bytes(content)
    with pytest.raises(ValueError, match=r"not a SentencePiece model.*not the \.vocab file"):
        load_sentencepiece(tmp_path / "m.vocab")


@pytest.mark.parametrize("options", [{"eos_id": -1}, {"user_defined_symbols": "</s>"}])
def test_loading_refuses_a_model_without_eos(tmp_path: Path, options: dict[str, object]) -> None:
    model = train_other(tmp_path / "m", **options)
    with pytest.raises(ValueError, match=r"no EOS control symbol, so.* end with id -1\. Train"):
        load_sentencepiece(model)


def test_encoding_refuses_half_a_surrogate_pair(processor: SentencePieceProcessor) -> None:
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        encode_document(processor, "a\ud800")
