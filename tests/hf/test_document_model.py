"""What lm-eval feeds a model: for each kind of template the beginning of a document, and no more.

Expected ids are put together by hand here, from the text alone as `tokenizers` encodes it.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hugging_face_tokenizers import BOS, EOS, OTHER, PLAIN_ADDED, build_hugging_face
from lm_eval.api.instance import Instance
from small_models import TEXT, save_model
from tokenizers import Tokenizer

from tst_megatron.data.tokenizer.hugging_face import load_hugging_face
from tst_megatron.hf.evaluate.model import DocumentModel

TEMPLATES = {
    "BOS": f"{BOS} $A",
    "none": None,
    "EOS": f"$A {EOS}",
    "BOS and EOS": f"{BOS} $A {EOS}",
}
PAIRS = [
    ("Question: a river near the stone", " answered"),
    (f"{BOS}a garden {OTHER}", f" in the {EOS}{PLAIN_ADDED} cloud"),
    ("ends with spaces  ", "lamp"),
    (EOS, BOS),
]


def make(folder: Path, template: str, **rule: bool) -> SimpleNamespace:
    """A model of random weights with lm-eval around it, and what its tokenizer says by itself."""
    save_model(folder, "llama", vocab_size=512)
    build_hugging_face(folder, [TEXT], single=TEMPLATES[template], vocab_size=500)
    model = DocumentModel(
        load_hugging_face(folder, **rule),
        pretrained=str(folder),
        backend="causal",
        device="cpu",
        batch_size=1,
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = not rule.get("special_tokens_in_text", False)
    read = []
    called = model._model_call
    model._model_call = lambda tokens: read.append(tokens[0].tolist()) or called(tokens)
    return SimpleNamespace(
        model=model,
        read=read,
        ids=lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        start=[0] if "BOS" in template else [],
    )


@pytest.fixture(scope="module", params=TEMPLATES)
def case(request, tmp_path_factory) -> SimpleNamespace:
    made = make(tmp_path_factory.mktemp("model") / "hf", request.param)
    assert not {0, 1, 2}.intersection(*(made.ids(f"{a}{b}") for a, b in PAIRS))
    return made


def asked(kind: str, *arguments) -> list[Instance]:
    return [Instance(kind, {}, arguments, 0)]


@pytest.mark.parametrize(("context", "continuation"), PAIRS)
def test_context_and_continuation_are_the_document_without_its_end(case, context, continuation):
    case.read.clear()
    scored = []
    tokens = case.model._loglikelihood_tokens
    case.model._loglikelihood_tokens = lambda requests, **more: (
        scored.extend(requests) or tokens(requests, **more)
    )
    case.model.loglikelihood(asked("loglikelihood", context, continuation), disable_tqdm=True)
    case.model._loglikelihood_tokens = tokens
    whole = case.start + case.ids(context + continuation)
    ((_, before, after),) = scored
    assert before + after == whole
    assert before == (case.start + case.ids(context.rstrip()))
    assert case.read == [whole[:-1]]


def test_answer_without_a_question_follows_what_begins_a_document(case):
    case.read.clear()
    case.model.loglikelihood(asked("loglikelihood", "", f"{EOS} lamp"), disable_tqdm=True)
    # EOD of the document before, where the template has no BOS: never a BOS that nothing trained.
    assert case.read == [(case.start or [1]) + case.ids(f"{EOS} lamp")[:-1]]


def test_likelihood_of_a_whole_text_has_one_bos_and_no_eos(case):
    case.read.clear()
    text = f"{BOS}a river {EOS}near"
    case.model.loglikelihood_rolling(asked("loglikelihood_rolling", text), disable_tqdm=True)
    assert case.read == [(case.start or [1]) + case.ids(text)[:-1]]


def test_prompts_to_go_on_from_are_beginnings_padded_on_the_left(case):
    prompts = [f"{BOS}a river near", "stone", f"{EOS}", ""]
    ids, mask = case.model.tok_batch_encode(prompts)
    expected = [case.start + case.ids(prompt) or [1] for prompt in prompts]
    unpadded = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
    assert unpadded == expected
    assert all(row[-1] == prompt[-1] for row, prompt in zip(ids, expected, strict=True))


def test_prompt_that_is_too_long_loses_its_start(case):
    ids, _ = case.model.tok_batch_encode(["a river near the stone"], left_truncate_len=3)
    assert ids.tolist() == [case.ids("a river near the stone")[-3:]]


def test_generation_reads_the_beginning(case, monkeypatch):
    read = []
    generate = case.model._model_generate

    def noted(context, **more):
        read.append(context[0].tolist())
        return generate(context, **more)

    monkeypatch.setattr(case.model, "_model_generate", noted)
    wanted = asked("generate_until", f"{EOS}a river", {"until": ["\n"], "max_gen_toks": 2})
    case.model.generate_until(wanted, disable_tqdm=True)
    assert read == [case.start + case.ids(f"{EOS}a river")]


def test_special_tokens_in_text_become_ids_if_asked(tmp_path):
    case = make(tmp_path / "hf", "BOS", special_tokens_in_text=True)
    assert case.model.tok_encode(f"a{EOS}b") == case.ids(f"a{EOS}b")
    assert 1 in case.ids(f"a{EOS}b")
    context = case.model._encode_pair(f"a{OTHER}", "b")[0]
    assert context == [0, *case.ids("a"), 2]
