"""Resets on a GPU, where the optimizer is Transformer Engine's if that is installed."""

import pytest
import tiny
import torch
from devices import num_devices, train

from tst_megatron.cli.quickstart.chain import GPU_WITHOUT_TRANSFORMER_ENGINE
from tst_megatron.megatron.cpu import host
from tst_megatron.system.packages import has_transformer_engine

pytestmark = pytest.mark.gpu

# The tests' own process sees no GPU; it only reads what the run saved.
host.install()

SWITCH, LEARNING_RATE = 4, 1e-3


@pytest.fixture(autouse=True)
def a_gpu():
    if not num_devices():
        pytest.skip("torch finds no CUDA device")


def test_main_weights_are_near_the_new_initialisation_one_step_later(text, tmp_path):
    from tst_megatron.training.resets import draw

    recipe = tiny.write_recipe(
        tmp_path / "tst.yaml",
        text,
        {
            "bag-size": 4,
            "superposition-steps": SWITCH,
            "reset-embeddings": True,
            "reset-optimizer": True,
        },
        dist_ckpt_optim_fully_reshardable=True,
        bf16=True,
        train_iters=SWITCH + 2,
        save_interval=1,
        lr=LEARNING_RATE,
        lr_wsd_decay_iters=1,
    )
    layers = () if has_transformer_engine() else GPU_WITHOUT_TRANSFORMER_ENGINE
    train(recipe, tmp_path / "run", "profile=null", *layers, num_ranks=1)
    checkpoint = tmp_path / "run" / "checkpoints" / f"iter_{SWITCH + 1:07d}"
    saved = tiny.saved_tensors(checkpoint)
    for name, table in (
        ("embedding.word_embeddings.weight", "embeddings"),
        ("output_layer.weight", "output layer"),
    ):
        shape = (tiny.VOCABULARY, tiny.TINY["hidden-size"])
        wanted = draw(table, shape, lambda new: torch.nn.init.normal_(new, 0.0, 0.02), seed=1234)
        (main,) = [key for key in saved if key.endswith(f"param.{name}")]
        assert 0 < (saved[main].float() - wanted).abs().max() < 2 * LEARNING_RATE
    for key in (key for key in saved if ".exp_avg." in key):
        # One step after a start at zero: m = 0.1 g and v = 0.05 g^2.
        squares = saved[key.replace(".exp_avg.", ".exp_avg_sq.")]
        torch.testing.assert_close(squares, 5 * saved[key] ** 2, rtol=1e-4, atol=1e-12)
