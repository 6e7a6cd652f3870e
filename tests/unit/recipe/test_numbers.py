"""Every number of a recipe has its bounds."""

import math

import pytest

from tst_megatron.recipe.keys.kinds import KINDS
from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.recipe.rules.numbers import MAY_BE_NEGATIVE, MAY_BE_ZERO, MOST, number_problems

PARSER = argument_parser()
NUMBERS = [action for action in PARSER._actions if action.type in (int, float)]


def problems(**changes):
    values = PARSER.parse_args([])
    for name, value in {"num_attention_heads": 4, "hidden_size": 32, **changes}.items():
        setattr(values, name, value)
    return number_problems(values, set(changes))


def of_one(action, number):
    value = [number] if action.nargs else number
    if action.nargs == 3:
        value = [number] * 3
    return [problem for problem in problems(**{action.dest: value}) if str(number) in problem]


@pytest.mark.parametrize("action", [each for each in NUMBERS if each.type is float], ids=str)
def test_no_number_may_be_infinite_or_nan(action):
    for number in (math.nan, math.inf, -math.inf):
        assert "is not a finite number" in of_one(action, number)[0]


@pytest.mark.parametrize("action", NUMBERS, ids=str)
def test_no_number_may_be_negative_unless_that_means_something(action):
    assert bool(of_one(action, -3)) is (action.dest not in MAY_BE_NEGATIVE)


@pytest.mark.parametrize("action", [each for each in NUMBERS if each.type is int], ids=str)
def test_no_whole_number_is_without_an_end(action):
    assert of_one(action, 10**20)


@pytest.mark.parametrize("action", NUMBERS, ids=str)
def test_defaults_of_megatron_are_within_their_bounds(action):
    number = action.default
    if isinstance(number, int | float) and not isinstance(number, bool):
        assert not [
            text
            for text in of_one(action, number)
            if "divide" not in text and "without" not in text
        ]


def test_lists_name_keys_that_exist():
    names = {action.dest for action in PARSER._actions}
    assert not (set(MOST) | MAY_BE_NEGATIVE) - names
    assert not MAY_BE_ZERO - names
    assert len(NUMBERS) > 300 and len(KINDS) > 700


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 0}, "seed: 0 is below 1"),
        ({"seed": 2**32}, "seed: 4294967296 is above 4,294,967,295"),
        ({"adam_beta2": 1.5}, "adam-beta2: 1.5 is 1 or more"),
        ({"adam_beta1": 1.0}, "adam-beta1: 1.0 is 1 or more"),
        ({"adam_eps": -1e-8}, "adam-eps: -1e-08 is not above 0"),
        ({"weight_decay": -0.1}, "weight-decay: -0.1 is below 0"),
        ({"hidden_dropout": 1.0}, "hidden-dropout: 1.0 is 1 or more"),
        ({"lr_warmup_fraction": 1.5}, "lr-warmup-fraction: 1.5 is above 1"),
        ({"rotary_percent": 2.0}, "rotary-percent: 2.0 is above 1"),
        ({"vocab_size": 0}, "vocab-size: 0 is below 1"),
        ({"num_layers": 99999999999}, "num-layers: 99999999999 is above 10,000"),
        ({"layernorm_epsilon": 3.0}, "norm-epsilon: 3.0 is 1 or more"),
        ({"profile_ranks": [0, -1]}, "profile-ranks: -1 is below 0"),
        ({"window_size": (-2, 0)}, "window-size: -2 is below -1"),
        ({"moe_layer_freq": [0, 1], "num_layers": 3}, "moe-layer-freq: the list is of 2"),
        ({"moe_layer_freq": [0, 2], "num_layers": 2}, "moe-layer-freq: 2 is neither 0 nor 1"),
        ({"moe_layer_freq": 0}, "moe-layer-freq: 0 is below 1"),
        ({"layernorm_epsilon": 0.0}, "norm-epsilon: 0.0 is not above 0"),
        ({"lr": 1e30}, "lr: 1e+30 is not between"),
        ({"lr": 100.0}, "lr: 100.0 is above 10"),
        ({"init_method_std": 0.0}, "init-method-std: 0.0 is not above 0"),
        ({"clip_grad": 1e-300}, "clip-grad: 1e-300 is not between"),
        (
            {"num_query_groups": 3, "group_query_attention": True},
            "num-query-groups: 3 does not divide num-attention-heads 4",
        ),
        (
            {"padded_vocab_size": 5, "vocab_size": 1000},
            "padded-vocab-size: 5 is below vocab-size 1000",
        ),
        ({"num_query_groups": 2}, "num-query-groups: 2 without group-query-attention"),
        ({"hidden_size": 33}, "num-attention-heads: 4 does not divide hidden-size 33"),
        (
            {"kv_channels": 7, "position_embedding_type": "rope"},
            "kv-channels: rotary positions turn pairs, and 7 of 7",
        ),
        (
            {"max_position_embeddings": 8, "seq_length": 16},
            "max-position-embeddings: 8 is below seq-length 16",
        ),
    ],
)
def test_number_out_of_bounds_is_named_with_its_rule(changes, said):
    assert any(problem.startswith(said) for problem in problems(**changes)), problems(**changes)


def test_numbers_that_a_recipe_does_not_give_are_not_asked():
    values = PARSER.parse_args([])
    values.adam_beta2 = 7.0
    assert number_problems(values, set()) == []
