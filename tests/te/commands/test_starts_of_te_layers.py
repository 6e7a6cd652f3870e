"""Weights go from Hugging Face into Transformer Engine's layers, on, and into plain ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import te_host

te_host.skip_without_transformer_engine()

import te_start
import tiny
import torch
import yaml
from hf_models import tensors, tiny_config, write_model

from tst_megatron.checkpoint import whole
from tst_megatron.hf.export import export
from tst_megatron.hf.importing import import_model
from tst_megatron.training.resets import draw

VOCABULARY = tiny.VOCABULARY
EP2 = {"expert_model_parallel_size": 2, "moe_grouped_gemm": True}
TP2 = {
    "tensor_model_parallel_size": 2,
    "sequence_parallel": True,
    "moe_grouped_gemm": True,
    "gradient_accumulation_fusion": False,  # needs Apex
}
RESETS = {"reset-embeddings": True, "reset-optimizer": True}


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    """TINY's model as transformers makes it in bf16, imported."""
    folder = tmp_path_factory.mktemp("imported")
    write_model(tiny_config(VOCABULARY), folder / "hf", torch.bfloat16)
    import_model(folder / "hf", folder / "mcore")
    return folder


def recipe_on(folder: Path, text: Path, start: Path, tst: dict | None = None, **changes) -> Path:
    """A recipe of the imported model that starts from a checkpoint."""
    tst = {"bag-size": 4, "superposition-steps": 8, **(tst or {})}
    folder.mkdir()
    path = tiny.write_recipe(
        folder / "recipe.yaml", text, tst, pretrained_checkpoint=str(start), **changes
    )
    return path


def started(recipe: Path, profile: str = "bf16") -> Path:
    """The checkpoint that two ranks of ``te_start.py`` save."""
    folder = recipe.parent
    keys = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**keys, "profile": profile}))
    environment = tiny.environment(WORLD_SIZE="2", STORE=str(folder / "store"))
    # Building a model sets these, also in this process.
    environment = {key: environment[key] for key in environment if not key.startswith("NVTE_")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    ranks = [
        subprocess.Popen(
            [sys.executable, te_start.__file__, str(recipe), str(folder / "checkpoints")],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    logs = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(logs)
    return folder / "checkpoints"


def exported(checkpoints: Path) -> dict[str, torch.Tensor]:
    folder = checkpoints.parent / "hf"
    export(checkpoints, folder, with_tokenizer=False, compute=True)
    return tensors(folder)


def assert_same(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        # A step of next to nothing shows in a value that is exactly 0.
        torch.testing.assert_close(actual[key].float(), tensor.float(), rtol=0, atol=1e-25)


@pytest.fixture(scope="module")
def in_ep2(imported, text, tmp_path_factory) -> Path:
    """Imported weights in grouped experts of Transformer Engine, two ranks."""
    folder = tmp_path_factory.mktemp("ep2") / "start"
    return started(recipe_on(folder, text, imported / "mcore", **EP2))


def test_imported_weights_reach_transformer_engines_layers(imported, in_ep2):
    assert_same(exported(in_ep2), tensors(imported / "hf"))
    told = json.loads((in_ep2.parent / "checkpoints-1.json").read_text())
    assert "TEColumnParallelGroupedLinear" in told["classes"]
    assert "BagEmbedding" in told["classes"]
    assert set(told["optimizers"]) == {"transformer_engine.pytorch.optimizers.fused_adam"}


def test_a_checkpoint_of_its_optimizer_is_whole(in_ep2):
    assert whole.problems(in_ep2 / "iter_0000001", deep=True) == []


def test_weights_go_on_in_another_layout_and_into_plain_layers(imported, in_ep2, text, tmp_path):
    again = started(recipe_on(tmp_path / "tp2", text, in_ep2, **TP2), "mxfp8")
    expected = tensors(imported / "hf")
    assert_same(exported(again), expected)
    # With a learning rate of nothing, a run saves exactly the weights that it was given.
    still = {"lr": 1e-30, "min_lr": 0.0, "weight_decay": 0.0, "train_iters": 9}
    recipe = recipe_on(tmp_path / "plain", text, again, **still, lr_wsd_decay_iters=1)
    tiny.train(recipe, tmp_path / "plain" / "run")
    assert_same(exported(tmp_path / "plain" / "run" / "checkpoints"), expected)


def test_resets_reach_every_copy_that_transformer_engines_optimizer_keeps(imported, text, tmp_path):
    recipe = recipe_on(
        tmp_path / "reset",
        text,
        imported / "mcore",
        RESETS,
        dist_ckpt_optim_fully_reshardable=True,
        **EP2,
    )
    checkpoint = started(recipe) / "iter_0000001"
    saved = tiny.saved_tensors(checkpoint)
    for name, table in (
        ("embedding.word_embeddings.weight", "embeddings"),
        ("output_layer.weight", "output layer"),
    ):
        shape = (VOCABULARY, tiny.TINY["hidden-size"])
        wanted = draw(table, shape, lambda new: torch.nn.init.normal_(new, 0.0, 0.02), seed=1234)
        (main,) = [key for key in saved if key.endswith(f"param.{name}")]
        assert torch.equal(saved[main].float(), wanted)
    moments = {key: saved[key] for key in saved if ".exp_avg" in key}
    assert len(moments) > 20
    assert not any(value.any() for value in moments.values())
