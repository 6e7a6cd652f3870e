"""A run starts from an imported model in any layout, and resumes as any run does."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from damage import overwrite, without
from hf_models import tensors, tiny_config, write_model
from interrupted import interrupted_at
from tiny import fork_ranks, loss_bits, metrics, run, saved_weights, wait, write_recipe

from tst_megatron.checkpoint.reader.open import open_checkpoint
from tst_megatron.hf.export import export
from tst_megatron.hf.generate import load_in_transformers
from tst_megatron.hf.importing import import_model
from tst_megatron.recipe import padding
from tst_megatron.recipe.recipe import load_recipe
from tst_megatron.training.check.check_recipe import check_recipe
from tst_megatron.training.run.pretrained import pretrained_problems

STEPS = {"train_iters": 6, "lr_wsd_decay_iters": 2, "save_interval": 3, "eval_interval": 6}
TST = {"bag-size": 2, "superposition-steps": 3}
VOCABULARY = 516


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    """TINY's model as transformers makes it, imported."""

    folder = tmp_path_factory.mktemp("imported")
    # No multiple of Megatron's 128 rows for each of two ranks, and more than the tokenizer has.
    write_model(tiny_config(VOCABULARY), folder / "hf", torch.float32)
    import_model(folder / "hf", folder / "mcore")
    return folder


def recipe_on(imported: Path, folder: Path, text: Path, **changes) -> Path:
    """A recipe that builds on the model.yaml of the import."""
    path = write_recipe(folder / "recipe.yaml", text, TST, **STEPS, **changes)
    model = yaml.safe_load((imported / "mcore" / "model.yaml").read_text())
    keys = yaml.safe_load(path.read_text())
    shape = {key for key in keys if key in model}
    assert {"num-layers", "vocab-size", "num-experts"} <= shape
    own = {key: value for key, value in keys.items() if key not in shape}
    path.write_text(yaml.safe_dump({**own, "base": str(imported / "mcore" / "model.yaml")}))
    return path


def run_to_end(recipe: Path, folder: Path, num_ranks: int = 1) -> None:
    log = folder.with_suffix(".log")
    arguments = ("train", str(recipe), "--run-folder", str(folder))
    wait(fork_ranks(*arguments, num_ranks=num_ranks, log=log), log)


LAYOUTS = {
    "tp2_ep2": (
        2,
        {
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
            "expert_model_parallel_size": 2,
            "expert_tensor_parallel_size": 1,
        },
    ),
    "pp2": (2, {"pipeline_model_parallel_size": 2}),
}


def test_run_starts_from_imported_weights_in_any_layout(imported, text, tmp_path):
    """With a learning rate of nothing, each layout saves exactly the weights it was given.

    And it has their loss: no column of padding takes part in the softmax.
    """
    expected = tensors(imported / "hf")
    losses = {}
    for name, (num_ranks, layout) in LAYOUTS.items():
        (tmp_path / name).mkdir()
        recipe = recipe_on(
            imported, tmp_path / name, text, lr=1e-30, min_lr=0.0, weight_decay=0.0, **layout
        )
        run_to_end(recipe, tmp_path / name / "run", num_ranks)
        rows = metrics(tmp_path / name / "run")
        losses[name] = [rows[0]["bag loss"], rows[-1]["lm loss"]]
        export(tmp_path / name / "run" / "checkpoints", tmp_path / name / "hf", compute=True)
        actual = tensors(tmp_path / name / "hf")
        assert actual.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensor, actual[key]), (name, key)
    assert losses["tp2_ep2"] == pytest.approx(losses["pp2"], rel=1e-5)


def test_import_pads_nothing_and_says_what_padding_would_cost(imported, tmp_path):
    model = yaml.safe_load((imported / "mcore" / "model.yaml").read_text())
    assert padding.padded(VOCABULARY, model["make-vocab-size-divisible-by"], 4) == VOCABULARY
    saved = open_checkpoint(imported / "mcore").args
    assert saved.vocab_size == saved.padded_vocab_size == VOCABULARY
    model, _ = load_in_transformers(imported / "hf", torch.float32)
    with torch.no_grad():
        log_sum_exp = model(torch.arange(3, 67)[None]).logits.logsumexp(-1).mean().item()
    known = padding.known_log_sum_exp(imported / "mcore")
    assert known == pytest.approx(log_sum_exp, abs=0.1)
    with pytest.raises(ValueError, match="--tensor-parallel 5: the model's 516 tokens do not") as e:
        import_model(imported / "hf", tmp_path / "five", tensor_parallel=5)
    assert "Use one of 1, 2, 3, 4, 6" in str(e.value)
    assert not (tmp_path / "five").exists()


def test_run_from_imported_weights_learns_and_resumes_exactly(imported, text, tmp_path):
    recipe = recipe_on(imported, tmp_path, text)
    run_to_end(recipe, tmp_path / "whole")
    interrupted_at(3, tmp_path / "whole", tmp_path / "cut")
    run_to_end(recipe, tmp_path / "cut")

    assert loss_bits(tmp_path / "whole") == loss_bits(tmp_path / "cut")
    first = saved_weights(tmp_path / "whole" / "checkpoints" / "iter_0000003")
    last = saved_weights(tmp_path / "whole" / "checkpoints" / "iter_0000006")
    assert any(not torch.equal(first[key], last[key]) for key in first)


def problems_of(recipe: Path, *overrides: str) -> list[str]:
    return pretrained_problems(check_recipe(load_recipe(recipe, overrides)).arguments)


def test_check_says_where_weights_come_from(imported, text, tmp_path):
    recipe = recipe_on(imported, tmp_path, text)
    said = run("check", str(recipe), "--run-folder", str(tmp_path / "new"), log=tmp_path / "log")
    assert f"weights come from {imported / 'mcore'}" in said


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("num-layers=3",), "num-layers: 2 in .* and 3 in the recipe"),
        (("vocab-size=640",), "vocab-size: 516 in .* and 640 in the recipe"),
        (("rotary-base=10000",), "rotary-base: 1000000 in .* and 10000 in the recipe"),
        (("moe-router-topk=3",), "moe-router-topk: 2 in .* and 3 in the recipe"),
        (("moe-router-score-function=sigmoid",), "moe-router-score-function: 'softmax' in"),
        (("moe-mlp-glu-interleave-size=8",), "moe-mlp-glu-interleave-size: None in .* and 8 in"),
        (
            ("moe-layer-freq='[0,1]'",),
            r"moe-layer-freq: \[True, True\] in .* and \[False, True\] in",
        ),
        (("moe-ffn-hidden-size=32",), "experts.linear_fc1.weight is .* and should be"),
        (("pretrained-checkpoint=nowhere",), "pretrained-checkpoint: nowhere: no such folder"),
    ],
)
def test_weights_of_another_model_are_refused(imported, text, tmp_path, overrides, problem):
    found = problems_of(recipe_on(imported, tmp_path, text), *overrides)
    assert [line for line in found if re.search(problem, line)], found


def test_another_padding_of_the_vocabulary_is_taken(imported, text, tmp_path):
    recipe = recipe_on(imported, tmp_path, text)
    assert problems_of(recipe, "make-vocab-size-divisible-by=96") == []


def test_layers_that_megatron_stores_one_by_one_are_refused(imported, text, tmp_path):
    """A list of layers is the same model as a number, and Megatron stores it in another way."""
    recipe = recipe_on(imported, tmp_path, text)
    found = problems_of(recipe, "moe-layer-freq='[1,1]'")
    assert any("decoder.layers.0.mlp.router.weight is missing" in line for line in found)


def test_a_release_without_its_tracker_is_refused(imported, text, tmp_path):
    override = f"pretrained-checkpoint={json.dumps(str(imported / 'mcore' / 'release'))}"
    (found,) = problems_of(recipe_on(imported, tmp_path, text), override)
    assert "has no latest_checkpointed_iteration.txt" in found


def test_missing_weights_and_damage_are_refused(imported, text, tmp_path):
    recipe = recipe_on(imported, tmp_path, text)
    for name, damage, wanted in (
        (
            "lacking",
            lambda release: without(release, "decoder.final_layernorm.weight"),
            "decoder.final_layernorm.weight is missing",
        ),
        (
            "rotten",
            lambda release: overwrite(release, "common_state"),
            "common_state/shard_0_1 is damaged",
        ),
    ):
        shutil.copytree(imported / "mcore", tmp_path / name)
        damage(tmp_path / name / "release")
        found = problems_of(recipe, f"pretrained-checkpoint={json.dumps(str(tmp_path / name))}")
        assert any(wanted in line for line in found), found


NORMS = (
    "decoder.layers.mlp.linear_fc1.layer_norm_weight",
    "decoder.layers.pre_mlp_layernorm.weight",
)
"""The norms before experts as local layers and as Transformer Engine's save them."""


@pytest.mark.parametrize("kept", NORMS)
def test_run_starts_from_what_either_layers_saved(kept, imported, text, tmp_path):
    """A run's own checkpoint has its norms under one name; an import has them under both."""
    shutil.copytree(imported / "mcore", tmp_path / "own")
    (removed,) = (name for name in NORMS if name != kept)
    without(tmp_path / "own" / "release", removed)
    still = {"lr": 1e-30, "min_lr": 0.0, "weight_decay": 0.0}
    recipe = recipe_on(imported, tmp_path, text, **still)
    keys = {**yaml.safe_load(recipe.read_text()), "pretrained-checkpoint": str(tmp_path / "own")}
    recipe.write_text(yaml.safe_dump(keys))
    arguments = check_recipe(load_recipe(recipe)).arguments
    for implementation in ("local", "transformer_engine"):
        arguments.transformer_impl = implementation
        assert pretrained_problems(arguments) == []
    run_to_end(recipe, tmp_path / "run")
    export(tmp_path / "run" / "checkpoints", tmp_path / "hf", compute=True)
    actual, expected = tensors(tmp_path / "hf"), tensors(imported / "hf")
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
    without(tmp_path / "own" / "release", kept)
    (found,) = pretrained_problems(arguments)
    assert f"{NORMS[0]} is missing. Make the checkpoint again" in found
