"""Words mean what they say, no key stands twice, and what is no YAML is one short sentence."""

import math

import pytest
import yaml

from tst_megatron.system.strict_yaml import MOST_CHARACTERS, NotYAML, read_yaml


def read(text):
    """What a text spells that says nothing twice."""
    return read_yaml(text, pytest.fail)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("100", 100),
        ("-3", -3),
        ("+5", 5),
        ("0", 0),
        ("0.1", 0.1),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("-2.5e+3", -2500.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        # What YAML 1.1 makes something else of.
        ("010", "010"),
        ("0o17", "0o17"),
        ("0x10", "0x10"),
        ("0b1", "0b1"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("on", "on"),
        ("Off", "Off"),
        ("yes", "yes"),
        ("n", "n"),
        ("2026-11-29", "2026-11-29"),
        ("=", "="),
        ("<<", "<<"),
        # Neither is one in any version.
        ("1e", "1e"),
        ("e5", "e5"),
        ("--1", "--1"),
        ("inf", "inf"),
        ("00.5", "00.5"),
        ("9" * 5000, "9" * 5000),
        ('"100"', "100"),
        ("'true'", "true"),
        ("(8,0)", "(8,0)"),
    ],
)
def test_plain_word_is_what_it_says(word, value):
    found = read(f"x: {word}\n")["x"]
    assert (found, type(found)) == (value, type(value))


def test_not_a_number_is_one():
    assert math.isnan(read("x: .NaN")["x"])


def test_what_a_program_wrote_is_read_back():
    values = {"a": [1, 2.5, "x", None, True], "b": {"c": "on", "d": "010", "e": "1:30"}, "f": "é\n"}
    values |= {"g": 1e-5, "h": 1e22, "i": math.inf, "j": "null", "k": [], "l": {}, "m": ""}
    assert read(yaml.safe_dump(values, allow_unicode=True)) == values


def test_every_key_that_stands_twice_is_named_with_both_lines_and_the_first_holds():
    said = []
    text = "lr: 1\ntst:\n  bag-size: 4\nlr: 2\ntst:\n  bag-size: 2\nlist:\n- a: 1\n  b: 2\n  a: 3\n"
    found = read_yaml(text, said.append)
    assert said == [
        "lr: stands on line 1 and again on line 4. Keep one of them",
        "tst: stands on line 2 and again on line 5. Keep one of them",
        "list.1.a: stands on line 8 and again on line 10. Keep one of them",
    ]
    assert found == {"lr": 1, "tst": {"bag-size": 4}, "list": [{"a": 1, "b": 2}]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x: [1, 2\n", "line 2, column 1: while parsing a flow sequence, expected"),
        ("\tx: 1", "line 1, column 1: while scanning for the next token, found character"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("x: &a 1\ny: *a", "line 1, column 4: an anchor or alias"),
        ("y: *a", "line 1, column 4: an anchor or alias"),
        ("x: !!int 3", "line 1, column 4: a tag (tag:yaml.org,2002:int)"),
        ("x: !!python/object/apply:os.system [true]", "line 1, column 4: a tag"),
        ("x: 1\n---\ny: 2", "line 2, column 1: a second document starts"),
        ("? [1]\n: 2", "line 1: a block or a list where a key is wanted"),
        ("x: " + "[" * 5000, "nested more than 20 deep"),
        ("".join(" " * depth + "a:\n" for depth in range(900)), "nested more than 20 deep"),
        ("x: \x00", "special characters are not allowed"),
        ("#" * (MOST_CHARACTERS + 1), "has 1,000,001 characters, and 1,000,000 are the most"),
    ],
)
def test_what_cannot_be_read_is_one_short_sentence(text, words):
    with pytest.raises(NotYAML) as refused:
        read(text)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200
