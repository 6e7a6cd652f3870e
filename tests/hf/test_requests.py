"""The tokens that are scored: lm-eval's own with usual tokenizers, whole answers with others."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import task_data
from lm_eval.api.model import TemplateLM
from small_models import TEXT, save_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tst_megatron.data.tokenizer.hugging_face import load_hugging_face
from tst_megatron.hf.evaluate import requests
from tst_megatron.hf.evaluate.definitions import task_names
from tst_megatron.hf.evaluate.run import load_tasks

SPECIALS = ["<s>", "</s>", "<unk>"]


def upstream(texts: requests.Texts, context: str, answer: str) -> tuple[list[int], list[int]]:
    """What lm-eval parts, with our ids of a text."""
    lm = SimpleNamespace(backend="causal", tok_encode=texts.ids)
    return TemplateLM._encode_pair(lm, context, answer)


def save(folder: Path, backend: Tokenizer) -> requests.Texts:
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return requests.Texts(load_hugging_face(folder))


def trained(folder: Path, backend: Tokenizer, *, alphabet: bool = True) -> requests.Texts:
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    return save(folder, backend)


@pytest.fixture(scope="module", params=[False, True])
def words(request, tmp_path_factory) -> requests.Texts:
    """Of a byte-level tokenizer that parts in front of spaces, as Llama 3 and Qwen3 have it."""
    folder = tmp_path_factory.mktemp("words")
    save_tokenizer(folder, adds_bos=request.param)
    return requests.Texts(load_hugging_face(folder))


@pytest.fixture(scope="module")
def superwords(tmp_path_factory) -> requests.Texts:
    folder = tmp_path_factory.mktemp("superwords")
    save_tokenizer(folder, adds_bos=False, has_words=False)
    return requests.Texts(load_hugging_face(folder))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> dict:
    """The paper's, with the requests of invented items."""
    folder = tmp_path_factory.mktemp("task-data")
    names = "hellaswag,arc_easy,mmlu_anatomy,mmlu_anatomy_continuation,boolq,openbookqa,piqa"
    task_data.write_task_data(folder, f"{names},winogrande")
    loaded = load_tasks(task_names(f"{names},winogrande"), folder)["tasks"]
    requests.build(loaded.values(), None)
    return loaded


def test_requests_of_the_paper_are_parted_as_lm_eval_parts_them(words, tasks):
    num_compared = 0
    for task in tasks.values():
        for request in task.instances:
            context, answer = request.args
            assert words.pair(context, answer) == upstream(words, context, answer)
            num_compared += 1
    assert num_compared == 6 * (4 + 4 + 2 + 4 + 2 + 2) + 2 * (4 + 4)
    requests.check(tasks, words, 512)


@pytest.mark.parametrize(
    ("context", "answer"),
    [("a river near", " stone"), ("ends in spaces \n ", "lamp"), ("  ", "lamp"), ("x", "  ")],
)
def test_usual_pairs_are_parted_as_lm_eval_parts_them(words, context, answer):
    assert words.pair(context, answer) == upstream(words, context, answer)


def by_bytes(texts: requests.Texts, context: str, answer: str) -> tuple[list[int], list[int]]:
    """By the definition, for a byte-level tokenizer: where the bytes of its tokens end."""
    ids = texts.ids(context + answer)
    backend = Tokenizer.from_str(texts._documents.serialized)
    decoder = {letter: byte for byte, letter in enumerate(_letters())}
    num_bytes, first = 0, 0
    for token_id in ids:
        num_bytes += len([decoder[letter] for letter in backend.id_to_token(token_id)])
        if num_bytes > len(context.rstrip().encode()):
            break
        first += 1
    return ids[:first], ids[first:]


def _letters() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def test_answer_has_every_token_with_a_character_of_it(superwords):
    random_ = random.Random(3)
    pieces = ["Answer:", " Answer", ":", " ", "lamp", " river", "é", "語", "yes", "A", "\n", "ste"]
    num_spanning = 0
    for _ in range(300):
        text = "".join(random_.choices(pieces, k=random_.randint(2, 8)))
        cut = random_.randint(1, len(text) - 1)
        context, answer = text[:cut], text[cut:]
        if not answer.strip():
            continue
        assert superwords.pair(context, answer) == by_bytes(superwords, context, answer), text
        num_spanning += superwords.pair(context, answer)[0] != superwords.ids(context.rstrip())
    assert num_spanning > 50


@pytest.mark.parametrize("answer", [" A", "A", "swer", " yes", "A\n"])
def test_spanning_token_belongs_to_the_answer(superwords, answer):
    context = "Answer:" if answer != "swer" else "An"
    before, after = superwords.pair(context, answer)
    assert before + after == superwords.ids(context + answer) and after


def test_token_that_is_nothing_but_the_context_stays_in_it(superwords):
    """Also one that the context alone would not have, and so is no part of a common beginning."""
    backend = Tokenizer.from_str(superwords._documents.serialized)
    whole = backend.encode("xyAnswer: A").tokens
    before, after = superwords.pair("xyAnswer:", " A")
    assert "".join(whole[: len(before)]) == "xy" and len(after) == 1


def test_unknown_character_over_the_join_is_scored(tmp_path):
    """Two unknown characters in a row are one token, also where the answer starts between them."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    texts = trained(tmp_path, backend, alphabet=False)
    assert [len(ids) for ids in texts.pair("lamp語", "語")] == [len(texts.ids("lamp")), 1]


def test_spaces_that_post_processing_cuts_off_a_token_are_characters_of_it(tmp_path):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["a: ", "b: ", "c: "] * 9, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    texts = save(tmp_path, backend)
    assert backend.encode("q: z").tokens == ["q", ":Ġ", "z"]
    assert texts.pair("q:", " z") == (texts.ids("q"), texts.ids("q: z")[1:])


def request_of(kind: str, *arguments) -> dict:
    request = SimpleNamespace(request_type=kind, args=arguments, doc_id=7)
    return {"made": SimpleNamespace(instances=[request])}


@pytest.mark.parametrize(
    ("kind", "arguments", "problem"),
    [
        ("loglikelihood", ("a river", ""), "its answer '' has no tokens"),
        ("loglikelihood", ("", ""), "its answer '' has no tokens"),
        ("loglikelihood", ("a", " lamp" * 30), "its answer has 30 tokens, and the model has 20"),
        ("generate_until", ("a", {"until": ["x"]}), "it generates up to 256 tokens, and the model"),
        ("generate_until", ("a", {"max_gen_toks": 20}), "it generates up to 20 tokens"),
    ],
)
def test_request_that_lm_eval_could_not_finish_is_named(words, kind, arguments, problem):
    with pytest.raises(ValueError) as caught:
        requests.check(request_of(kind, *arguments), words, 20)
    assert (
        str(caught.value)
        .splitlines()[1]
        .startswith(f"  made: 1 of 1, the first for item 7: {problem}")
    )


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        *[
            ("loglikelihood", ("a", " ")),
            ("loglikelihood", ("a ", "")),
            ("loglikelihood", ("", "a")),
        ],
        *[("loglikelihood_rolling", ("",)), ("generate_until", ("", {"max_gen_toks": 19}))],
    ],
)
def test_request_that_can_be_put_to_a_model_is_not_refused(words, kind, arguments):
    requests.check(request_of(kind, *arguments), words, 20)


def test_requests_are_built_once_with_the_examples_of_their_seed(tmp_path):
    task_data.write_task_data(tmp_path, "arc_easy", number=9)
    task = load_tasks(["arc_easy"], tmp_path)["tasks"]["arc_easy"]
    requests.build([task], 3)
    built = task.instances
    task.build_all_requests(limit=None, rank=0, world_size=1)
    assert task.instances is built and {request.doc_id for request in built} == {0, 1, 2}
