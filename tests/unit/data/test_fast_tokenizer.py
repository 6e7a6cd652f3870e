"""The fast encoder against the reference: the same ids, or an error that shows the difference."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hugging_face_tokenizers import BOS, EOS, OTHER, PLAIN_ADDED
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from tst_megatron.data.tokenizer import fast as module
from tst_megatron.data.tokenizer.fast import DOCUMENTS_PER_CHECK, fast_tokenizer
from tst_megatron.data.tokenizer.load import load_tokenizer
from tst_megatron.data.tokenizer.unicode_differences import revealing_form, unlike_characters

LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama_3_split(form: dict[str, Any]) -> None:
    split = {"type": "Split", "pattern": {"Regex": LLAMA_3_SPLIT}, "behavior": "Isolated"}
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    form["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [split | {"invert": False}, bytes_of | {"trim_offsets": True}],
    }


def nfc(form: dict[str, Any]) -> None:
    form["normalizer"] = {"type": "NFC"}


def no_pre_tokenizer(form: dict[str, Any]) -> None:
    form["pre_tokenizer"] = None


def no_template(form: dict[str, Any]) -> None:
    form["post_processor"] = None


def eos_in_template(form: dict[str, Any]) -> None:
    template = form["post_processor"]
    template["single"].append({"SpecialToken": {"id": EOS, "type_id": 0}})
    template["special_tokens"][EOS] = {"id": EOS, "ids": [1], "tokens": [EOS]}


def reveal(form: dict[str, Any]) -> None:
    """Give it the vocabulary by whose ids neighbours are seen to be together or apart."""
    model = revealing_form(form["pre_tokenizer"])["model"]
    first = len(model["vocab"])
    form["added_tokens"].sort(key=lambda token: token["id"])
    for place, token in enumerate(form["added_tokens"]):
        token["id"] = first + place
    form["model"] = model | {
        "vocab": model["vocab"] | {token["content"]: token["id"] for token in form["added_tokens"]}
    }
    for name, token in form["post_processor"]["special_tokens"].items():
        token["ids"] = [form["model"]["vocab"][name]]


def changed(folder: Path, output: Path, *changes: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a tokenizer after changes of its tokenizer.json."""
    shutil.copytree(folder, output)
    form = json.loads((output / "tokenizer.json").read_bytes())
    for change in changes:
        change(form)
    (output / "tokenizer.json").write_text(json.dumps(form))
    return output


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [ids.tolist() for ids in tokenizer.encode(texts)]


@pytest.fixture(scope="module")
def reference(hugging_face: Path) -> Any:
    return load_tokenizer(hugging_face)


@pytest.fixture(scope="module")
def forms(hugging_face: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Tokenizers of several kinds, and the fast form of each."""
    pytest.importorskip("gigatoken")
    folder = tmp_path_factory.mktemp("forms")
    references = [
        load_tokenizer(hugging_face),
        load_tokenizer(changed(hugging_face, folder / "nfc", llama_3_split, nfc, no_template)),
        load_tokenizer(
            changed(hugging_face, folder / "eos", llama_3_split, eos_in_template),
            special_tokens_in_text=True,
        ),
        load_tokenizer(changed(hugging_face, folder / "revealing", llama_3_split, reveal)),
    ]
    assert [each.facts.bos_id is not None for each in references] == [True, False, True, True]
    return [(each, fast_tokenizer(each, [])) for each in references]


def test_real_text_gets_the_same_documents(forms, held_out_texts) -> None:
    texts = [text[:6000] for text in held_out_texts]
    for reference, fast in forms:
        assert fast.facts == reference.facts
        assert ids_of(fast, texts) == ids_of(reference, texts)
        assert all(ids.dtype == np.int32 for ids in fast.encode(texts))
        assert ids_of(fast, []) == []
        assert fast.decode([72, 300]) == reference.decode([72, 300])


FRAGMENTS = st.sampled_from(
    [BOS, EOS, OTHER, PLAIN_ADDED, "<|", "'s", "'LL", "e\u0301", "\u212a", "\r\n", "  ", "\x00"]
    + ["\u00a0", "\u3000", "٣", "12345", "ﬁ", "👩\u200d👩", "中", "한", "a" * 50, "=" * 50]
)
CHARACTERS = st.characters(exclude_categories=["Cs"])


@settings(max_examples=200, deadline=None)
@given(text=st.lists(FRAGMENTS | st.text(CHARACTERS, max_size=8), max_size=12).map("".join))
def test_any_text_gets_the_same_document(forms, text: str) -> None:
    for reference, fast in forms:
        assert ids_of(fast, [text, "", text]) == ids_of(reference, [text, "", text])


def test_characters_of_a_later_unicode_go_to_the_reference(forms) -> None:
    reference, fast = forms[-1]
    pre_tokenizer = json.dumps(json.loads(reference.serialized)["pre_tokenizer"])
    unlike = unlike_characters(pre_tokenizer, module.load_gigatoken)
    assert unlike, "gigatoken 0.10.0 has Unicode 17, tokenizers 0.22 has not"
    # Assigned there for the first time: a digit, a letter of either case.
    texts = [f"a{c}A1{c}1!{c}!\n{c}{c} " for c in [*unlike, *"\U00011de0\ua7ce\ua7cf"]]
    for each in (fast, pickle.loads(pickle.dumps(fast))):
        assert ids_of(each, texts) == ids_of(reference, texts)
    trusting = module.FastTokenizer(reference, "")
    with pytest.raises(RuntimeError, match="gives other ids than tokenizers"):
        trusting.check(["\ua7ce!"])
    assert not set(unlike).intersection("aé中한ا\u0301🙂½\u3000")


def test_character_that_is_taken_for_another_kind_is_found(reference) -> None:
    def load(serialized: str) -> Any:
        backend = Backend.from_str(serialized)

        def encode(data: list[bytes]) -> list[Any]:
            texts = [text.decode().replace("\u00e9", "\u0663") for text in data]
            return [each.ids for each in backend.encode_batch_fast(texts)]

        return encode

    form = json.loads(reference.serialized)
    assert unlike_characters(json.dumps(form["pre_tokenizer"]), load) == "\u00e9"


def test_every_other_character_is_taken_for_the_same_kind(forms) -> None:
    reference, fast = forms[-1]
    generator = random.Random(1)
    characters = [chr(c) for c in generator.sample([*range(0xD800), *range(0xE000, 0x20000)], 5000)]
    words = [*characters, *" \n\r\t'1aA", "\u00a0", "\u2028", "  ", "\r\n"] * 2
    generator.shuffle(words)
    texts = ["".join(words[first : first + 8]) for first in range(0, len(words), 8)]
    assert ids_of(fast, texts) == ids_of(reference, texts)


def test_half_a_surrogate_pair_has_the_error_of_every_tokenizer(forms) -> None:
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        forms[0][1].encode(["fine", "a\ud800"])


IN_A_WORKER = """
import os, pickle, sys
tokenizer = pickle.loads(sys.stdin.buffer.read())
documents = [ids.tolist() for ids in tokenizer.encode(["def f(x):\\n    return x\\n" * 50] * 200)]
assert all(document == documents[0] for document in documents)
names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
# The allocator of gigatoken has a thread that gives memory back.
print(documents[0], len([name for name in names if "jemalloc" not in name]))
print("transformers" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_another_process_gets_the_same_tokenizer_in_one_thread(forms) -> None:
    reference, fast = forms[1]
    done = subprocess.run(
        [sys.executable, "-c", IN_A_WORKER],
        input=pickle.dumps(fast),
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        check=True,
    )
    (ids,) = ids_of(reference, ["def f(x):\n    return x\n" * 50])
    assert done.stdout.decode().strip() == f"{ids} 1\nFalse"


def test_text_that_spells_an_added_token_goes_to_the_reference_alone(
    reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, seen = with_fake(reference, monkeypatch, lambda text, ids: ids)
    texts = [f"a{EOS}b", "plain", f"{PLAIN_ADDED}", f"x{BOS}", "<|end", ""]
    assert ids_of(fast, texts) == ids_of(reference, texts)
    assert seen == ["plain", "<|end", ""]


def test_text_to_be_normalised_or_of_unlike_characters_goes_to_the_reference_alone(
    hugging_face: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = load_tokenizer(changed(hugging_face, tmp_path / "nfc", nfc))
    _, seen = with_fake(reference, monkeypatch, lambda text, ids: ids)
    fast = fast_tokenizer(reference, [])
    seen.clear()
    # The last character has not been assigned: a library may know a form of it already.
    texts = ["caf\u00e9", "cafe\u0301", "\u212a", "plain", "\u00fc", "a\u0378"]
    assert ids_of(fast, texts) == ids_of(reference, texts)
    assert seen == ["caf\u00e9", "plain"]


def with_fake(reference, monkeypatch: pytest.MonkeyPatch, change) -> tuple[Any, list[str]]:
    """A fast encoder that is the reference but for a change, and the texts that it was given."""
    seen: list[str] = []

    def encode(data: list[bytes]) -> list[Any]:
        texts = [each.decode() for each in data]
        seen.extend(texts)
        first = 0 if reference.facts.bos_id is None else 1
        whole = reference.encode(texts)
        return [change(text, ids[first:-1]) for text, ids in zip(texts, whole, strict=True)]

    monkeypatch.setattr(module, "load_gigatoken", lambda serialized: encode)
    monkeypatch.setattr(module, "unlike_characters", lambda pre_tokenizer, load: "\u00fc")
    fast = module.FastTokenizer(reference, "\u00fc")
    return fast, seen


def one_id_more(where: str) -> Callable[[str, Any], Any]:
    return lambda text, ids: np.append(ids, 7) if where in text else ids


def test_wrong_encoder_is_found_by_the_built_in_texts(
    reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fake(reference, monkeypatch, one_id_more("\u0e20\u0e32\u0e29\u0e32"))
    with pytest.raises(RuntimeError, match="gives other ids than tokenizers .*\u05e9\u05b8\u05c1"):
        fast_tokenizer(reference, [])


def test_wrong_encoder_is_found_by_the_users_own_texts(
    reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fake(reference, monkeypatch, one_id_more("zebra"))
    assert fast_tokenizer(reference, ["horse"])
    with pytest.raises(RuntimeError, match="that begins 'a zebra' has at token") as caught:
        fast_tokenizer(reference, ["horse", "a zebra", "another zebra"])
    (ids,) = ids_of(reference, ["a zebra"])
    shown = f"near ' zebra<|end|>', {[*ids[2:-1], 7, 1]} against {ids[2:]}. Do without"
    assert shown in str(caught.value)


def test_wrong_encoder_is_found_while_it_runs(reference, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, _ = with_fake(reference, monkeypatch, one_id_more(""))
    texts = [f"document {number}" for number in range(5 * DOCUMENTS_PER_CHECK)]
    looked_at = {text for text in texts if zlib.crc32(text.encode()) % DOCUMENTS_PER_CHECK == 0}
    assert 1 <= len(looked_at) <= 15
    fast.encode([text for text in texts if text not in looked_at])
    for text in looked_at:
        with pytest.raises(RuntimeError, match=f"that begins '{text}' has at token"):
            fast.encode(["before", text, "after"])


def test_difference_in_a_long_document_is_shown_where_it_is(
    reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(text: str, ids: Any) -> Any:
        return np.where(np.arange(len(ids)) == 4999, 7, ids)

    fast, _ = with_fake(reference, monkeypatch, change)
    with pytest.raises(
        RuntimeError, match=r"at token 4,996, near .*, \[.*, 7, .*\] against \["
    ) as e:
        fast.check(["word " * 10_000])
    assert len(str(e.value)) < 700


def test_tokenizer_that_gigatoken_reads_wrongly_is_found(hugging_face: Path, tmp_path) -> None:
    pytest.importorskip("gigatoken")
    # It takes a missing pre-tokenizer for GPT-2's, without an error.
    reference = load_tokenizer(changed(hugging_face, tmp_path / "none", no_pre_tokenizer))
    with pytest.raises(RuntimeError, match=r"gigatoken \d.* gives other ids than tokenizers \d"):
        fast_tokenizer(reference, [])


def test_tokenizer_that_gigatoken_does_not_know_is_refused(hugging_face: Path, tmp_path) -> None:
    pytest.importorskip("gigatoken")

    def own_split(form: dict[str, Any]) -> None:
        llama_3_split(form)
        form["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[a-c]+|[^a-c]+"

    reference = load_tokenizer(changed(hugging_face, tmp_path / "own", own_split))
    with pytest.raises(ValueError, match="cannot read this tokenizer .*regex.* Leave it out"):
        fast_tokenizer(reference, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda form: form["model"].update(byte_fallback=True), "is not byte-level BPE"),
        (lambda form: form["model"].update(dropout=0.1), "has dropout, so its ids are random"),
        (lambda form: form.update(normalizer={"type": "NFKC"}), r"normalises text \(NFKC\), other"),
    ],
)
def test_tokenizer_of_another_kind_is_refused(
    hugging_face: Path, tmp_path: Path, change, message: str
) -> None:
    reference = load_tokenizer(changed(hugging_face, tmp_path / "other", change))
    with pytest.raises(ValueError, match=f"not for this tokenizer: .*{message}.* Leave it out"):
        fast_tokenizer(reference, [])


def test_sentencepiece_is_refused(tokenizer_model: Path) -> None:
    with pytest.raises(ValueError, match="a SentencePiece model has no fast form with the same"):
        fast_tokenizer(load_tokenizer(tokenizer_model), [])


def test_missing_package_has_the_line_that_installs_it(
    reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "import_if_there", lambda name: None)
    with pytest.raises(ImportError, match=r"is not installed: pip install 'tst-megatron\[fast\]'"):
        fast_tokenizer(reference, [])
