"""Grids: what is refused, and the names of what they make."""

import itertools

import pytest

from tst_megatron.sweep.grid import (
    MOST_LETTERS,
    MOST_LETTERS_OF_A_NAME,
    combination_name,
    combinations,
    read_grid,
    unique,
    value_name,
)


def test_values_are_yaml_and_their_commas_are_their_own():
    grid = read_grid(
        [
            "tst.bag-size=4, 6",
            "lr=1e-3,2.0e-3",
            "tst.schedule=[[4, 0.2], [1, 0.8]],",
            "a=x,true,null",
        ],
        (),
    )
    assert grid == {
        "tst.bag-size": [4, 6],
        "lr": [0.001, 0.002],
        "tst.schedule": [[[4, 0.2], [1, 0.8]]],
        "a": ["x", True, None],
    }
    assert [type(value) for value in grid["tst.bag-size"]] == [int, int]


def test_combinations_are_all_and_the_last_key_changes_fastest():
    grid = read_grid(["a=1,2", "b=x,y,z"], ())
    found = [tuple(keys.values()) for keys in combinations(grid)]
    assert found == list(itertools.product((1, 2), "xyz"))
    assert [keys for keys in combinations(grid, {"b"})] == [{"a": 1}, {"a": 2}]
    assert list(combinations({})) == [{}]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["tst.bag-size"], "is not KEY=VALUE,VALUE"),
        (["=4"], "is not KEY=VALUE,VALUE"),
        (["lr="], "is not KEY=VALUE,VALUE"),
        (["seed=1,2"], "give --seeds N"),
        (["tst.stream-unit-bags=4,8"], "all arms have the same"),
        (["base=a.yaml"], "in the recipe file alone"),
        (["lr=1,2", "lr=3"], "is given twice. Name its values in one --grid"),
        (["lr=1e-3,0.001"], "0.001 is given twice. Give it once"),
        (["lr=4,4.0"], "4.0 is given twice"),
        (["lr=[1"], "the values are not YAML"),
        (["given=1,2"], "given= is given too"),
    ],
)
def test_wrong_grid_is_refused_in_words(options, said):
    with pytest.raises(ValueError, match="--grid") as caught:
        read_grid(options, ["given=3"])
    assert said in str(caught.value)


def test_true_is_not_the_number_1():
    assert read_grid(["a=1,true,0,false"], ()) == {"a": [1, True, 0, False]}


def test_all_problems_are_said_at_once():
    with pytest.raises(ValueError) as caught:
        read_grid(["lr=1,1", "seed=3", "x"], ())
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({}, ""),
        (
            {"tst.bag-size": 4, "tst.superposition-fraction": 0.3},
            "bag-size-4_superposition-fraction-0.3",
        ),
        ({"lr": 0.0003}, "lr-0.0003"),
        ({"lr": 1e-5}, "lr-1e-05"),
        ({"x": -1}, "x--1"),
        ({"swiglu": True}, "swiglu-true"),
        ({"tst.slot-weights": "exp(-i)"}, "slot-weights-exp-i"),
        ({"tst.slot-weights": "1/i"}, "slot-weights-1-i"),
        ({"tst.schedule": [[4, 0.2], [1, 0.8]]}, "schedule-4-0.2-1-0.8"),
        ({"a": None}, "a-null"),
        ({"a": "../.."}, "a-empty"),
    ],
)
def test_name_of_a_combination(keys, name):
    assert combination_name(keys) == name


def test_long_values_are_cut_and_stay_different():
    names = {value_name(f"/a/long/path/that/{'goes/on/' * 9}{end}") for end in "ab"}
    assert len(names) == 2 and all(len(name) <= MOST_LETTERS for name in names)
    keys = {f"key-{number}": "value" * 9 for number in range(9)}
    assert len(combination_name(keys)) <= MOST_LETTERS_OF_A_NAME
    assert combination_name(keys) != combination_name({**keys, "key-8": "other" * 9})


def test_names_are_unique_also_where_capitals_are_the_same():
    taken = []
    for name in ("a", "A", "a", "b"):
        taken.append(unique(name, taken))
    assert taken == ["a", "A-2", "a-3", "b"]
