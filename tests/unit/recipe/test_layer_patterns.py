"""Texts that say something of each layer."""

import time

import pytest

from tst_megatron.recipe.keys.layer_patterns import frequency, window


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("[0,1]", [0, 1]),
        ("([0]*1+[1]*3)", [0, 1, 1, 1]),
        ("([0]*3+[1])*2", [0, 0, 0, 1] * 2),
        ("[1]*(2+1)", [1, 1, 1]),
        ("2*[1,0]", [1, 0, 1, 0]),
    ],
)
def test_frequency_is_a_number_or_a_list(text, value):
    assert frequency(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("x", "[", "[1", "[1]*[1]", "[1]+1", "[[1]]", "[True]", "[1.5]", "[x]", "[1]-[1]"),
        *("[1]*99999999", "([1]*9999+[1]*9999)", "[1][0]", "[f(1)]", "['a']", "", "[-1]"),
        "[" * 100_000,
    ],
)
def test_other_text_is_refused_at_once(text):
    before = time.monotonic()
    with pytest.raises(ValueError):
        frequency(text)
    assert time.monotonic() - before < 5


def test_window_is_a_tuple():
    assert window("(8,0)") == window("8,0") == (8, 0)
    with pytest.raises(ValueError, match="whole numbers with commas"):
        window("[8,x]")
