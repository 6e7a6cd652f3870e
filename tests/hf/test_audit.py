"""The command `audit` on small models in Hugging Face format: scores, resuming, clear refusals."""

import json
import shutil

import numpy as np
import pytest
import torch
from command import run
from safetensors.torch import load_file, save_file
from small_models import TEXT, save_model, save_tokenizer
from transformers import AutoModelForCausalLM

from tst_megatron.audit.items import NO_FOIL, Passage, Suite
from tst_megatron.audit.models.open_models import load, open_subjects
from tst_megatron.audit.models.scores import best_inverse_temperature, score

WORDS = TEXT.split(" ")
DOCUMENTS = [" ".join(WORDS[at:] + WORDS[:at]) for at in range(30)]
SMALL = ("--items", 8, "--max-tokens", 3000)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "held-out.jsonl"
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in DOCUMENTS))
    return path


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
def test_scores_are_those_of_a_loop_over_tokens(tmp_path, family):
    folder = save_model(tmp_path / "hf", family)
    generator = np.random.default_rng(0)
    passages = []
    for length in (5, 9, 17):
        ids = generator.integers(2, 384, length)
        foils = generator.integers(2, 384, length - 1)
        foils[0] = NO_FOIL
        passages.append(Passage(ids=ids, positions=np.arange(1, length), foils=foils))
    suite = Suite(name="made", passages=passages, seed=0)
    subjects = open_subjects([folder, folder])
    model = load(subjects.subjects[0], "cpu", 384)
    assert model.has_plain_head
    scores = score(model, suite, inverse_temperature=0.5, batch_size=2)
    network = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    at = 0
    for passage in passages:
        with torch.no_grad():
            logits = network(input_ids=torch.tensor(passage.ids)[None]).logits[0].double()
        for position, foil in zip(passage.positions, passage.foils, strict=True):
            logs = logits[position - 1].log_softmax(0)
            right = int(passage.ids[position])
            halved = (logits[position - 1] * 0.5).log_softmax(0)
            top = logs.exp().topk(2).values
            expected = {
                "loss": -logs[right],
                "matched_loss": -halved[right],
                "entropy": -(logs.exp() * logs).sum(),
                "square": logs.exp().square().sum(),
                "top": top[0],
                "lead": top[0] - top[1],
                "is_top": float(int(logs.argmax()) == right),
            }
            for name, value in expected.items():
                assert getattr(scores, name)[at] == pytest.approx(float(value), abs=2e-4), name
            if foil == NO_FOIL:
                assert np.isnan(scores.foil_loss[at])
            else:
                assert scores.foil_loss[at] == pytest.approx(float(-logs[foil]), abs=2e-4)
            at += 1
    assert at == suite.num_scored


def test_temperature_that_a_model_was_given_is_found_again(tmp_path, model):
    cooled = tmp_path / "cooled"
    shutil.copytree(model, cooled)
    weights = load_file(cooled / "model.safetensors")
    weights["lm_head.weight"] *= 0.5
    save_file(weights, cooled / "model.safetensors", metadata={"format": "pt"})
    models = [load(each, "cpu", 384) for each in open_subjects([model, cooled]).subjects]
    # What the model itself says is what it foretells best as it is.
    torch.manual_seed(0)
    ids = models[0].network.generate(
        torch.arange(40)[:, None] + 2, max_new_tokens=29, do_sample=True, top_k=0, eos_token_id=None
    )
    suite = Suite(
        name="made",
        passages=[
            Passage(ids=each, positions=np.arange(1, 30), foils=np.full(29, NO_FOIL))
            for each in ids.numpy()
        ],
        seed=0,
    )
    first, second = (best_inverse_temperature(each, suite, batch_size=8) for each in models)
    assert first == pytest.approx(1, abs=0.15)
    assert second == pytest.approx(2 * first, rel=0.02)


def test_model_against_itself_differs_nowhere_and_is_scored_once(
    tmp_path, monkeypatch, capsys, model, text
):
    arguments = ("audit", model, model, "--text", text, "--scores", tmp_path / "scores", *SMALL)
    status, said = run(monkeypatch, capsys, *arguments, "--html", tmp_path / "page.html")
    assert status == 0, said
    assert "is found worse in none of" in said and "are at equal loss" in said
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "http" not in page and "src=" not in page
    monkeypatch.setattr("sys.argv", ["tst-megatron", *map(str, arguments), "--json"])
    from tst_megatron.cli.app import main

    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr()
    assert "all scores are in" in printed.err and "loading" not in printed.err
    result = json.loads(printed.out)
    assert {each["verdict"] for each in result["answers"]} <= {"not worse", "cannot tell"}
    assert {each["difference"]["value"] for each in result["answers"]} == {0}
    assert (result["seed"], result["items version"], result["bag size"]) == (1, 1, 4)


def test_audit_that_was_interrupted_goes_on(tmp_path, monkeypatch, capsys, model):
    arguments = ("audit", model, model, "--scores", tmp_path / "scores", *SMALL)
    run(monkeypatch, capsys, *arguments)
    files = sorted((tmp_path / "scores").iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])
    _, said = run(monkeypatch, capsys, *arguments)
    scored = {name for name in ("choices", "copying", "no-answer") if f": {name}, " in said}
    assert scored == {"choices", "copying"}
    assert sorted((tmp_path / "scores").iterdir()) == files


def test_losses_that_are_given_say_what_the_pairing_means(tmp_path, monkeypatch, capsys, model):
    arguments = ("audit", model, model, "--scores", tmp_path, *SMALL)
    _, said = run(monkeypatch, capsys, *arguments)
    assert "It is not known whether" in said and "Name some with --text" in said
    _, said = run(monkeypatch, capsys, *arguments, "--loss", "3.0", "--loss", "3.4")
    assert "are not at equal loss: 3.400 against 3.000" in said


def other_tokenizer(folder):
    save_tokenizer(folder, adds_bos=False, has_words=False)


def few_positions(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))


def nan(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def no_weights(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (other_tokenizer, "its tokenizer is not that of"),
        (few_positions, "has 32 positions, and the models share no context of 64"),
        (nan, "NaN or infinite numbers in 1 of its weights: model.norm.weight"),
        (no_weights, "has no *.safetensors file"),
    ],
)
def test_models_that_cannot_be_compared_are_one_sentence(
    tmp_path, monkeypatch, capsys, model, damage, sentence
):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    damage(other)
    status, said = run(
        monkeypatch, capsys, "audit", model, other, "--scores", tmp_path / "s", *SMALL
    )
    assert status == 2
    assert sentence in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--margin", "accuracy"), "--margin accuracy: is not NAME=NUMBER"),
        (("--margin", "digits=0.1"), "--margin digits: is neither a kind"),
        (("--loss", "3"), "--loss: 1 losses for 2 models"),
        (("--bag-size", "1"), "--bag-size 1: a bag of 2 tokens or more has an edge"),
        (("--text", "missing.txt"), "--text missing.txt: no such file"),
    ],
)
def test_options_that_are_wrong_are_one_sentence(
    tmp_path, monkeypatch, capsys, model, options, sentence
):
    status, said = run(
        monkeypatch, capsys, "audit", model, model, "--scores", tmp_path, *SMALL, *options
    )
    assert status == 2 and sentence in said


def test_text_that_is_too_short_is_one_sentence(tmp_path, monkeypatch, capsys, model):
    short = tmp_path / "short.txt"
    short.write_text("A few words.")
    status, said = run(
        monkeypatch, capsys, "audit", model, model, "--scores", tmp_path, *SMALL, "--text", short
    )
    assert status == 2 and "--text: has 0 passages of 32 tokens or more" in said


def test_one_model_alone_is_refused(tmp_path, monkeypatch, capsys, model):
    status, said = run(monkeypatch, capsys, "audit", model, "--scores", tmp_path)
    assert status == 2 and "Give two folders or more" in said
