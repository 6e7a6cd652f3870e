"""nvidia-modelopt's own exporter writes the same bits, where it covers the case."""

import json
from pathlib import Path

import pytest
import torch
from hf_checkpoints import save_once
from hf_models import tensors

from tst_megatron.checkpoint.reader.open import open_checkpoint
from tst_megatron.checkpoint.reader.weights import TrainedWeights, load_model
from tst_megatron.hf.export import export


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_once(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("layout", ["ep2", "pp2_bf16", "tp2_qwen3", "tp2_llama"])
def test_modelopt_exports_the_same_bits(saved: Path, tmp_path: Path, layout: str) -> None:
    from modelopt.torch.export import export_mcore_gpt_to_hf

    ours = tmp_path / "ours"
    opened = open_checkpoint(saved / layout)
    dtype = opened.args.params_dtype
    export(saved / layout, ours, with_tokenizer=False, verify=False)

    loaded = load_model(TrainedWeights(opened))
    export_mcore_gpt_to_hf(
        loaded.model,
        # It takes the configuration of a model that exists.
        pretrained_model_name_or_path=str(ours),
        export_dir=str(tmp_path / "theirs"),
        dtype=dtype,
    )

    expected, actual = tensors(tmp_path / "theirs"), tensors(ours)
    assert actual.keys() == expected.keys()
    vocab_size = json.loads((ours / "config.json").read_text())["vocab_size"]
    for name, tensor in expected.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            # It keeps the padding of the vocabulary.
            assert len(tensor) == opened.args.padded_vocab_size
            tensor = tensor[:vocab_size]
        assert torch.equal(tensor.to(dtype), actual[name]), name
