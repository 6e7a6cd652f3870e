"""What would make a job fit is told with its memory, the cheapest first."""

import dataclasses

import pytest
import tiny

from tst_megatron.plan.memory.fitting import Machine, ways_to_fit
from tst_megatron.plan.memory.job import memory_of_recipe
from tst_megatron.recipe.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("outside_a_job")
MACHINE = Machine(flops_per_position=6e6, flops_per_second=4e14, bytes_per_second=4.5e11)
RANKS = 4


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("fitting") / "recipe.yaml"
    changes = {"seq_length": 128, "micro_batch_size": 2, "global_batch_size": 16}
    tst = {"bag-size": 4, "superposition-steps": 8}
    return load_recipe(tiny.write_recipe(path, path.parent / "text", tst, **changes))


@pytest.fixture(scope="module")
def memory(recipe):
    return memory_of_recipe(recipe, RANKS)


def test_memory_of_a_job_is_told_by_part(memory):
    fullest = memory.fullest
    parts = fullest.parts()
    assert sum(parts.values()) == fullest.total
    assert {"parameters", "gradients", "moments", "kept for backward: moe"} <= parts.keys()


def test_changes_that_fit_are_told_with_the_cheapest_first(recipe, memory):
    most = int(0.8 * memory.fullest.total)
    ways, refused = ways_to_fit(recipe, RANKS, most, MACHINE)
    assert all(way.memory.fullest.total <= most for way in ways)
    assert [way.cost for way in ways] == sorted(way.cost for way in ways)
    keys = [set(way.changes) for way in ways]
    # Without a pipeline half a micro-batch costs no FLOPs, no bytes and no wait.
    assert keys[0] == {"micro-batch-size"} and ways[0].cost == 0
    assert any("recompute-granularity" in each for each in keys)
    assert len(ways) + len(refused) <= 6


def test_two_changes_are_tried_where_no_single_one_is_enough(recipe, memory):
    single, _ = ways_to_fit(recipe, RANKS, int(0.8 * memory.fullest.total), MACHINE)
    least = min(way.memory.fullest.total for way in single)
    ways, _ = ways_to_fit(recipe, RANKS, least - 1, MACHINE)
    assert ways and all(len(way.changes) > 1 for way in ways)


def test_nothing_fits_into_nothing_and_what_was_refused_is_said(recipe):
    wide = dataclasses.replace(
        recipe, megatron={**recipe.megatron, "expert-model-parallel-size": 4}
    )
    ways, refused = ways_to_fit(wide, RANKS, 0, MACHINE)
    assert ways == []
    (line,) = {each for each in refused if each.startswith("expert-model-parallel-size=8:")}
    assert "ranks" in line or "divi" in line
