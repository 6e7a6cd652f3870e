"""Which strings of a text are tokens of their own, and what a prompt is to a document."""

from pathlib import Path

import pytest
from hugging_face_tokenizers import BOS, EOS, PLAIN_ADDED, build_hugging_face
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tst_megatron.data.tokenizer.hugging_face import load_hugging_face


def test_added_tokens_that_are_not_special_become_their_ids_and_are_listed(
    hugging_face: Path,
) -> None:
    loaded = load_hugging_face(hugging_face)
    ((name, token_id),) = loaded.markup_tokens().items()
    assert name == PLAIN_ADDED
    assert loaded.beginning(f"a{PLAIN_ADDED}b").count(token_id) == 1


def test_words_that_were_added_are_no_markup(training_texts: list[str], tmp_path: Path) -> None:
    folder = build_hugging_face(tmp_path / "own", training_texts[:1])
    changed = PreTrainedTokenizerFast.from_pretrained(folder)
    changed.add_tokens(["lambda", "< b", "<think>"])
    changed.save_pretrained(folder)
    assert list(load_hugging_face(folder).markup_tokens()) == [PLAIN_ADDED, "<think>"]


@pytest.mark.parametrize("single", [None, f"{BOS} $A", f"$A {EOS}", f"{BOS} $A {EOS}"])
@pytest.mark.parametrize("text", ["", "def f(x):", f"{BOS}{EOS}a"])
def test_beginning_of_a_document_is_the_document_without_its_end(
    training_texts: list[str], tmp_path: Path, single: str | None, text: str
) -> None:
    loaded = load_hugging_face(build_hugging_face(tmp_path, training_texts[:1], single=single))
    assert [*loaded.beginning(text), 1] == loaded.encode([text])[0].tolist()
    assert 1 not in loaded.beginning(text)
    assert (loaded.beginning(text)[:1] == [0]) == (single is not None and BOS in single)


def test_text_can_leave_special_tokens_out(hugging_face: Path) -> None:
    loaded = load_hugging_face(hugging_face)
    (ids,) = loaded.encode(["a b"])
    assert loaded.decode(ids) == f"{BOS}a b{EOS}"
    assert loaded.decode(ids, skip_special_tokens=True) == "a b"


def test_special_tokens_that_a_vocabulary_spells_are_refused_unless_asked_for(
    tmp_path: Path,
) -> None:
    """A vocabulary of whole words, in which a special token is one of them."""
    words = {"<unk>": 0, "EOS!": 1, "PAD": 2, "word": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = {"unk_token": "<unk>", "eos_token": "EOS!", "pad_token": "PAD"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"text that spells 'PAD' becomes the special id, by the"):
        load_hugging_face(tmp_path)
    loaded = load_hugging_face(tmp_path, special_tokens_in_text=True)
    assert loaded.encode(["word PAD"])[0].tolist() == [3, 2, 1]
