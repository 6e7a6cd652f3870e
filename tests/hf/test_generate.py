"""Generation with a real model: the likeliest tokens, or draws that a seed repeats."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from small_models import save_model
from transformers import AutoModelForCausalLM

from tst_megatron.cli.app import main
from tst_megatron.data.tokenizer.hugging_face import load_hugging_face
from tst_megatron.hf import generate
from tst_megatron.hf.generate import Sampling, generate_text

PROMPT = "a river near"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Its file for generation says what a chat model's does."""
    folder = save_model(tmp_path_factory.mktemp("model") / "hf", "llama", initializer_range=0.05)
    file = folder / "generation_config.json"
    settings = {"do_sample": True, "temperature": 0.6, "top_k": 3, "repetition_penalty": 1.8}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings | {"max_length": 9}))
    return folder


@pytest.fixture(scope="module")
def drawn(model) -> dict[str, list[str]]:
    """Texts of some ways to draw."""
    ways = {
        "seed 1": Sampling(temperature=1.0, seed=1),
        "seed 2": Sampling(temperature=1.0, seed=2),
        "largest seed": Sampling(temperature=1.0, seed=2**64 - 1),
        "likeliest": Sampling(temperature=1.0, top_p=1e-6, seed=1),
        "greedy": Sampling(),
    }
    return {
        name: [generate_text(model, PROMPT, 12, sampling=way) for _ in range(2)]
        for name, way in ways.items()
    }


def probabilities(model: Path, ids: list[int]) -> torch.Tensor:
    """Of the token after ids."""
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    with torch.no_grad():
        return network(torch.tensor([ids])).logits[0, -1].double().softmax(-1)


def test_greedy_text_is_that_of_a_loop_by_hand(model, drawn):
    tokenizer = load_hugging_face(model)
    ids = tokenizer.beginning(PROMPT)
    added = []
    for _ in range(12):
        added.append(int(probabilities(model, ids + added).argmax()))
        if added[-1] == 1:
            break
    assert drawn["greedy"] == [tokenizer.decode(added, skip_special_tokens=True)] * 2


def test_seed_gives_one_text_and_another_seed_another(drawn):
    for first, second in drawn.values():
        assert first == second
    assert len({drawn["seed 1"][0], drawn["seed 2"][0], drawn["largest seed"][0]}) == 3
    assert drawn["greedy"][0] != drawn["seed 1"][0]
    assert drawn["likeliest"] == drawn["greedy"]


def test_draws_follow_the_probabilities_and_the_share_asked_for(model):
    """All tokens can come at top-p 1, not the 50 likeliest alone; at 0.3 those that hold it."""
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    ids = load_hugging_face(model).beginning(PROMPT)

    def draw(**options) -> set[int]:
        ways = [Sampling(seed=seed, **options) for seed in range(80)]
        return {generate._continue(network, ids, 1, way, 1, pytest.fail)[0] for way in ways}

    with torch.no_grad():
        chances = network(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    order = chances.argsort(descending=True).tolist()
    # Those that are needed to hold the share, the last of them included.
    num_held = int((chances.sort(descending=True).values.cumsum(0) < 0.3).sum()) + 1
    assert draw(temperature=1.0, top_p=0.3) <= set(order[:num_held])
    everything = draw(temperature=1.0)
    assert len(everything) > 50 and everything & set(order[num_held + 50 :])
    assert len(draw(temperature=0.02)) < len(everything) / 2


def test_state_of_the_random_numbers_is_left_alone(model):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    generate_text(model, PROMPT, 2, sampling=Sampling(temperature=1.0, seed=3))
    assert torch.equal(torch.get_rng_state(), before)


def test_end_of_the_model_is_said_by_this_command_alone(model, tmp_path, monkeypatch, capfd):
    folder = Path(shutil.copytree(model, tmp_path / "hf"))
    config = json.loads((folder / "config.json").read_text())
    # Nothing ends a text but the positions.
    config |= {"max_position_embeddings": 40, "eos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    prompt_tokens = len(load_hugging_face(folder).beginning(PROMPT))
    for sampling in ((), ("--temperature", "1", "--top-p", "0.5", "--seed", "3")):
        arguments = ("generate", folder, "--prompt", PROMPT, "--num-tokens", "90", *sampling)
        monkeypatch.setattr(sys, "argv", ["tst-megatron", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code in (0, None)
        out, err = capfd.readouterr()
        assert out.startswith(PROMPT)
        assert err == (
            "The text stops where the model does: it has 40 positions, and the prompt takes "
            f"{prompt_tokens} of them, which leaves {40 - prompt_tokens} of 90 tokens.\n"
        )


def test_seed_that_was_drawn_is_said_and_gives_the_text_again(model):
    said: list[str] = []
    text = generate_text(
        *(model, PROMPT, 12), sampling=Sampling(temperature=1.0), on_progress=said.append
    )
    seed = int(said[0].removeprefix("--seed ").removesuffix(" gives this text again."))
    again = generate_text(model, PROMPT, 12, sampling=Sampling(temperature=1.0, seed=seed))
    assert text == again and len(said) == 1
