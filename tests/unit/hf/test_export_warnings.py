"""What `export` will refuse is said from a recipe's arguments, by the rules of `export`."""

import subprocess
import sys
from argparse import Namespace
from typing import Any

import pytest
from test_hf_config import arguments

from tst_megatron.hf.export_warnings import export_warnings
from tst_megatron.hf.families.known import family_of_args


def of_a_recipe(**changes: Any) -> Namespace:
    """What Megatron's parser makes of a small Qwen3-MoE, before validation."""
    parsed = {
        "add_qkv_bias": False,
        "use_rotary_position_embeddings": False,
        "expert_tensor_parallel_size": None,
        "tensor_model_parallel_size": 1,
        "moe_mlp_glu_interleave_size": None,
        "vocab_size": None,
        "padded_vocab_size": None,
        "kv_channels": None,
        "spec": None,
        "is_hybrid_model": False,
    }
    return arguments(**{**parsed, **changes})


def test_model_that_can_be_exported_has_no_warning() -> None:
    assert export_warnings(of_a_recipe()) == []
    assert export_warnings(of_a_recipe(num_experts=None)) == []
    assert export_warnings(of_a_recipe(num_experts=None, qk_layernorm=False)) == []


def test_defaults_of_megatron_are_warned_of_with_every_key_to_change() -> None:
    """The recipe of a user who sets sizes alone, validated or not."""
    changes = {
        "num_experts": None,
        "qk_layernorm": False,
        "normalization": "LayerNorm",
        "swiglu": False,
        "position_embedding_type": "learned_absolute",
        "add_bias_linear": True,
    }
    (warning,) = export_warnings(of_a_recipe(**changes))
    assert warning == (
        "export will refuse this model, which has no Llama form: normalization is LayerNorm (must "
        "be RMSNorm); swiglu is false (must be true); position-embedding-type is learned_absolute "
        "(must be rope); disable-bias-linear is false (must be true). Change that before training "
        "if you want the model in Hugging Face format"
    )
    validated = of_a_recipe(**changes, add_qkv_bias=True, kv_channels=8, padded_vocab_size=1024)
    assert export_warnings(validated) == [warning]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"add_qkv_bias": True}, "add-qkv-bias is true (must be false)"),
        ({"layernorm_zero_centered_gamma": True}, "apply-layernorm-1p is true (must be false)"),
        ({"position_embedding_type": "none"}, "position-embedding-type is none (must be rope)"),
        (
            {"moe_shared_expert_intermediate_size": 64},
            "moe-shared-expert-intermediate-size is 64 (must be not set or 0)",
        ),
        (
            {"moe_router_score_function": "sigmoid"},
            "moe-router-score-function is sigmoid (must be softmax)",
        ),
        ({"moe_router_enable_expert_bias": True}, "moe-router-enable-expert-bias is true"),
        ({"moe_expert_capacity_factor": 1.25}, "moe-expert-capacity-factor is 1.25 (must be not"),
        ({"moe_router_load_balancing_type": ["sinkhorn"]}, "load-balancing-type is sinkhorn, "),
        ({"moe_layer_freq": 0}, "moe-layer-freq is 0, which leaves no layer with experts"),
        ({"spec": ["a", "b"]}, "spec is ['a', 'b'] (must not be set)"),
        ({"yaml_cfg": "x.yaml"}, "yaml-cfg is x.yaml (must not be set)"),
        (
            {"moe_mlp_glu_interleave_size": 8, "tensor_model_parallel_size": 2},
            "moe-mlp-glu-interleave-size is 8 with expert-tensor-parallel-size 2",
        ),
        (
            {"num_experts": None, "qk_layernorm": False, "num_attention_heads": 5},
            "num-attention-heads is 5, which does not divide hidden-size 48",
        ),
    ],
)
def test_setting_without_a_counterpart_is_named(changes: dict[str, Any], reason: str) -> None:
    (warning,) = export_warnings(of_a_recipe(**changes))
    assert reason in warning


def test_old_switch_of_rope_is_understood_and_the_arguments_stay() -> None:
    args = of_a_recipe(
        position_embedding_type="learned_absolute", use_rotary_position_embeddings=True
    )
    assert export_warnings(args) == []
    assert args.position_embedding_type == "learned_absolute"


def test_experts_interleaved_on_one_rank_are_no_reason() -> None:
    assert export_warnings(of_a_recipe(moe_mlp_glu_interleave_size=8)) == []


@pytest.mark.parametrize("num_experts", [None, 4])
def test_recipe_that_lacks_its_sizes_is_judged_by_what_it_has(num_experts: int | None) -> None:
    """`check` asks before it knows whether the recipe is complete."""
    args = of_a_recipe(
        num_experts=num_experts,
        num_layers=None,
        hidden_size=None,
        num_attention_heads=None,
        qk_layernorm=num_experts is not None,
    )
    assert export_warnings(args) == []


def test_warning_has_every_reason_of_the_refusal() -> None:
    args = of_a_recipe(normalization="LayerNorm", moe_router_group_topk=2, softmax_type="learnable")
    (warning,) = export_warnings(args)
    with pytest.raises(ValueError) as refused:
        family_of_args(args).check(args)
    reasons = str(refused.value).partition("form: ")[2].partition(". Train")[0]
    assert reasons.count(";") == 2
    assert reasons in warning


def test_asking_imports_nothing_slow() -> None:
    code = (
        "import sys; import tst_megatron.hf.export_warnings; "
        "print({'torch', 'numpy', 'transformers', 'megatron'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
