"""Recipe keys to command-line flags, on a parser with every kind of option that Megatron's has."""

import argparse
import enum
import json

import pytest

from tst_megatron.recipe.keys.flags import Flags, unknown_key


class Backend(enum.Enum):
    flash = 1
    unfused = 2


def backend(name):
    return Backend[name]  # a KeyError, as Megatron's enum options raise


def pair(text):
    return tuple(int(part) for part in text.strip("()").split(","))


def pattern(text):
    assert "[" in text, "a pattern has brackets"
    return json.loads(text)


def parser():
    options = argparse.ArgumentParser(allow_abbrev=False)
    options.add_argument("--num-layers", type=int, default=None)
    options.add_argument("--lr", type=float, default=None)
    options.add_argument("--ckpt-format", default="torch_dist", choices=["torch", "torch_dist"])
    options.add_argument("--level", type=int, choices=(0, 1, 2))
    options.add_argument("--backend", type=backend, choices=list(Backend), default=Backend.flash)
    options.add_argument("--window", type=pair)
    options.add_argument("--layer-pattern", type=pattern)
    options.add_argument("--name", type=str)
    options.add_argument("--sizes", type=int, nargs="+")
    options.add_argument("--words", nargs="*")
    options.add_argument("--ramp", type=int, nargs=3)
    options.add_argument("--swiglu", action="store_true")
    options.add_argument("--no-rope-fusion", action="store_false", dest="rope_fusion")
    options.add_argument("--disable-bias-linear", action="store_false", dest="add_bias_linear")
    options.add_argument("--logging", action=argparse.BooleanOptionalAction, default=True)
    options.add_argument("--save-interval", "--persistent-save-interval", type=int)
    options.add_argument("--onnx", type=bool)
    return options


def converted(**values):
    keys = {name.replace("_", "-"): value for name, value in values.items()}
    return Flags(parser()).convert(keys)


def parsed(**values):
    """What Megatron's parser makes of the flags, which must be without a problem."""
    flags, problems = converted(**values)
    assert problems == []
    return parser().parse_args(flags)


def problem(**values):
    flags, problems = converted(**values)
    assert flags == []
    (only,) = problems
    return only


# --- values --------------------------------------------------------------------------------------


def test_numbers_and_text_arrive_exactly():
    args = parsed(num_layers=32, lr=3.0000000000000004e-05, name="a b", ckpt_format="torch")
    assert (args.num_layers, args.lr, args.name) == (32, 3.0000000000000004e-05, "a b")
    assert args.ckpt_format == "torch"


def test_whole_number_is_a_number_and_yaml_text_of_a_number_too():
    assert parsed(lr=1).lr == 1.0
    assert parsed(lr="1e-4").lr == 1e-4


def test_nothing_leaves_the_default():
    assert converted(num_layers=None, ckpt_format=None, sizes=None) == ([], [])


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"num_layers": "32"}, "num-layers: '32' is not a whole number"),
        ({"num_layers": 2.0}, "num-layers: 2.0 is not a whole number"),
        ({"num_layers": True}, "num-layers: True is not a whole number"),
        ({"num_layers": [1, 2]}, "num-layers: [1, 2] is a list, and one value is wanted"),
        ({"lr": "fast"}, "lr: 'fast' is not a number"),
        ({"lr": True}, "lr: True is not a number"),
        ({"lr": {"a": 1}}, "lr: {'a': 1} is not a number"),
        ({"name": True}, "name: True is true or false, and text is wanted"),
        ({"name": 1.1}, "name: 1.1 is a number, and text is wanted. Put it in quotes"),
        ({"name": [1]}, "name: [1] is a list, and one value is wanted"),
        ({"window": ["1"]}, "window: ['1'] is a list, and one value is wanted"),
        ({"backend": [1]}, "backend: [1] is a list, and one value is wanted"),
        ({"ckpt_format": "zip"}, "ckpt-format: 'zip' is none of torch, torch_dist"),
        ({"ckpt_format": False}, "ckpt-format: False is true or false, and text is wanted"),
        ({"level": 7}, "level: 7 is none of 0, 1, 2"),
        ({"swiglu": 1}, "swiglu: 1 is not true or false"),
        ({"swiglu": "yes"}, "swiglu: 'yes' is not true or false"),
        ({"swiglu": None}, "swiglu: None is not true or false"),
        ({"rope_fusion": 0}, "rope-fusion: 0 is not true or false"),
        ({"logging": "on"}, "logging: 'on' is not true or false"),
        ({"sizes": [1, 2.5]}, "sizes: 2.5 is not a whole number"),
        ({"sizes": "3"}, "sizes: '3' is not a whole number"),
    ],
)
def test_wrong_value_is_named(values, wanted):
    assert problem(**values) == wanted


def test_choice_of_an_enum_is_taken_by_name():
    assert parsed(backend="unfused").backend is Backend.unfused


def test_choice_that_an_enum_does_not_have_is_named_with_those_it_has():
    assert problem(backend="flesh") == "backend: 'flesh' is none of flash, unfused"


def test_text_for_a_type_of_megatrons_own_is_tried():
    assert parsed(window="3,0").window == (3, 0)
    assert problem(window="wide").startswith("window: 'wide' is not accepted: ")
    wanted = "layer-pattern: 'x' is not accepted: a pattern has brackets"
    assert problem(layer_pattern="x").startswith(wanted)


def test_block_where_text_is_wanted_is_named():
    assert problem(name={"a": 1}).startswith("name: {'a': 1} is ")


def test_lists_and_single_values_fill_an_option_of_several():
    assert parsed(sizes=[1, 2, 3]).sizes == [1, 2, 3]
    assert parsed(sizes=4).sizes == [4]
    assert parsed(words=["a", "b"]).words == ["a", "b"]
    assert parsed(words=[]).words == []
    assert parsed(ramp=[8, 8, 100]).ramp == [8, 8, 100]


@pytest.mark.parametrize("values", [{"sizes": []}, {"ramp": [8, 8]}, {"ramp": 8}])
def test_list_of_the_wrong_length_is_named(values):
    """Otherwise argparse prints Megatron's whole usage and ends the process."""
    (name,) = values
    assert problem(**values).startswith(f"{name}: {values[name]!r} ")


def test_text_that_looks_like_a_flag_arrives_as_text():
    assert parsed(name="-pipe").name == "-pipe"


def test_negative_numbers_arrive():
    assert parsed(lr=-0.5, num_layers=-1).lr == -0.5


def test_false_for_a_flag_typed_bool_is_false():
    """``bool("False")`` is true, so the text must be one that argparse reads as false."""
    assert parsed(onnx=False).onnx is False
    assert parsed(onnx=True).onnx is True


# --- true and false ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "attribute", "wanted"),
    [
        ("swiglu", True, "swiglu", True),
        ("swiglu", False, "swiglu", False),
        ("no-rope-fusion", True, "rope_fusion", False),
        ("no-rope-fusion", False, "rope_fusion", True),
        ("rope-fusion", False, "rope_fusion", False),
        ("rope-fusion", True, "rope_fusion", True),
        ("disable-bias-linear", True, "add_bias_linear", False),
        ("disable-bias-linear", False, "add_bias_linear", True),
        ("add-bias-linear", False, "add_bias_linear", False),
        ("add-bias-linear", True, "add_bias_linear", True),
        ("logging", True, "logging", True),
        ("logging", False, "logging", False),
        ("no-logging", True, "logging", False),
        ("no-logging", False, "logging", True),
    ],
)
def test_true_and_false_mean_what_the_key_says(key, value, attribute, wanted):
    flags, problems = Flags(parser()).convert({key: value})
    assert problems == []
    assert getattr(parser().parse_args(flags), attribute) is wanted


# --- keys ----------------------------------------------------------------------------------------


def test_every_wrong_key_and_value_is_named_and_the_rest_is_converted():
    flags, problems = converted(num_layer=4, lr="x", swiglu=True, qqqqqqqq=1, level=2)
    args = parser().parse_args(flags)
    assert (args.swiglu, args.level, args.lr, args.num_layers) == (True, 2, None, None)
    assert problems == [
        "num-layer: there is no such key. Did you mean num-layers?",
        "lr: 'x' is not a number",
        "qqqqqqqq: there is no such key",
    ]


def test_own_keys_are_proposed_too():
    assert unknown_key("dta", ["data", "tst"]) == "dta: there is no such key. Did you mean data?"
    assert problem(profil="cpu") == "profil: there is no such key. Did you mean profile?"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learning-rate", "lr"),
        ("learning_rate", "lr"),
        ("tst.r", "tst.superposition-fraction"),
        ("tst.K", "tst.bag-size"),
        ("warmup-steps", "lr-warmup-iters"),
        ("hidden-sizes", "hidden-size"),
        # A few letters in common are no hint.
        ("te", None),
        ("colour", None),
        ("tst.x", None),
    ],
)
def test_what_is_proposed_is_what_was_meant(key, meant):
    known = ["lr", "te-rng-tracker", "hidden-size", "lr-warmup-iters", "cut-loss", "color-map"]
    known += ["tst.targets", "tst.bag-size", "tst.superposition-fraction"]
    said = unknown_key(key, known).partition("Did you mean ")[2]
    assert said == (f"{meant}?" if meant else "")


def test_name_of_another_program_is_not_proposed_where_the_key_does_not_exist():
    assert unknown_key("learning-rate", ["seed"]) == "learning-rate: there is no such key"


def test_list_is_spelled_as_megatron_does_where_it_wants_one_word():
    assert parsed(window=[8, 0]).window == (8, 0)
    assert parsed(layer_pattern=[0, 1, 1]).layer_pattern == [0, 1, 1]


def test_key_that_yaml_does_not_read_as_text_is_named():
    """YAML 1.1 reads ``on`` and ``no`` as truth values."""
    _, problems = Flags(parser()).convert({7: 8, True: 3})
    assert [problem.split(". ")[0] for problem in problems] == [
        "7: there is no such key",
        "True: there is no such key",
    ]


def test_help_is_no_key():
    assert problem(help=True).startswith("help: there is no such key")


def test_one_flag_in_two_spellings_is_named():
    """The later would lose where it means Megatron's default: no flag is given for that."""
    found = problem_of_two({"no-rope-fusion": True, "rope-fusion": True})
    assert "no-rope-fusion" in found and "rope-fusion" in found
    assert problem_of_two({"save-interval": 1, "persistent-save-interval": 2})


def problem_of_two(values):
    _, problems = Flags(parser()).convert(values)
    assert len(problems) == 1
    return problems[0]


def test_destination_and_default_are_megatrons():
    flags = Flags(parser())
    assert flags.destination("persistent-save-interval") == "save_interval"
    assert flags.destination("rope-fusion") == "rope_fusion"
    assert flags.destination("nothing") is None
    assert flags.default("ckpt-format") == "torch_dist"


def test_overlay_replaces_every_spelling_of_a_flag_and_nothing_else():
    flags = Flags(parser())
    values = {
        "no-rope-fusion": False,
        "persistent-save-interval": 5,
        "num-layers": 2,
        "unknown": 1,
    }
    over = {"rope-fusion": False, "save-interval": 7, "lr": 0.5}
    assert flags.overlay(values, over) == {
        "num-layers": 2,
        "unknown": 1,
        "rope-fusion": False,
        "save-interval": 7,
        "lr": 0.5,
    }
    assert values["persistent-save-interval"] == 5


@pytest.mark.parametrize(
    ("values", "key", "wanted"),
    [
        ({}, "ckpt-format", "torch_dist"),
        ({}, "rope-fusion", True),
        ({}, "swiglu", False),
        ({"num-layers": 4}, "num-layers", 4),
        ({"num-layers": None}, "num-layers", None),
        ({"swiglu": True}, "swiglu", True),
        ({"no-rope-fusion": True}, "rope-fusion", False),
        ({"no-rope-fusion": False}, "rope-fusion", True),
        ({"rope-fusion": False}, "no-rope-fusion", False),
        ({"disable-bias-linear": True}, "add-bias-linear", False),
        ({"add-bias-linear": False}, "add-bias-linear", False),
        ({"no-logging": True}, "logging", False),
        ({"logging": False}, "logging", False),
        ({"no-such-key": 1, "swiglu": True}, "swiglu", True),
    ],
)
def test_value_is_what_megatron_takes_a_key_to_be(values, key, wanted):
    flags = Flags(parser())
    assert flags.value(values, key) == wanted
    converted, _ = flags.convert({k: v for k, v in values.items() if k != "no-such-key"})
    assert getattr(parser().parse_args(converted), flags.destination(key)) == wanted
