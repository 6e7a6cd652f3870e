"""What a config.json may not say: each problem in a line, all at once, before anything is read."""

import json
import math

import pytest

from tst_megatron.hf.families.family import parts_without_form
from tst_megatron.hf.families.qwen3_moe import QWEN3_MOE
from tst_megatron.hf.model_folder.configuration import read_block, read_config
from tst_megatron.hf.model_folder.whole_model import check_config

MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LLAMA = {**MOE, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
NAN = math.nan


def folder_of(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("config", [MOE, LLAMA], ids=["moe", "llama"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head_dim": None, "num_experts_per_tok": 4, "rope_scaling": None},
        {"rope_theta": 10000, "mlp_only_layers": [1], "layer_types": ["full_attention"] * 2},
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
        {"torch_dtype": "bfloat16", "eos_token_id": [1, 2], "pad_token_id": -1},
        {"num_experts": None, "num_local_experts": 4, "num_experts_per_tok": 4},
    ],
    ids=["plain", "null", "lists", "rope", "ids", "other-name"],
)
def test_configuration_that_is_right_is_taken(tmp_path, config, changes):
    config = {name: value for name, value in {**config, **changes}.items() if name != "num_experts"
              or value is not None}  # fmt: skip
    read = read_config(folder_of(tmp_path, config))
    assert (read["num_hidden_layers"], read["head_dim"]) == (2, 4)
    assert config["model_type"] == "llama" or read["num_experts"] == 4


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("num_attention_heads", [0, -4, 2.5, 4.0, "4", None, True, [4], 10**30], "whole number"),
        ("num_hidden_layers", [0, -1, 10**7, 10**30, "2"], "from 1 to 65,536"),
        ("num_experts", [0, -1, 10**7, None], "from 1 to 65,536"),
        ("num_key_value_heads", [0, -1, 1.5], "whole number from 1"),
        ("vocab_size", [0, -1, 2**31, None], "whole number from 1"),
        ("max_position_embeddings", [0, -1], "whole number from 1"),
        ("decoder_sparse_step", [0, -1], "whole number from 1"),
        ("num_experts_per_tok", [0, -1], "whole number from 1"),
        ("num_experts_per_tok", [5, 99], "more than num_experts=4"),
        ("num_key_value_heads", [3, 8], "not a multiple of num_key_value_heads"),
        ("head_dim", [3], "must be even"),
        ("rms_norm_eps", [NAN, math.inf, -1e-6, 0, "1e-6", None, True], "between 0 and 1"),
        ("rope_theta", [0, -1.0, NAN, math.inf, "10000", 1e30], "between 0 and 1e\\+12"),
        ("initializer_range", [NAN, -1.0], "from 0 to 1"),
        ("attention_dropout", [NAN, 2, -1], "from 0 to 1"),
        ("router_aux_loss_coef", [NAN, -1.0, "x"], "from 0 to"),
        ("tie_word_embeddings", ["false", None, 1], "true or false"),
        ("dtype", ["banana", 5, "int8"], "must be one of float32"),
        ("eos_token_id", ["2", [1, "2"], True], "the number of a token"),
        ("mlp_only_layers", [[2], [-1], [0, 5]], "the layers are 0 to 1"),
        ("mlp_only_layers", ["0", [0.5], [True]], "a list of numbers of layers"),
        ("layer_types", [["full_attention"]], "names 1 layers"),
        ("layer_types", [5, [5]], "a list of names"),
        ("num_local_experts", [8], "contradicts num_local_experts"),
        ("rope_parameters", [{"rope_theta": 5e5}], "contradicts rope_parameters"),
        ("rope_scaling", [5, "x"], "must be a block of settings"),
        ("rope_scaling", [{"type": "linear", "factor": NAN}, {"type": "yarn"}], "factor"),
    ],
)
def test_number_that_is_that_of_no_model_is_one_line(tmp_path, key, values, message):
    for value in values:
        with pytest.raises(ValueError, match=message) as caught:
            read_config(folder_of(tmp_path, {**MOE, key: value}))
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"{tmp_path / 'config.json'}: ")
        assert key in line


def test_rope_by_old_and_new_names_must_be_the_same(tmp_path):
    new = {"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0}
    config = {**LLAMA, "rope_parameters": new, "rope_scaling": {"type": "llama3", "factor": 32.0}}
    with pytest.raises(ValueError, match=r"factor=32.0: contradicts rope_parameters.factor=8.0"):
        check_config(folder_of(tmp_path, config))
    assert check_config(folder_of(tmp_path, {**config, "rope_scaling": {**new}}))


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    wrong = {"num_attention_heads": 0, "rms_norm_eps": NAN, "num_experts_per_tok": 99}
    with pytest.raises(ValueError) as caught:
        check_config(folder_of(tmp_path, {**MOE, **wrong, "mlp_only_layers": [7]}))
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1].split("=")[0] for line in lines] == [
        "num_attention_heads",
        "rms_norm_eps",
        "num_experts_per_tok",
        "mlp_only_layers",
    ]


def test_configuration_of_a_family_that_is_not_known_is_left_to_transformers(tmp_path):
    assert check_config(folder_of(tmp_path, {"model_type": "gpt2", "num_attention_heads": 0})) is (
        None
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"[]", "no block of named values"),
        (b"null", "is empty"),
        (b"{", "is not JSON"),
        (b"\xff\xfe{", "not UTF-8"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of git-lfs"),
        (b'{"a": 1, "a": 2, "b": 3}', "has a twice"),
    ],
)
def test_file_that_holds_no_settings_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_block(tmp_path / "config.json")
    assert str(tmp_path / "config.json") in str(caught.value)


def test_one_expert_of_several_with_norm_has_no_megatron_form(tmp_path):
    config = read_config(folder_of(tmp_path, {**MOE, "num_experts_per_tok": 1}))
    with pytest.raises(ValueError, match="no Megatron form: norm_topk_prob=True with num_experts"):
        QWEN3_MOE.flags_from_config({**config, "norm_topk_prob": True})
    assert QWEN3_MOE.flags_from_config({**config, "norm_topk_prob": False})["moe-router-topk"] == 1


def test_parts_without_a_form_are_told_of_a_configuration_alone():
    assert parts_without_form({"attention_bias": True, "mlp_bias": False}) == [
        "attention_bias=True (must be False or None)"
    ]
