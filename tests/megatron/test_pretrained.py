"""A run starts from an imported model in any layout, and resumes as any run does."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from interrupted import interrupted_at
from test_hf_families import tensors
from tiny import TINY, fork_ranks, loss_bits, run, saved_weights, wait, write_recipe
from transformers import Qwen3MoeConfig

from tst_megatron.hf.export import export
from tst_megatron.hf.importing import import_model

STEPS = {"train_iters": 6, "lr_wsd_decay_iters": 2, "save_interval": 3, "eval_interval": 6}
TST = {"bag-size": 2, "superposition-steps": 3}


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    """TINY's model as transformers makes it, imported."""
    from test_hf_families import write_model

    folder = tmp_path_factory.mktemp("imported")
    config = Qwen3MoeConfig(
        hidden_size=TINY["hidden-size"],
        intermediate_size=TINY["ffn-hidden-size"],
        num_hidden_layers=TINY["num-layers"],
        num_attention_heads=TINY["num-attention-heads"],
        num_key_value_heads=TINY["num-query-groups"],
        head_dim=TINY["kv-channels"],
        num_experts=TINY["num-experts"],
        num_experts_per_tok=TINY["moe-router-topk"],
        moe_intermediate_size=TINY["moe-ffn-hidden-size"],
        norm_topk_prob=True,
        vocab_size=TINY["vocab-size"],
        max_position_embeddings=64,
        rope_parameters={"rope_theta": TINY["rotary-base"], "rope_type": "default"},
    )
    write_model(config, folder / "hf", torch.float32)
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
    "one": (1, {}),
    "ep2": (2, {"expert_model_parallel_size": 2}),
    "tp2": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline_model_parallel_size": 2}),
}


def test_run_starts_from_imported_weights_in_any_layout(imported, text, tmp_path):
    """With a learning rate of nothing, each layout saves exactly the weights it was given."""
    expected = tensors(imported / "hf")
    for name, (num_ranks, layout) in LAYOUTS.items():
        (tmp_path / name).mkdir()
        recipe = recipe_on(
            imported, tmp_path / name, text, lr=1e-30, min_lr=0.0, weight_decay=0.0, **layout
        )
        run_to_end(recipe, tmp_path / name / "run", num_ranks)
        export(tmp_path / name / "run" / "checkpoints", tmp_path / name / "hf", compute=True)
        actual = tensors(tmp_path / name / "hf")
        assert actual.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensor, actual[key]), (name, key)


def test_run_from_imported_weights_learns_and_resumes_exactly(imported, text, tmp_path):
    recipe = recipe_on(imported, tmp_path, text)
    run_to_end(recipe, tmp_path / "whole")
    interrupted_at(3, tmp_path / "whole", tmp_path / "cut")
    run_to_end(recipe, tmp_path / "cut")

    assert loss_bits(tmp_path / "whole") == loss_bits(tmp_path / "cut")
    first = saved_weights(tmp_path / "whole" / "checkpoints" / "iter_0000003")
    last = saved_weights(tmp_path / "whole" / "checkpoints" / "iter_0000006")
    assert any(not torch.equal(first[key], last[key]) for key in first)


def test_check_says_where_weights_come_from_and_what_does_not_fit(imported, text, tmp_path):
    recipe = recipe_on(imported, tmp_path, text)
    folder = str(tmp_path / "new")

    said = run("check", str(recipe), "--run-folder", folder, log=tmp_path / "log")
    assert f"weights come from {imported / 'mcore'}" in said

    wrong = ("num-layers=3", "vocab-size=640", "rotary-base=10000", "moe-router-topk=1")
    said = run("check", str(recipe), *wrong, "--run-folder", folder, log=tmp_path / "log", status=2)
    for key, ours, theirs in (
        ("num-layers", 3, 2),
        ("vocab-size", 640, 512),
        ("rotary-base", 10000, 1000000),
        ("moe-router-topk", 1, 2),
    ):
        assert f"{key}: {theirs} in {imported / 'mcore' / 'release'}" in said
        assert f"and {ours} in the recipe" in said
    for path, reason in (
        (tmp_path / "nowhere", "no such folder"),
        (imported / "mcore" / "release", "has no latest_checkpointed_iteration.txt"),
    ):
        override = f"pretrained-checkpoint={json.dumps(str(path))}"
        said = run(
            "check", str(recipe), override, "--run-folder", folder, log=tmp_path / "log", status=2
        )
        assert "pretrained-checkpoint: " in said
        assert reason in said
