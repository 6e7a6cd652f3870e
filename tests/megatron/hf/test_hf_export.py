"""Checkpoints saved by two ranks become Hugging Face folders that compute the same."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_checkpoints import save_once, with_arguments
from safetensors import safe_open

from tst_megatron.checkpoint.reader.open import open_checkpoint
from tst_megatron.checkpoint.reader.weights import TrainedWeights, load_model
from tst_megatron.hf import export, verify, weights
from tst_megatron.hf.families.weight_table import Form, Rule
from tst_megatron.hf.generate import generate_text
from tst_megatron.hf.model_folder import weight_files as folder
from tst_megatron.recipe.padding import cost


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_once(tmp_path_factory.getbasetemp())


def test_export_of_expert_parallel_checkpoint_is_proven(saved: Path, tmp_path: Path) -> None:
    said: list[str] = []
    report = export.export(saved / "ep2", tmp_path / "hf", on_progress=said.append)

    assert (report.iteration, report.dtype, report.num_files) == (3, torch.float32, 1)
    assert (report.vocab_size, report.num_padding_rows) == (1000, 24)
    proof = report.verification
    assert proof is not None
    assert proof.num_tensors == 2 + 1 + 2 * (8 + 1 + 6 * 3)
    assert proof.num_parameters == report.num_parameters
    computed = proof.computed
    assert computed is not None
    assert computed.max_logit > 1
    assert computed.max_logit_difference <= 1e-5
    assert computed.num_greedy_tokens >= 30
    assert computed.num_greedy_ties <= 2
    # What the export leaves out had a part in the run's own loss.
    assert computed.num_padding_columns == 24
    assert 0 < computed.padding_cost < cost(24, computed.mean_log_sum_exp - computed.max_logit)
    assert said[-1] == f"wrote {tmp_path / 'hf'}"
    assert os.listdir(tmp_path) == ["hf"]
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["vocab_size"], config["rope_theta"], config["head_dim"]) == (1000, 500000.0, 24)
    assert config["eos_token_id"] == 2
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "hf").iterdir()} == {
        (tmp_path / "hf" / "config.json").stat().st_mode & 0o077
    }


def test_generate_text_with_exported_tokenizer_continues_prompt(
    saved: Path, tmp_path: Path
) -> None:
    report = export.export(saved / "ep2", tmp_path / "hf", verify=False)

    assert report.tokenizer == f"SentencePiece, from {saved / 'tokenizer.model'}"
    first = generate_text(tmp_path / "hf", "def f(x):\n", 8)
    assert first
    assert first == generate_text(tmp_path / "hf", "def f(x):\n", 8)


def test_export_copies_a_hugging_face_tokenizer_folder(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export.export(saved / "ep2", tmp_path / "first", verify=False)
    with_arguments(
        monkeypatch,
        tokenizer_type="HuggingFaceTokenizer",
        tokenizer_model=str(tmp_path / "first"),
    )

    report = export.export(saved / "ep2", tmp_path / "second", verify=False)

    assert report.tokenizer == f"Hugging Face, from {tmp_path / 'first'}"
    names = [sorted(os.listdir(tmp_path / folder)) for folder in ("first", "second")]
    assert names[0] == names[1]
    assert "tokenizer.json" in names[0]
    configs = [(tmp_path / folder / "config.json").read_text() for folder in ("first", "second")]
    assert configs[0] == configs[1]


def test_export_without_its_tokenizer_is_refused_and_can_be_asked_for(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_arguments(monkeypatch, tokenizer_model="elsewhere/tokenizer.model")
    alone = tmp_path / "run"
    shutil.copytree(saved / "ep2", alone / "checkpoints")

    with pytest.raises(
        ValueError, match=r"elsewhere/tokenizer.model is not on this machine.*--tok"
    ):
        export.export(alone / "checkpoints", tmp_path / "hf")
    assert sorted(os.listdir(tmp_path)) == ["run"]

    report = export.export(
        alone / "checkpoints", tmp_path / "hf", verify=False, with_tokenizer=False
    )
    assert report.tokenizer == "none written, as asked"
    assert (report.vocab_size, report.num_padding_rows) == (1024, 0)

    report = export.export(
        alone / "checkpoints",
        tmp_path / "hf2",
        tokenizer=saved / "tokenizer.model",
        compute=True,
        text="def f(x):\n    return x\n" * 3,
    )
    assert (report.vocab_size, report.num_padding_rows) == (1000, 24)
    proof = report.verification
    assert proof is not None and proof.computed is not None
    # One text, and not two sequences of 64 random tokens.
    assert proof.computed.num_logits % 1000 == 0
    assert proof.computed.num_logits != 2 * 64 * 1000

    with pytest.raises(ValueError, match="neither a SentencePiece model nor a folder"):
        export.export(alone / "checkpoints", tmp_path / "hf3", tokenizer=tmp_path / "nothing")


def test_export_of_tensor_parallel_tied_mixed_checkpoint_is_proven(
    saved: Path, tmp_path: Path
) -> None:
    report = export.export(saved / "tp2_tied_mixed", tmp_path / "hf", with_tokenizer=False)

    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert config["mlp_only_layers"] == [0]
    assert config["norm_topk_prob"] is False
    assert report.num_padding_rows == 25
    assert not (tmp_path / "hf" / "tokenizer_config.json").exists()
    with safe_open(tmp_path / "hf" / "model.safetensors", framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - not a dict
    assert report.verification is not None
    computed = report.verification.computed
    assert computed is not None
    assert computed.max_logit_difference <= computed.logit_bound


def test_export_of_pipeline_parallel_bf16_checkpoint_keeps_its_type(
    saved: Path, tmp_path: Path
) -> None:
    report = export.export(saved / "pp2_bf16", tmp_path / "hf", with_tokenizer=False)

    assert report.dtype is torch.bfloat16
    assert report.num_bytes == 2 * report.num_parameters
    loaded = load_model(TrainedWeights(open_checkpoint(saved / "pp2_bf16")))
    with safe_open(tmp_path / "hf" / "model.safetensors", framework="pt") as file:
        router = file.get_tensor("model.layers.1.mlp.gate.weight")
    trained = loaded.model.get_parameter("decoder.layers.1.mlp.router.weight")
    assert router.dtype is trained.dtype is torch.bfloat16
    assert torch.equal(router, trained)


def test_export_of_large_model_is_cut_into_files(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "SHARD_BYTES", 300_000)
    report = export.export(saved / "ep2", tmp_path / "hf")

    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert report.num_files == len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == report.num_bytes
    assert report.verification is not None


def _patch(monkeypatch: pytest.MonkeyPatch, name: str, replacement: Any) -> None:
    """Exchange a function of weights.py wherever it is used."""
    for module in (weights, export, verify, folder):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, replacement)


def _renamed(old: str, new: str) -> Any:
    """The rules with two Hugging Face names exchanged, in both directions."""
    original = weights.rules

    def exchange(name: str) -> str:
        return name.replace(old, "\0").replace(new, old).replace("\0", new)

    def rules(config: dict[str, Any]) -> Iterator[Rule]:
        for rule in original(config):
            yield replace(rule, hf=tuple(exchange(name) for name in rule.hf))

    return rules


@pytest.mark.parametrize(
    ("old", "new"),
    [("gate_proj", "up_proj"), ("q_norm", "k_norm"), ("experts.0.", "experts.5.")],
)
def test_export_with_exchanged_weights_leaves_nothing(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    _patch(monkeypatch, "rules", _renamed(old, new))

    with pytest.raises(RuntimeError, match=r"logits of transformers and Megatron differ by"):
        export.export(saved / "ep2", tmp_path / "hf")
    assert os.listdir(tmp_path) == []


def test_export_with_wrong_order_of_heads_leaves_nothing(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def split(form: Form, weight: torch.Tensor, config: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        if form is not Form.QKV:
            return original(form, weight, config)
        size, groups = config["head_dim"], config["num_key_value_heads"]
        rows = size * config["num_attention_heads"], size * groups, size * groups
        return tuple(torch.split(weight, list(rows)))

    original = weights.split
    _patch(monkeypatch, "split", split)

    with pytest.raises(RuntimeError, match=r"linear_qkv.weight: .* is not bit for bit"):
        export.export(saved / "ep2", tmp_path / "hf")
    assert os.listdir(tmp_path) == []


def test_export_without_a_tensor_is_not_strict(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = weights.rules
    _patch(
        monkeypatch,
        "rules",
        lambda config: (rule for rule in original(config) if "router" not in rule.megatron),
    )

    with pytest.raises(RuntimeError, match=r"without a place in Qwen3MoeForCausalLM: .*mlp.router"):
        export.export(saved / "ep2", tmp_path / "hf")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"num_hidden_layers": 2', '"num_hidden_layers": 1', "layers.1.* no such weight"),
        ('"num_hidden_layers": 2', '"num_hidden_layers": 3', "no tensor for model.layers.2"),
        ('"hidden_size": 64', '"hidden_size": 48', r"and transformers has"),
    ],
)
def test_verify_of_weights_that_are_not_those_of_config_is_not_strict(
    saved: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    export.export(saved / "ep2", tmp_path / "hf", verify=False)
    config = tmp_path / "hf" / "config.json"
    config.write_text(config.read_text().replace(old, new))

    with pytest.raises(RuntimeError, match=message):
        verify.verify(TrainedWeights(open_checkpoint(saved / "ep2")), tmp_path / "hf")


def test_verify_without_memory_for_two_models_compares_the_weights_and_says_so(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "available_bytes", lambda: 10_000)

    proof = export.export(saved / "ep2", tmp_path / "hf").verification

    assert proof is not None and proof.computed is None
    assert proof.num_tensors == 2 + 1 + 2 * (8 + 1 + 6 * 3)
    assert "two models in float32 take 0.0 GB" in proof.reason
    assert proof.reason in (tmp_path / "hf" / "README.md").read_text()
    with pytest.raises(ValueError, match="two models in float32 .*Use a larger machine"):
        export.export(saved / "ep2", tmp_path / "hf2", compute=True)
    assert sorted(os.listdir(tmp_path)) == ["hf"]


def test_export_into_used_folder_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")

    with pytest.raises(ValueError, match="exists and is not empty"):
        export.export(saved / "ep2", tmp_path)
    assert (tmp_path / "precious").read_text() == "data"


def test_export_of_unsupported_settings_names_them_all(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_arguments(monkeypatch, normalization="LayerNorm", moe_router_score_function="sigmoid")

    with pytest.raises(ValueError, match=r"normalization is LayerNorm.*score-function is sigmoid"):
        export.export(saved / "ep2", tmp_path / "hf")
    assert os.listdir(tmp_path) == []
