"""Every family goes to Hugging Face format and back, from every layout, without a changed bit."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from damage import without
from hf_checkpoints import save_once
from hf_models import tensors, write_model
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tst_megatron.checkpoint.reader.open import open_checkpoint
from tst_megatron.checkpoint.reader.weights import TrainedWeights
from tst_megatron.hf import importing
from tst_megatron.hf.export import export
from tst_megatron.hf.importing import import_model

LAYOUTS = {
    "ep2": "Qwen3MoeForCausalLM",
    "tp2_tied_mixed": "Qwen3MoeForCausalLM",
    "pp2_bf16": "Qwen3MoeForCausalLM",
    "vpp2": "Qwen3MoeForCausalLM",
    "tp2_qwen3": "Qwen3ForCausalLM",
    "dp2_qwen3_tied": "Qwen3ForCausalLM",
    "pp2_llama_tied": "LlamaForCausalLM",
    "tp2_llama": "LlamaForCausalLM",
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_once(tmp_path_factory.getbasetemp())


def assert_equal(first: Path, second: Path) -> None:
    before, after = tensors(first), tensors(second)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name


@pytest.mark.parametrize(("layout", "architecture"), LAYOUTS.items())
def test_checkpoint_of_any_layout_computes_the_same_and_comes_back_bitwise(
    saved: Path, tmp_path: Path, layout: str, architecture: str
) -> None:
    first = export(saved / layout, tmp_path / "hf", with_tokenizer=False, compute=True)

    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == [architecture]
    computed = first.verification.computed if first.verification else None
    assert computed is not None
    assert computed.max_logit > 1
    assert computed.max_logit_difference <= max(1e-5, 1e-5 * computed.max_logit)

    imported = import_model(tmp_path / "hf", tmp_path / "imported", compute=True)
    assert imported.num_parameters == first.num_parameters
    proof = imported.verification
    assert proof is not None and proof.computed is not None
    assert proof.computed.max_logit_difference == computed.max_logit_difference

    export(tmp_path / "imported", tmp_path / "again", with_tokenizer=False, verify=False)
    assert_equal(tmp_path / "hf", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    # Ids come from the tokenizer, which was left out.
    ids = {"bos_token_id", "eos_token_id"}
    assert {key: value for key, value in again.items() if key not in ids} == {
        key: value for key, value in config.items() if key not in ids
    }


SMALL = {
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 1000,
    "max_position_embeddings": 32,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "qwen3_moe": Qwen3MoeConfig(
        **SMALL, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24
    ),
    "qwen3_moe_tied_sparse": Qwen3MoeConfig(
        **SMALL,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=24,
        norm_topk_prob=True,
        decoder_sparse_step=2,
        tie_word_embeddings=True,
    ),
    "qwen3": Qwen3Config(**SMALL),
    "qwen3_tied": Qwen3Config(**SMALL, tie_word_embeddings=True),
    "llama": LlamaConfig(**SMALL, rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
    "llama_tied": LlamaConfig(
        **SMALL,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_theta": 5e5,
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_model_of_transformers_comes_back_bitwise(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    source = write_model(CONFIGS[name], tmp_path / "hf", dtype)

    report = import_model(source, tmp_path / "imported", compute=True)
    export(tmp_path / "imported", tmp_path / "again", with_tokenizer=False, verify=False)

    assert report.dtype is dtype
    proof = report.verification
    assert proof is not None and proof.computed is not None
    assert proof.computed.max_logit > 1
    assert_equal(source, tmp_path / "again")
    recipe = yaml.safe_load((tmp_path / "imported" / "model.yaml").read_text())
    assert recipe["pretrained-checkpoint"] == str(tmp_path / "imported")
    assert recipe["num-query-groups"] == 1


def test_imported_checkpoint_has_the_norms_under_the_names_of_both_implementations(
    tmp_path: Path,
) -> None:
    source = write_model(CONFIGS["qwen3_moe_tied_sparse"], tmp_path / "hf", torch.float32)
    import_model(source, tmp_path / "imported")
    name = "decoder.layers.1.pre_mlp_layernorm.weight"
    names = ("decoder.layers.1.mlp.linear_fc1.layer_norm_weight", name)
    expected = tensors(source)["model.layers.1.post_attention_layernorm.weight"]

    for removed in names:
        shutil.copytree(tmp_path / "imported", tmp_path / removed)
        without(tmp_path / removed / "release", removed)
        weights = TrainedWeights(open_checkpoint(tmp_path / removed))
        assert torch.equal(weights.read(name), expected)


def test_import_that_the_disk_has_no_room_for_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_model(CONFIGS["qwen3"], tmp_path / "hf", torch.float32)
    num_bytes = sum(tensor.nbytes for tensor in tensors(source).values())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=num_bytes - 1))
    with pytest.raises(OSError, match=r"GB are free, the checkpoint needs 0\.0 GB\. Make room"):
        import_model(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def broken(folder: Path, change: Any) -> Path:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


UP = "model.layers.1.mlp.up_proj.weight"


def with_index(folder: Path, files: Any) -> Path:
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def without_listing(folder: Path, name: str) -> Path:
    """An index that names every weight, beside a file that lacks one."""
    names = list(load_file(folder / "model.safetensors"))
    broken(folder, lambda weights: weights.pop(name))
    return with_index(folder, dict.fromkeys(names, "model.safetensors"))


def with_config(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda hf: broken(hf, lambda w: w.pop("model.layers.1.mlp.up_proj.weight")),
            r"\(1 differences\): model.layers.1.mlp.up_proj.weight is missing",
        ),
        (
            lambda hf: broken(hf, lambda w: w.update(extra=torch.zeros(1))),
            "extra is unknown",
        ),
        (
            lambda hf: broken(hf, lambda w: w.update({"model.norm.weight": torch.zeros(7)})),
            r"model.norm.weight is \(7,\) and should be \(40,\)",
        ),
        (
            lambda hf: with_config(hf, architectures=["MixtralForCausalLM"]),
            "another architecture than Qwen3MoeForCausalLM, Qwen3ForCausalLM, LlamaForCausalLM",
        ),
        (
            lambda hf: with_config(hf, attention_bias=True, hidden_act="gelu", rope_theta=1.5),
            r"(?s)hidden_act='gelu'.*attention_bias=True",
        ),
        (
            lambda hf: with_config(hf, use_sliding_window=True, sliding_window=8),
            "use_sliding_window=True",
        ),
        (lambda hf: with_config(hf, model_type="mistral"), "model_type='mistral': another"),
        (lambda hf: with_config(hf, hidden_size="40"), 'hidden_size="40": must be a whole number'),
        (lambda hf: with_config(hf, vocab_size=None), "vocab_size=null: must be a whole number"),
        (lambda hf: (hf / "config.json").write_text("[]"), "holds no block of named values"),
        (lambda hf: with_index(hf, []), "is no index of weights"),
        (
            lambda hf: with_index(hf, {"model.norm.bias": "model.safetensors"}),
            "model.norm.bias is not in model.safetensors, where the index has it",
        ),
        (
            lambda hf: without_listing(hf, "model.norm.weight"),
            "model.norm.weight is not in model.safetensors, where the index has it",
        ),
        (
            lambda hf: broken(
                hf,
                lambda w: w.update({UP: w[UP].bfloat16()}),
            ),
            "gate_proj.weight, model.layers.1.mlp.up_proj.weight are of several types",
        ),
        (
            lambda hf: with_config(hf, attention_bias=True, num_hidden_layers=9, layer_types=None),
            r"hf: this model has no Megatron form: attention_bias=True",
        ),
        (
            lambda hf: with_config(hf, num_hidden_layers=9, layer_types=None),
            "num_hidden_layers=9, and they hold 3",
        ),
        (lambda hf: with_config(hf, vocab_size=10**9), "vocab_size=1000000000, and they hold 1000"),
        (
            lambda hf: broken(hf, lambda w: w[UP].view(-1)[:2].fill_(torch.nan)),
            rf"NaN or infinite numbers in 1 of its weights: {UP} \(2 NaN of",
        ),
        (
            lambda hf: broken(
                with_config(hf, tie_word_embeddings=True),
                lambda w: w["lm_head.weight"].view(-1)[0].add_(1),
            ),
            r"lm_head.weight is another table .*set \"tie_word_embeddings\": false",
        ),
        (lambda hf: (hf / "tokenizer.json").write_text("garbage"), "tokenizer.json: is not JSON"),
        (lambda hf: (hf / "config.json").unlink(), "has no config.json"),
        (lambda hf: (hf / "config.json").write_text("{"), "is not JSON"),
        (lambda hf: (hf / "model.safetensors").unlink(), "has neither model.safetensors nor"),
        (lambda hf: (hf / "model.safetensors").write_bytes(b"x" * 90), "cannot be read"),
        (lambda hf: (hf.parent / "out" / "precious").write_text("x"), "exists and is not empty"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_import_of_what_it_cannot_take_leaves_nothing(
    tmp_path: Path, change: Any, message: str
) -> None:
    source = write_model(CONFIGS["qwen3"], tmp_path / "hf", torch.float32)
    (tmp_path / "out").mkdir()
    change(source)
    before = sorted(os.listdir(tmp_path / "out"))

    with pytest.raises(ValueError, match=message):
        import_model(source, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["hf", "out"]
    assert sorted(os.listdir(tmp_path / "out")) == before


def test_what_megatron_refuses_is_said_of_the_folder_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_model(CONFIGS["qwen3"], tmp_path / "hf", torch.float32)

    def refuse(*_: Any) -> None:
        raise AssertionError("no such model")

    monkeypatch.setattr(importing, "skeleton", refuse)
    said: list[str] = []
    expected = f"{source}: this model has no Megatron form: Megatron refuses it: no such model"
    with pytest.raises(ValueError, match=expected):
        import_model(source, tmp_path / "out", on_progress=said.append)
    assert said == [] and os.listdir(tmp_path) == ["hf"]


def test_old_folder_with_buffers_a_tied_head_and_an_index_without_metadata_is_imported(
    tmp_path: Path,
) -> None:
    """As writers of some years ago made them; also every chat template goes along."""
    source = write_model(CONFIGS["llama_tied"], tmp_path / "hf", torch.float32)
    there = "model.layers.1.self_attn"

    def old(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights[f"{there}.rotary_emb.inv_freq"] = torch.ones(4)
        weights[f"{there}.masked_bias"] = torch.tensor(-1e4)
        weights[f"{there}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)

    broken(source, old)
    (source / "model.safetensors").rename(source / "model-00001-of-00001.safetensors")
    index = dict.fromkeys(tensors(source), "model-00001-of-00001.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (source / "tokenizer.json").write_text("{}")
    template = "additional_chat_templates/tool_use.jinja"
    (source / template).parent.mkdir()
    (source / template).write_text("{{ messages }}")

    report = import_model(source, tmp_path / "imported", compute=True)

    proof = report.verification
    assert proof is not None and proof.computed is not None
    assert proof.num_tensors == len(index) - 4
    assert template in report.tokenizer
    assert (tmp_path / "imported" / "tokenizer" / template).read_text() == "{{ messages }}"
