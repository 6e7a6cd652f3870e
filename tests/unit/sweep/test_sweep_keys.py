"""Flat keys, words of a command line and recipe files: each reads back as what was written."""

from hypothesis import given, settings
from hypothesis import strategies as some
from sweep_runs import SHORT, TST

from tst_megatron.recipe.recipe import load_recipe
from tst_megatron.sweep.keys import differences, file_of, flat_keys, from_anywhere, words_of
from tst_megatron.system.strict_yaml import read_yaml

TEXTS = some.text(
    some.characters(exclude_categories=("Cs", "Cc")), max_size=12
) | some.sampled_from(
    ["1e-4", "on", "010", "null", "", "true", "a: b", "#x", "1:30", "exp(-i)", ".inf", "- a", "'\""]
)
VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | TEXTS,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=5,
)


def refuse(said):
    raise AssertionError(said)


@settings(max_examples=400, deadline=None)
@given(some.dictionaries(TEXTS.filter(bool), VALUES, max_size=3))
def test_file_and_words_read_back_as_the_same_values(values):
    keys = {f"key-{number}": value for number, value in enumerate(values.values())}
    block = {"tst": {"a": 1}, "data": {"a folder: #1": 2.0}}
    flat = {**keys, "tst.a": 1, "data": block["data"]}
    text = file_of(flat, comment="One line.\nAnother: #", base="../base.yaml")
    assert read_yaml(text, refuse) == {"base": "../base.yaml", **keys, **block}
    for word in words_of(keys):
        key, _, value = word.partition("=")
        assert "\n" not in word
        found = read_yaml(value, refuse)
        assert (found, type(found)) == (keys[key], type(keys[key]))


def test_recipe_file_is_the_recipe_and_is_read_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(
        TST, [*SHORT, "tst.slot-weights=exp(-i)", "data={a b: 0.5, c: 1}", "data-cache-path=cache"]
    )
    moved = from_anywhere(recipe)
    file = tmp_path / "deep" / "recipe.yaml"
    file.parent.mkdir()
    file.write_text(file_of(flat_keys(moved), comment="A recipe."))
    monkeypatch.chdir(file.parent)
    again = load_recipe(file)
    assert again.resolved() == moved.resolved() and again.problems == ()
    assert [str(path) for path in again.data] == [str(tmp_path / "a b"), str(tmp_path / "c")]
    assert again.megatron["data-cache-path"] == str(tmp_path / "cache")


def test_differences_make_one_recipe_of_the_other():
    one = flat_keys(load_recipe(TST, [*SHORT, "tst.slot-weights=1/i"]))
    other = flat_keys(load_recipe(TST, [*SHORT, "tst.bag-size=8", "lr=1e-3", "profile=bf16"]))
    keys = differences(one, other)
    assert keys == {
        "lr": 0.001,
        "profile": "bf16",
        "tst.bag-size": 8,
        "tst.slot-weights": "uniform",
    }
    again = load_recipe(TST, [*SHORT, "tst.slot-weights=1/i", *words_of(keys)])
    assert flat_keys(again) == other
    assert differences(one, one) == {}
