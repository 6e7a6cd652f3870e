"""The recipes that are shipped: each is whole but for its text, and its values are held."""

import importlib.util
import json
from pathlib import Path

import pytest

from tst_megatron.megatron.cpu import host

host.install()

from tst_megatron.megatron import arguments
from tst_megatron.recipe import padding
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.recipe.rules.defaults import DANGEROUS_DEFAULTS, DANGEROUS_MOE_DEFAULTS
from tst_megatron.training.check.check_recipe import check_recipe

REPOSITORY = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((REPOSITORY / "examples").glob("*/*.yaml"))
"""Without those in ``ablations/``, which are these with a key or two; see ``tests/unit/sweep/``."""


def load_tool():
    path = REPOSITORY / "tools" / "update_golden.py"
    spec = importlib.util.spec_from_file_location("update_golden", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOLDEN = load_tool()

pytestmark = pytest.mark.usefixtures("outside_a_job")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_example_has_no_problem_but_its_text_that_is_not_here(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(path)
    assert recipe.problems == ()
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe)
    assert {problem.split(": ")[0] for problem in caught.value.problems} == {"data"}
    assert len(caught.value.problems) == len(recipe.data)
    assert "no such manifest" in str(caught.value)


@pytest.mark.parametrize("name", ["baseline", "tst"])
def test_quickstart_passes_on_a_text_and_warns_of_nothing(name, text):
    short = ("train-iters=20", "lr-warmup-iters=2", "lr-wsd-decay-iters=5", "eval-iters=1")
    recipe = load_recipe(
        REPOSITORY / "examples" / "quickstart" / f"{name}.yaml",
        [*short, f"data={json.dumps({str(text): 1.0})}"],
    )
    checked = check_recipe(recipe)
    assert checked.world_size == 2
    assert checked.warnings == ()
    assert checked.schedule.switch_step == (8 if name == "tst" else 0)


@pytest.mark.parametrize("name", GOLDEN.RECIPES)
@pytest.mark.parametrize("key", [*DANGEROUS_DEFAULTS, *DANGEROUS_MOE_DEFAULTS])
def test_every_recipe_sets_every_dangerous_default(name, key):
    recipe = load_recipe(REPOSITORY / "examples" / f"{name}.yaml")
    is_for_experts = key in DANGEROUS_MOE_DEFAULTS
    if is_for_experts and "num-experts" not in recipe.megatron:
        assert key not in recipe.megatron
    else:
        assert recipe.megatron.get(key) is not None


@pytest.mark.parametrize("name", GOLDEN.RECIPES)
def test_no_layout_pads_a_vocabulary_that_it_can_cut_into_equal_parts(name):
    """Padding takes probability, so the loss of the same weights would depend on the layout."""
    keys = load_recipe(REPOSITORY / "examples" / f"{name}.yaml").megatron
    vocab_size, divisor = keys["vocab-size"], keys["make-vocab-size-divisible-by"]
    sizes = padding.sizes_without_padding(vocab_size)
    assert {1, 2, 4, 8} <= set(sizes)
    for ranks in range(1, 9):
        rows = padding.padded(vocab_size, divisor, ranks)
        assert (rows == vocab_size) == (ranks in sizes)


@pytest.mark.parametrize("name", GOLDEN.RECIPES)
def test_resolved_values_are_the_golden_ones(name):
    """If the change is meant: ``python tools/update_golden.py``, and say why in the commit."""
    assert GOLDEN.resolved(name) == json.loads(GOLDEN.golden_path(name).read_text())


def test_both_arms_of_the_quickstart_differ_in_superposition_alone():
    baseline, tst = (
        json.loads(GOLDEN.golden_path(f"quickstart/{arm}").read_text())
        for arm in ("baseline", "tst")
    )
    differing = {key for key in baseline | tst if baseline.get(key) != tst.get(key)}
    assert differing == {"tst", "phases"}
    # One unit of the token stream, or the arms would not read one permutation of the text.
    assert baseline["tst"]["stream-unit-bags"] == tst["tst"]["stream-unit-bags"] == 4


@pytest.mark.parametrize("name", GOLDEN.RECIPES)
def test_every_key_of_a_recipe_is_megatrons(name):
    recipe = load_recipe(REPOSITORY / "examples" / f"{name}.yaml")
    flags, problems = Flags(arguments.argument_parser()).convert(recipe.megatron)
    assert problems == []
    assert len(flags) >= sum(value is not False for value in recipe.megatron.values()) > 20


def test_golden_files_are_those_the_tool_writes():
    written = {GOLDEN.golden_path(name).name for name in GOLDEN.RECIPES}
    # A recipe more or less shows here, and so does a golden file that nothing writes.
    assert {path.name for path in GOLDEN.GOLDEN.glob("*.json")} == written
    assert len(written) == len(EXAMPLES) == 26
