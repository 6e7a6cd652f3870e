"""Qwen3-MoE's config.json, refusals and weight forms; without Megatron."""

from argparse import Namespace
from typing import Any

import pytest
import torch

from tst_megatron.checkpoint.reader.weights import separate_gates
from tst_megatron.hf.families.family import recipe_key
from tst_megatron.hf.families.qwen3_moe import QWEN3_MOE
from tst_megatron.hf.families.weight_table import Form
from tst_megatron.hf.model_folder import weight_files as folder
from tst_megatron.hf.model_folder.weight_files import plan_files
from tst_megatron.hf.weights import merge, rules, split

QKV = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 5}


def arguments(**changes: Any) -> Namespace:
    """Saved arguments of a small Qwen3-MoE, as far as they are read here."""
    values: dict[str, Any] = {
        "num_layers": 4,
        "hidden_size": 48,
        "num_attention_heads": 6,
        "group_query_attention": True,
        "num_query_groups": 3,
        "kv_channels": 24,
        "ffn_hidden_size": 96,
        "moe_ffn_hidden_size": 40,
        "num_experts": 6,
        "moe_router_topk": 2,
        "moe_router_pre_softmax": False,
        "moe_layer_freq": 1,
        "moe_aux_loss_coeff": 0.001,
        "moe_router_load_balancing_type": "aux_loss",
        "moe_router_score_function": "softmax",
        "normalization": "RMSNorm",
        "layernorm_epsilon": 1e-6,
        "swiglu": True,
        "qk_layernorm": True,
        "position_embedding_type": "rope",
        "rotary_base": 1_000_000,
        "max_position_embeddings": 4096,
        "vocab_size": 1000,
        "padded_vocab_size": 1024,
        "untie_embeddings_and_output_weights": True,
        "attention_dropout": 0.0,
        "init_method_std": 0.02,
        "params_dtype": torch.bfloat16,
        "add_bias_linear": False,
    }
    return Namespace(**{**values, **changes})


def test_config_of_custom_shapes_takes_each_value_from_the_arguments() -> None:
    config = QWEN3_MOE.config_from_args(arguments(), bos_token_id=1, eos_token_id=2)

    expected = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": 1000,
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 24,
        "intermediate_size": 96,
        "moe_intermediate_size": 40,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "router_aux_loss_coef": 0.001,
        "mlp_only_layers": [],
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"untie_embeddings_and_output_weights": False}, {"tie_word_embeddings": True}),
        ({"moe_router_pre_softmax": True}, {"norm_topk_prob": False}),
        ({"group_query_attention": False}, {"num_key_value_heads": 6}),
        ({"moe_ffn_hidden_size": None}, {"moe_intermediate_size": 96}),
        ({"moe_layer_freq": [0, 1, 1, 0]}, {"mlp_only_layers": [0, 3]}),
        ({"moe_layer_freq": 2}, {"mlp_only_layers": [1, 3]}),
        ({"vocab_size": None}, {"vocab_size": 1024}),
        (
            {
                "moe_router_load_balancing_type": ["aux_loss", "global_aux_loss"],
                "moe_aux_loss_coeff": [0.25, 0.5],
            },
            {"router_aux_loss_coef": 0.75},
        ),
    ],
)
def test_config_follows_argument(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    config = QWEN3_MOE.config_from_args(arguments(**changes))

    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"add_bias_linear": True},
        {"add_qkv_bias": True},
        {"swiglu": False},
        {"qk_layernorm": False},
        {"qk_l2_norm": True},
        {"normalization": "LayerNorm"},
        {"layernorm_zero_centered_gamma": True},
        {"position_embedding_type": "learned_absolute"},
        {"rotary_percent": 0.5},
        {"rotary_interleaved": True},
        {"rotary_seq_len_interpolation_factor": 2},
        {"use_rope_scaling": True},
        {"window_size": (128, 0)},
        {"softmax_type": "off-by-one"},
        {"attention_output_gate": True},
        {"multi_latent_attention": True},
        {"mtp_num_layers": 1},
        {"moe_shared_expert_intermediate_size": 64},
        {"moe_latent_size": 16},
        {"moe_router_score_function": "sigmoid"},
        {"moe_router_enable_expert_bias": True},
        {"moe_router_topk_scaling_factor": 2.5},
        {"moe_router_group_topk": 2},
        {"moe_expert_capacity_factor": 1.0},
        {"moe_router_load_balancing_type": "sinkhorn"},
        {"num_experts": None},
        {"moe_layer_freq": [0, 0, 0, 0]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_check_refuses_what_the_family_cannot_express(changes: dict[str, Any]) -> None:
    key = recipe_key(next(iter(changes)))
    with pytest.raises(ValueError, match=f"no Qwen3-MoE form: {key} is "):
        QWEN3_MOE.check(arguments(**changes))


def test_check_names_every_unsupported_setting_at_once_as_a_recipe_spells_it() -> None:
    with pytest.raises(ValueError) as caught:
        QWEN3_MOE.check(
            arguments(
                add_bias_linear=True,
                add_qkv_bias=True,
                qk_layernorm=False,
                moe_router_group_topk=2,
                moe_shared_expert_intermediate_size=64,
                no_rope_freq=[1] * 1000,
            )
        )

    assert str(caught.value) == (
        "The model has no Qwen3-MoE form: disable-bias-linear is false (must be true); "
        f"no-rope-freq is {str([1] * 1000)[:60]}... (must be not set); "
        "qk-layernorm is false (must be true); moe-router-group-topk is 2 (must be not set); "
        "moe-shared-expert-intermediate-size is 64 (must be not set or 0). Train with the "
        "settings named."
    )


def test_config_with_larger_vocabulary_than_the_embedding_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size 2000: the model has only 1024 rows"):
        QWEN3_MOE.config_from_args(arguments(), vocab_size=2000)


def test_split_of_fused_attention_equals_a_loop_over_groups() -> None:
    weight = torch.arange(3 * 4 * 5 * 2.0).reshape(3 * 4 * 5, 2)
    queries: list[torch.Tensor] = []
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    row = 0
    for _ in range(3):
        for rows, count in ((queries, 2), (keys, 1), (values, 1)):
            for _ in range(count * 5):
                rows.append(weight[row])
                row += 1

    parts = split(Form.QKV, weight, QKV)

    for part, expected in zip(parts, (queries, keys, values), strict=True):
        assert torch.equal(part, torch.stack(expected))
    assert torch.equal(merge(Form.QKV, parts, QKV), weight)


def test_split_of_vocabulary_drops_the_padding() -> None:
    weight = torch.arange(8.0).reshape(4, 2)

    (part,) = split(Form.VOCABULARY, weight, {"vocab_size": 3})

    assert torch.equal(part, weight[:3])


def test_split_of_gate_and_up_keeps_their_order() -> None:
    weight = torch.arange(8.0).reshape(4, 2)

    gate, up = split(Form.GATE_UP, weight, {})

    assert torch.equal(gate, weight[:2])
    assert torch.equal(up, weight[2:])
    assert torch.equal(merge(Form.GATE_UP, (gate, up), {}), weight)


def test_rules_name_every_weight_once() -> None:
    config = QWEN3_MOE.config_from_args(arguments(moe_layer_freq=[0, 1, 1, 1]))
    hf = [name for rule in rules(config) for name in rule.hf]
    megatron = [rule.megatron for rule in rules(config)]

    assert len(set(hf)) == len(hf) == 2 + 1 + 4 * 8 + 3 + 3 * (1 + 6 * 3)
    assert len(set(megatron)) == len(megatron)
    assert "model.layers.0.mlp.down_proj.weight" in hf
    assert "model.layers.3.mlp.experts.5.down_proj.weight" in hf


def test_rules_of_tied_embeddings_have_no_output_layer() -> None:
    config = QWEN3_MOE.config_from_args(arguments(untie_embeddings_and_output_weights=False))

    assert not any("lm_head.weight" in rule.hf for rule in rules(config))


def test_separate_gates_equals_a_loop_over_blocks() -> None:
    weight = torch.arange(24.0).reshape(12, 2)
    gate = [row for start in (0, 6) for row in range(start, start + 3)]
    up = [row for start in (3, 9) for row in range(start, start + 3)]

    assert torch.equal(separate_gates(weight, 3), weight[gate + up])


def test_plan_files_keeps_the_order_and_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "SHARD_BYTES", 10)

    assert plan_files({"a": 4, "b": 6, "c": 11, "d": 1}) == {
        "model-00001-of-00003.safetensors": ["a", "b"],
        "model-00002-of-00003.safetensors": ["c"],
        "model-00003-of-00003.safetensors": ["d"],
    }
    assert plan_files({"a": 4}) == {"model.safetensors": ["a"]}
