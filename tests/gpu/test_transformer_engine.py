"""Transformer Engine's layers: bf16, FP8, grouped experts, and the way out of their checkpoints."""

import json
import shutil

import pytest
import tiny
from devices import capabilities, train, tst

from tst_megatron.system.packages import has_transformer_engine

pytestmark = pytest.mark.gpu

TST = {"bag-size": 4, "superposition-steps": 10}
# FP8 scales blocks of 128 numbers, so every product needs multiples of it.
SIZES = {
    "hidden_size": 256,
    "kv_channels": 64,
    "ffn_hidden_size": 512,
    "moe_ffn_hidden_size": 256,
    "seq_length": 128,
    "max_position_embeddings": 128,
}
BF16 = ("profile=null", "bf16=true", "moe-grouped-gemm=true")


@pytest.fixture(scope="module", autouse=True)
def transformer_engine():
    if not capabilities():
        pytest.skip("torch finds no CUDA device")
    if not has_transformer_engine():
        pytest.skip("needs Transformer Engine, which is not installed")


@pytest.fixture(scope="module")
def recipe(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("te")
    return tiny.write_recipe(folder / "tst.yaml", text, TST, **SIZES, save_interval=12)


@pytest.fixture(scope="module")
def in_bf16(recipe):
    """20 steps of both phases with grouped experts; saved after 12 and 20."""
    run = recipe.parent / "bf16"
    train(recipe, run, *BF16, num_ranks=1)
    return run


def fp8():
    """The recipe that this GPU has hardware for."""
    major = capabilities()[0][0]
    if major < 9:
        pytest.skip("FP8 needs compute capability 9.0 or more")
    kind = "mxfp8" if major >= 10 else "blockwise"
    return ("fp8-format=e4m3", f"fp8-recipe={kind}")


def losses(run):
    rows = tiny.metrics(run)
    return [row["bag loss" if "bag loss" in row else "lm loss"] for row in rows]


def test_bf16_agrees_with_the_cpu_host(recipe, in_bf16, tmp_path):
    tiny.run(
        *("train", str(recipe), "--nproc", "1", "--run-folder", str(tmp_path / "cpu")),
        log=tmp_path / "cpu.log",
    )
    # fp32 there, bf16 here; 20 steps let the difference grow.
    assert losses(in_bf16) == pytest.approx(losses(tmp_path / "cpu"), rel=2e-2)


def test_grouped_experts_agree_with_experts_one_by_one(recipe, in_bf16, tmp_path):
    train(recipe, tmp_path / "run", *BF16, "moe-grouped-gemm=false", num_ranks=1)
    assert losses(tmp_path / "run") == pytest.approx(losses(in_bf16), rel=1e-2)


@pytest.fixture(scope="module")
def in_fp8(recipe, in_bf16):
    run = recipe.parent / "fp8"
    train(recipe, run, *BF16, *fp8(), num_ranks=1)
    return run


def test_fp8_agrees_with_bf16(in_fp8, in_bf16):
    assert losses(in_fp8) == pytest.approx(losses(in_bf16), rel=5e-2)
    assert losses(in_fp8) != losses(in_bf16), "FP8 was not on"


def test_resumed_fp8_run_goes_on_as_it_would_have(recipe, in_fp8, tmp_path):
    """From the checkpoint that the run left after step 12, in the recovery phase."""
    run = tmp_path / "run"
    command = (*BF16, *fp8())
    train(recipe, run, *command, num_ranks=1)
    # Back to step 12: what came after it is taken away.
    checkpoints = run / "checkpoints"
    shutil.rmtree(checkpoints / "iter_0000020")
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("12")
    (run / "state.json").unlink()
    train(recipe, run, *command, num_ranks=1)
    assert len(losses(run)) == 20
    # Attention's backward pass adds in any order on a GPU.
    assert losses(run)[12:] == pytest.approx(losses(in_fp8)[12:], rel=5e-3)


@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_checkpoint_of_grouped_experts_is_exported_and_proven(kind, request, tmp_path):
    run = request.getfixturevalue(f"in_{kind}")
    shown = tst("export", str(run / "checkpoints"), str(tmp_path / "exported"))
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["num_experts"] == tiny.TINY["num-experts"]
    assert "tensors bit for bit" in shown
