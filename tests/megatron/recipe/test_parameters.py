"""Parameters are counted on the model that Megatron builds, at full shape and without memory."""

import resource
from pathlib import Path

import pytest
import tiny
import yaml

from tst_megatron.megatron.cpu import host

host.install()

from tst_megatron.recipe.parameters import EMBEDDINGS, OUTPUT_LAYER, TIED, count_parameters
from tst_megatron.recipe.recipe import RecipeError, load_recipe

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"

PUBLISHED = {
    "llama-270m": 254e6,
    "llama-600m": 561e6,
    "llama-3b": 3.34e9,
    "qwen3-10b-a1b": 10_489_144_832,
}
"""The last is that of the public checkpoint, to the last parameter."""


def formula(shape, *, num_experts_used):
    """Parameters without the two tables, from the shape alone."""
    hidden, heads, groups = (
        shape[key] for key in ("hidden-size", "num-attention-heads", "num-query-groups")
    )
    head = shape["kv-channels"]
    attention = hidden * head * (heads + 2 * groups) + heads * head * hidden
    if shape["qk-layernorm"]:
        attention += 2 * head
    if "num-experts" in shape:
        feed_forward = num_experts_used * 3 * hidden * shape["moe-ffn-hidden-size"]
        feed_forward += hidden * shape["num-experts"]
    else:
        feed_forward = 3 * hidden * shape["ffn-hidden-size"]
    return shape["num-layers"] * (attention + feed_forward + 2 * hidden) + hidden


@pytest.fixture(scope="module")
def counts():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counted = {
        name: count_parameters(load_recipe(EXAMPLES / name / "tst.yaml")) for name in PUBLISHED
    }
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # In KiB. The largest model would take 40 GB in fp32.
    assert used < 1e6
    return counted


@pytest.mark.parametrize("name", PUBLISHED)
def test_total_is_the_published_one(counts, name):
    wanted = PUBLISHED[name]
    tolerance = 0 if isinstance(wanted, int) else 0.005
    assert counts[name].total == pytest.approx(wanted, rel=tolerance, abs=0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_total_and_active_are_those_of_the_shape(counts, name):
    shape = load_recipe(EXAMPLES / name / "tst.yaml").megatron
    table = shape["vocab-size"] * shape["hidden-size"]
    of_all = formula(shape, num_experts_used=shape.get("num-experts"))
    of_one_position = formula(shape, num_experts_used=shape.get("moe-router-topk"))
    count = counts[name]
    assert count.total == of_all + 2 * table
    assert count.active() == of_one_position + 2 * table
    assert count.active(EMBEDDINGS) == of_one_position + table
    assert count.active(EMBEDDINGS, OUTPUT_LAYER) == of_one_position


def test_active_of_10b_a1b_is_what_its_name_says(counts):
    assert {count.padding for count in counts.values()} == {None}
    count = counts["qwen3-10b-a1b"]
    assert count.active(EMBEDDINGS) == 1_196_074_496
    assert count.active(EMBEDDINGS, OUTPUT_LAYER) == 962_700_800


def test_tied_table_counts_once_and_is_the_output_layer_too():
    # 512 rows are padded to 4 x 384 on four tensor-parallel ranks.
    overrides = ["untie-embeddings-and-output-weights=false", "num-layers=1", "vocab-size=512"]
    overrides += ["tensor-model-parallel-size=4", "make-vocab-size-divisible-by=384"]
    count = count_parameters(load_recipe(EXAMPLES / "llama-270m" / "baseline.yaml", overrides))
    assert {part.name: part.total for part in count.parts}[TIED] == 1536 * 576
    assert count.active() == count.active(EMBEDDINGS) == count.active(TIED) + 1536 * 576
    assert "384 x tensor-model-parallel-size 4 pads the vocabulary of 512 to 1,536" in count.padding
    assert "1,024 columns stand for no token" in count.padding


def test_experts_of_other_heads_are_active_in_part(tmp_path):
    recipe = {**tiny.TINY, "mtp-num-layers": 1}
    (tmp_path / "mtp.yaml").write_text(yaml.safe_dump(recipe))
    parts = {part.name: part for part in count_parameters(load_recipe(tmp_path / "mtp.yaml")).parts}
    # Two of the four experts of each layer, of which the heads have one.
    used = 2 * 3 * 64 * 64
    assert parts["multi-token prediction"].total - parts["multi-token prediction"].active == used
    assert parts["experts"].total - parts["experts"].active == 2 * used


def test_every_problem_of_a_recipe_without_a_model_is_named():
    overrides = ["hidden-size=null", "vocab-size=null", "num-layer=2", "tst.baag=1"]
    with pytest.raises(RecipeError) as caught:
        count_parameters(load_recipe(EXAMPLES / "llama-270m" / "tst.yaml", overrides))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "tst.baag",
        "num-layer",
        "hidden-size",
        "vocab-size",
    ]


def test_command_prints_every_part_and_says_what_is_active(tmp_path):
    """In a folder that has no data, and with a layout and a profile for many GPUs."""
    printed = tiny.run(
        *("params", str(EXAMPLES / "qwen3-10b-a1b" / "tst.yaml"), "num-layers=2", "profile=mxfp8"),
        log=tmp_path / "log",
        cwd=tmp_path,
    )
    for part in ("input embeddings", "attention", "routers", "experts", "output layer", "all"):
        assert f"│ {part} " in printed
    table, layer, used = 151936 * 1536, 313_199_872, 30_084_352
    assert f"total: {2 * table + 2 * layer + 1536:,}" in printed
    assert f"active, both tables: {2 * table + 2 * used + 1536:,}" in printed
    assert f"active, output layer but no input embeddings: {table + 2 * used + 1536:,}" in printed
    assert f"active, neither table: {2 * used + 1536:,}" in printed
