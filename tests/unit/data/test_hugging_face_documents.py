"""What a Hugging Face tokenizer makes of documents, against transformers itself."""

import pickle
import shutil
from pathlib import Path

import pytest
from hugging_face_tokenizers import BOS, EOS, OTHER, PLAIN_ADDED, SPECIALS, build_hugging_face
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tst_megatron.data.tokenizer.files import tokenizer_sha256
from tst_megatron.data.tokenizer.load import load_tokenizer, store_tokenizer

TEXTS = [
    "",
    "def f(x):\n    return x\n",
    f"a{EOS}b {BOS}{OTHER}",
    PLAIN_ADDED,
    "naïve 中文 \x00",
]


def ids_of(loaded, texts):
    return [ids.tolist() for ids in loaded.encode(texts)]


def test_documents_are_those_of_transformers_and_end_with_eod(hugging_face: Path) -> None:
    loaded = load_tokenizer(hugging_face)
    theirs = AutoTokenizer.from_pretrained(hugging_face, split_special_tokens=True)
    assert loaded.facts.bos_id == theirs.bos_token_id == 0
    assert loaded.facts.eod_id == theirs.eos_token_id == 1
    assert loaded.facts.vocab_size == len(theirs)
    expected = [[*theirs(text)["input_ids"], 1] for text in TEXTS]
    assert ids_of(loaded, TEXTS) == expected
    assert all(ids[0] == 0 and ids.count(0) == 1 for ids in expected)


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(SPECIALS))
def test_any_text_comes_back_and_has_no_special_id(hugging_face: Path, text: str) -> None:
    loaded = load_once(hugging_face)
    (ids,) = ids_of(loaded, [text])
    assert not {0, 1, 2}.intersection(ids[1:-1])
    assert loaded.decode(ids) == f"{BOS}{text}{EOS}"


_loaded: dict[Path, object] = {}


def load_once(folder: Path):
    if folder not in _loaded:
        _loaded[folder] = load_tokenizer(folder)
    return _loaded[folder]


def test_special_tokens_in_text_become_ids_if_asked(hugging_face: Path) -> None:
    loaded = load_tokenizer(hugging_face, special_tokens_in_text=True)
    (ids,) = ids_of(loaded, [f"{EOS}x{EOS}"])
    assert ids[:2] == [0, 1] and ids[-2:] == [1, 1], "the document's own EOD follows the text's"
    assert loaded.facts.special_tokens_in_text


def test_another_process_gets_the_same_tokenizer(hugging_face: Path) -> None:
    loaded = load_tokenizer(hugging_face)
    sent = pickle.loads(pickle.dumps(loaded))
    assert ids_of(sent, TEXTS) == ids_of(loaded, TEXTS)
    assert sent.facts == loaded.facts


@pytest.mark.parametrize(
    ("single", "has_bos"),
    [(None, False), (f"$A {EOS}", False), (f"{BOS} $A {EOS}", True)],
)
def test_template_decides_of_bos_and_eod_is_there_once(
    training_texts: list[str], tmp_path: Path, single: str | None, has_bos: bool
) -> None:
    loaded = load_tokenizer(build_hugging_face(tmp_path, training_texts, single=single))
    assert loaded.facts.bos_id == (0 if has_bos else None)
    for ids in ids_of(loaded, TEXTS):
        assert ids.count(1) == 1 and ids[-1] == 1
        assert ids.count(0) == (1 if has_bos else 0)


@pytest.mark.parametrize(
    ("single", "config", "message"),
    [
        (f"{OTHER} $A", {}, r"adds '<\|turn\|>' before a text and nothing after it, only BOS"),
        (f"{BOS} $A {OTHER}", {}, r"before a text and '<\|turn\|>' after it"),
        (None, {"eos_token": None}, r"has no EOS, which ends documents"),
        (None, {"eos_token": "def"}, r"spells its EOS 'def' becomes its id \d+, so text could end"),
    ],
)
def test_tokenizer_by_which_documents_run_together_is_refused(
    training_texts: list[str], tmp_path: Path, single, config, message
) -> None:
    folder = build_hugging_face(tmp_path, training_texts, single=single, **config)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(folder)


def test_unreadable_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file of a Hugging Face tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="transformers cannot read a tokenizer there"):
        load_tokenizer(tmp_path)


def test_sum_is_of_all_files_of_the_tokenizer_alone(hugging_face: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(hugging_face, tmp_path / "copy"))
    (copy / "model.safetensors").write_text("weights")
    assert tokenizer_sha256(copy) == tokenizer_sha256(hugging_face)
    (copy / "chat_template.jinja").write_text("{{ bos_token }}")
    assert tokenizer_sha256(copy) != tokenizer_sha256(hugging_face)


def test_other_end_of_document_is_kept_with_the_copy(hugging_face: Path, tmp_path: Path) -> None:
    stored = store_tokenizer(hugging_face, tmp_path, eod_token=OTHER)
    loaded = load_tokenizer(stored)
    assert loaded.facts.eod_id == 2
    assert AutoTokenizer.from_pretrained(stored).eos_token == OTHER
    (ids,) = ids_of(loaded, [f"{OTHER}{EOS}"])
    assert ids[0] == 0 and ids[-1] == 2 and not {1, 2}.intersection(ids[1:-1])


@pytest.mark.parametrize("token", ["<|nowhere|>", "def"])
def test_end_of_document_that_is_no_added_token_is_refused(
    hugging_face: Path, tmp_path: Path, token: str
) -> None:
    with pytest.raises(ValueError, match=r"not among the tokenizer's added tokens.*<\|turn\|>"):
        store_tokenizer(hugging_face, tmp_path, eod_token=token)


def test_sentencepiece_takes_neither_option(tokenizer_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--eod-token 'x': documents of a SentencePiece model end"):
        store_tokenizer(tokenizer_model, tmp_path, eod_token="x")
    with pytest.raises(ValueError, match="reads special tokens in text as text, always"):
        load_tokenizer(tokenizer_model, special_tokens_in_text=True)


def test_unknown_token_that_ends_documents_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(unk_token=EOS))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=[EOS])
    tokenizer.train_from_iterator(["plain words alone"] * 9, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, unk_token=EOS)
    fast.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="its unknown token is its EOS '<|end|>', so".replace("|", "[|]")
    ):
        load_tokenizer(tmp_path)


def test_eos_that_is_named_again_changes_nothing(hugging_face: Path, tmp_path: Path) -> None:
    stored = store_tokenizer(hugging_face, tmp_path, eod_token=EOS)
    assert tokenizer_sha256(stored) == tokenizer_sha256(hugging_face)
