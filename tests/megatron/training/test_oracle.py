"""Whole runs against ``oracle.py``, a trainer that has neither Megatron nor this project in it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.stream.stream import TokenStream, ensure_indexes
from tst_megatron.hf.importing import import_model
from tst_megatron.recipe.recipe import load_recipe
from tst_megatron.training.check.check_recipe import check_recipe

STEPS, SWITCH = 24, 10
LOSS, GRADIENT = 1e-6, 1e-5
"""Relative tolerances. Measured: 2e-7 and 1e-6, which is the rounding of fp32."""
PIECE = 160
"""Characters of a document: one ends in most sequences."""

SHAPE = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
RUN = {
    "profile": "cpu",
    "seq-length": 24,
    "micro-batch-size": 2,
    "global-batch-size": 8,
    "train-iters": STEPS,
    "lr": 4e-3,
    "min-lr": 4e-4,
    "lr-decay-style": "WSD",
    "lr-wsd-decay-style": "linear",
    "lr-wsd-decay-iters": 6,
    "lr-warmup-iters": 3,
    "adam-beta2": 0.95,
    # Large enough that rounding of small gradients does not decide the sign of an update.
    "adam-eps": 1e-5,
    "weight-decay": 0.1,
    "clip-grad": 0.8,
    "eval-interval": 4,
    "eval-iters": 4,
    "save-interval": 100,
    "log-interval": 1,
    "num-workers": 0,
    "use-distributed-optimizer": True,
    "eod-mask-loss": True,
}
ARMS = {
    "dense": {
        "config": Qwen3Config(**SHAPE),
        "keys": {},
        "tst": {
            "bag-size": 4,
            "superposition-steps": SWITCH,
            "slot-weights": "1/i",
            "linear-cross-entropy": True,
            "reset-optimizer": True,
        },
        "bag sizes": [4] * SWITCH,
    },
    "moe": {
        "config": Qwen3MoeConfig(**SHAPE, **EXPERTS, norm_topk_prob=True),
        "keys": {
            "calculate-per-token-loss": True,
            "moe-aux-loss-coeff": 0.1,
            "moe-z-loss-coeff": 0.01,
        },
        "tst": {"schedule": [[6, 6], [2, 4], [1, 14]]},
        "bag sizes": [6] * 6 + [2] * 4,
    },
}


def write_text(text: Path, folder: Path) -> Path:
    """Real text in documents so short that their ends are everywhere."""
    documents = [json.loads(line)["text"] for line in (text.parent / "corpus.jsonl").open()]
    pieces = {
        document[at : at + PIECE] for document in documents[:8] for at in range(0, 16000, PIECE)
    }
    lines = [json.dumps({"text": piece}) + "\n" for piece in sorted(pieces) if piece.strip()]
    (folder / "pieces.jsonl").write_text("".join(lines))
    prepare(
        [folder / "pieces.jsonl"],
        text.parent / "tokenizer.model",
        folder / "text",
        held_out_fraction=0.1,
        workers=1,
    )
    return folder / "text"


def write_recipe(arm: dict, text: Path, folder: Path) -> Path:
    """Import random weights, and write the recipe of a run that starts from them."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(arm["config"]).float().save_pretrained(folder / "hf")
    import_model(folder / "hf", folder / "imported")
    recipe = {
        **RUN,
        **arm["keys"],
        "base": str(folder / "imported" / "model.yaml"),
        "data": {str(text): 1.0},
        "tst": arm["tst"],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder / "recipe.yaml"


def held_out(text: Path) -> list[list[int]]:
    """The held-out sequences of an evaluation: evenly spread over the file, as docs say."""
    tokens = np.fromfile(text / "validation.bin", dtype=np.uint16).astype(int)
    length, num_sequences = RUN["seq-length"], RUN["eval-iters"] * RUN["global-batch-size"]
    num_places = (len(tokens) - 1) // length
    starts = [number * num_places // num_sequences * length for number in range(num_sequences)]
    return [tokens[start : start + length + 1].tolist() for start in starts]


def input_of_oracle(arm: dict, recipe: Path, text: Path) -> dict:
    """The fields of ``oracle.Arm``: what the run was told, and the ids that its stream gives."""
    checked = check_recipe(load_recipe(recipe))
    ensure_indexes(checked.stream, checked.corpora, note=print)
    stream, batch = TokenStream(checked.stream, checked.corpora), RUN["global-batch-size"]
    return {
        "model": str(recipe.parent / "hf"),
        "samples": [
            [stream.tokens(step * batch + number).tolist() for number in range(batch)]
            for step in range(STEPS)
        ],
        "held_out": held_out(text),
        "bag_sizes": arm["bag sizes"] + [1] * (STEPS - SWITCH),
        "end_of_document": checked.corpora[0].manifest.tokenizer.eod_id,
        "micro_batch_size": RUN["micro-batch-size"],
        "slot_weights": arm["tst"].get("slot-weights", "uniform"),
        "counts_over_all_micro_batches": arm["keys"].get("calculate-per-token-loss", False),
        "resets_optimizer": arm["tst"].get("reset-optimizer", False),
        "peak_learning_rate": RUN["lr"],
        "min_learning_rate": RUN["min-lr"],
        "num_warmup_steps": RUN["lr-warmup-iters"],
        "num_decay_steps": RUN["lr-wsd-decay-iters"],
        "betas": [0.9, RUN["adam-beta2"]],
        "epsilon": RUN["adam-eps"],
        "weight_decay": RUN["weight-decay"],
        "max_gradient_norm": RUN["clip-grad"],
        "balancing_coefficient": arm["keys"].get("moe-aux-loss-coeff", 0.0),
        "logit_coefficient": arm["keys"].get("moe-z-loss-coeff", 0.0),
        "num_steps_between_evaluations": RUN["eval-interval"],
    }


@pytest.fixture(scope="module")
def outcomes(text, tmp_path_factory):
    """By arm: what the oracle was given, the run folder, and what the oracle says of it."""
    folder = tmp_path_factory.mktemp("oracle")
    own_text = write_text(text, folder)
    inputs, ranks = [], {}
    for name, arm in ARMS.items():
        (folder / name).mkdir()
        recipe = write_recipe(arm, own_text, folder / name)
        inputs.append(input_of_oracle(arm, recipe, own_text))
        arguments = ("train", str(recipe), "--run-folder", str(folder / name / "run"))
        log = folder / f"{name}.log"
        ranks[name] = tiny.fork_ranks(*arguments, num_ranks=1, log=log, trusts_weights=True)
    source, target = folder / "input.json", folder / "output.json"
    source.write_text(json.dumps(inputs))
    script = Path(__file__).parents[1].joinpath("oracle.py")
    subprocess.run([sys.executable, str(script), str(source), str(target)], check=True, timeout=300)
    for name in ARMS:
        tiny.wait(ranks[name], folder / f"{name}.log")
    answers = json.loads(target.read_text())
    return {
        name: (given, folder / name / "run", answer)
        for name, given, answer in zip(ARMS, inputs, answers, strict=True)
    }


def series(rows: list[dict], key: str) -> list[float]:
    return [row[key] for row in rows]


@pytest.mark.parametrize("arm", ARMS)
def test_arms_have_what_they_are_to_show(outcomes, arm):
    """Some gradients are clipped and some are not; documents end in all texts."""
    given, _, expected = outcomes[arm]
    clipped = [norm > RUN["clip-grad"] for norm in series(expected["steps"], "grad-norm")]
    assert 4 <= sum(clipped) <= STEPS - 4
    for steps in (given["samples"][:SWITCH], given["samples"][SWITCH:], [given["held_out"]]):
        tokens = [token for step in steps for sample in step for token in sample]
        assert tokens.count(given["end_of_document"]) >= 4


@pytest.mark.parametrize("arm", ARMS)
def test_loss_of_every_step_is_the_oracle_s(outcomes, arm):
    _, run, expected = outcomes[arm]
    rows = tiny.metrics(run)
    losses = series(rows[:SWITCH], "bag loss") + series(rows[SWITCH:], "lm loss")
    assert losses == pytest.approx(series(expected["steps"], "loss"), rel=LOSS)


@pytest.mark.parametrize("arm", ARMS)
def test_gradient_norm_of_every_step_is_the_oracle_s(outcomes, arm):
    _, run, expected = outcomes[arm]
    norms = series(tiny.metrics(run), "grad-norm")
    assert norms == pytest.approx(series(expected["steps"], "grad-norm"), rel=GRADIENT)


@pytest.mark.parametrize("name", ["load_balancing_loss", "z_loss"])
def test_router_losses_of_every_step_are_the_oracle_s(outcomes, name):
    _, run, expected = outcomes["moe"]
    losses = series(tiny.metrics(run), name)
    assert losses == pytest.approx(series(expected["steps"], name), rel=LOSS)


@pytest.mark.parametrize("arm", ARMS)
def test_learning_rate_in_a_row_is_the_one_its_step_was_made_with(outcomes, arm):
    """The oracle made its steps with these rates, and its losses are the run's."""
    _, run, expected = outcomes[arm]
    rates = series(tiny.metrics(run), "learning-rate")
    assert rates == pytest.approx(series(expected["steps"], "learning-rate"), rel=1e-6, abs=0)


@pytest.mark.parametrize("arm", ARMS)
def test_validation_is_next_token_on_the_same_text_in_both_phases(outcomes, arm):
    _, run, expected = outcomes[arm]
    rows = tiny.metrics(run, "validation")
    losses = {str(row["step"]): row["lm loss validation"] for row in rows}
    assert losses == pytest.approx(expected["evaluations"], rel=LOSS)
    assert min(map(int, losses)) < SWITCH < max(map(int, losses)) == STEPS
