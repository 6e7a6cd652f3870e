"""Texts that a model gets in export, generation and quantisation begin as its documents did."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face_tokenizers import BOS, EOS, OTHER, build_hugging_face
from transformers import GenerationConfig

from tst_megatron.data.tokenizer.hugging_face import load_hugging_face
from tst_megatron.hf import generate, verify
from tst_megatron.hf.quantize import quantize

TEXT = f"{BOS}def f(x): {EOS}{OTHER}"


@pytest.fixture(params=[None, f"{BOS} $A", f"$A {EOS}"])
def model(request, training_texts: list[str], tmp_path: Path) -> Path:
    """The folder of a model without weights."""
    folder = build_hugging_face(tmp_path / "hf", training_texts[:1], single=request.param)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


class Parrot:
    """Stands for a model: goes on with a word and EOS."""

    def __init__(self, word: list[int]) -> None:
        self.read: list[list[int]] = []
        self._word = word
        self.generation_config = GenerationConfig(eos_token_id=[1, 2], pad_token_id=0)

    def generate(self, tokens_BT: torch.Tensor, **_: object) -> torch.Tensor:
        self.read += tokens_BT.tolist()
        return torch.cat([tokens_BT, torch.tensor([[*self._word, 1]])], dim=1)


def test_generation_goes_on_from_the_beginning_of_a_document(model: Path, monkeypatch) -> None:
    tokenizer = load_hugging_face(model)
    parrot = Parrot([each for each in tokenizer.beginning(" return") if each != 0])
    monkeypatch.setattr(generate, "load_in_transformers", lambda *_: (parrot, {}))
    assert generate.generate_text(model, TEXT, 4) == " return"
    (document,) = tokenizer.encode([TEXT])
    assert parrot.read == [document[:-1].tolist()]


def test_generation_ends_at_the_last_position_and_says_so(model: Path, monkeypatch) -> None:
    asked: list[int] = []
    said: list[str] = []

    class Endless(Parrot):
        def generate(self, tokens_BT: torch.Tensor, **_: object) -> torch.Tensor:
            asked.append(self.generation_config.max_new_tokens)
            return torch.cat([tokens_BT, torch.tensor([[5] * asked[-1]])], dim=1)

    config = {
        "model_type": "llama",
        "max_position_embeddings": len(load_hugging_face(model).beginning(TEXT)) + 3,
    }
    (model / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(generate, "load_in_transformers", lambda *_: (Endless([5]), {}))
    for number in (2, 3, 4):
        generate.generate_text(model, TEXT, number, on_progress=said.append)
    assert asked == [2, 3, 3]
    positions = config["max_position_embeddings"]
    assert said == [
        f"The text stops where the model does: it has {positions} positions, and the prompt takes "
        f"{positions - 3} of them, which leaves 3 of 4 tokens."
    ]
    # A text that the model itself ends before is not cut off.
    monkeypatch.setattr(generate, "load_in_transformers", lambda *_: (Parrot([5]), {}))
    generate.generate_text(model, TEXT, 4, on_progress=said.append)
    assert len(said) == 1
    with pytest.raises(ValueError, match=rf"the model has {positions} positions\. Give a shorter"):
        generate.generate_text(model, TEXT * 2, 1)


def test_prompt_without_a_text_needs_a_bos(model: Path, monkeypatch) -> None:
    parrot = Parrot([5])
    monkeypatch.setattr(generate, "load_in_transformers", lambda *_: (parrot, {}))
    if load_hugging_face(model).facts.bos_id is None:
        with pytest.raises(ValueError, match="--prompt: has no tokens"):
            generate.generate_text(model, "", 4)
    else:
        generate.generate_text(model, "", 4)
        assert parrot.read == [[0]]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperature": math.nan}, "--temperature nan: is neither 0, which always takes"),
        ({"temperature": math.inf}, "--temperature inf: is neither 0"),
        ({"temperature": -1.0}, "--temperature -1.0: is neither 0"),
        ({"temperature": 1e-30}, "--temperature 1e-30: is neither 0"),
        ({"temperature": 1.0, "top_p": math.nan}, "--top-p nan: is no number above 0 and up to 1"),
        ({"temperature": 1.0, "top_p": 0.0}, "--top-p 0.0: is no number above 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "--top-p 1.5: is no number above 0"),
        ({"temperature": 1.0, "seed": -1}, "--seed -1: is no whole number from 0 to"),
        ({"temperature": 1.0, "seed": 2**64}, f"--seed {2**64}: is no whole number from 0 to"),
        ({"seed": 5}, "--seed: nothing is drawn at temperature 0"),
        ({"top_p": 0.9, "seed": 5}, "--top-p and --seed: nothing is drawn at temperature 0"),
    ],
)
def test_sampling_out_of_its_range_is_refused_in_a_sentence(
    sampling: dict[str, Any], message: str, tmp_path: Path
) -> None:
    # Before the folder is looked at.
    with pytest.raises(ValueError) as caught:
        generate.generate_text(tmp_path, "a", 1, sampling=generate.Sampling(**sampling))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_every_number_out_of_its_range_is_named_at_once(tmp_path: Path) -> None:
    sampling = generate.Sampling(temperature=-1.0, top_p=2.0, seed=-1)
    with pytest.raises(ValueError) as caught:
        generate.generate_text(tmp_path, "a", 1, sampling=sampling)
    assert [line.split()[0] for line in str(caught.value).splitlines()] == [
        *("--temperature", "--top-p", "--seed")
    ]


def test_logits_are_compared_on_the_beginning_of_a_document(model: Path) -> None:
    (document,) = load_hugging_face(model).encode([TEXT])
    tokens = verify._tokens(model, {"max_position_embeddings": 512}, TEXT)
    assert tokens.tolist() == [document[:-1].tolist()]
    short = verify._tokens(model, {"max_position_embeddings": 4}, TEXT)
    assert short.tolist() == [document[:4].tolist()]


def test_calibration_reads_whole_documents(model: Path, tmp_path: Path) -> None:
    texts = [TEXT, "import os\n", f"{EOS}x"] * 3
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    documents = [ids.tolist() for ids in load_hugging_face(model).encode(texts)]
    whole = [each for document in documents for each in document]
    calibration = quantize.Calibration(text=file, num_sequences=100, sequence_length=8)
    tokens = quantize._calibration_tokens(model, calibration)
    assert tokens.flatten().tolist() == whole[: len(whole) // 8 * 8]


def test_tokenizer_that_is_none_for_documents_is_refused_in_words(
    training_texts: list[str], tmp_path: Path
) -> None:
    folder = build_hugging_face(tmp_path / "hf", training_texts[:1], single=f"{OTHER} $A")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"hf: not a tokenizer for documents: its template adds"):
        generate.generate_text(folder, "a", 1)
