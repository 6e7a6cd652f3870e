"""The parameters of a model are counted once, whichever ranks hold them."""

from pathlib import Path

import pytest
from layouts import LAYOUTS, RECIPE
from processes import run_ranks

NAMES = (
    "DP2, distributed optimizer, both overlaps",
    "TP2+SP",
    "TP2+SP, ETP1",
    "TP2+SP, ETP1, EP2",
    "PP2",
    "VPP2 on PP2",
    "EP2",
    "ETP2 on TP1",
)
CASES = [
    (layout.name, layout.flags, is_tied)
    for layout in LAYOUTS
    for is_tied in (False, True)
    if layout.name in NAMES
]


def counts_of_layouts(tokenizer: Path) -> dict[tuple[str, bool], dict[str, int]]:
    """What this rank finds in each layout, in one process group."""
    import one_step

    from tst_megatron.training.report.facts_of_run import count_parameters

    found = {}
    for name, flags, is_tied in CASES:
        tied = {"untie-embeddings-and-output-weights": not is_tied}
        args = one_step.start({**RECIPE, "tokenizer-model": str(tokenizer), **flags, **tied})
        found[name, is_tied] = count_parameters(one_step.build(args))
    return found


@pytest.fixture(scope="module")
def counts(text):
    tokenizer = text.parent / "tokenizer.model"
    return run_ranks(counts_of_layouts, 2, tokenizer, preload="preloaded")


def by_hand(*, is_tied):
    """Of the recipe of ``layouts.py``, whose model has 4 layers with 4 experts, of which 2 work."""
    hidden, kv, experts = RECIPE["hidden-size"], 2 * RECIPE["kv-channels"], RECIPE["num-experts"]
    table = RECIPE["vocab-size"] * hidden
    attention = hidden * (hidden + 2 * kv) + hidden * hidden + 2 * RECIPE["kv-channels"]
    expert = 3 * hidden * RECIPE["moe-ffn-hidden-size"]
    layer = attention + 2 * hidden + hidden * experts
    tables = table if is_tied else 2 * table
    rest = tables + hidden + 4 * layer
    return {
        "total": rest + 4 * experts * expert,
        "active": rest + 4 * RECIPE["moe-router-topk"] * expert,
        "embedding": tables,
    }


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_counted_once_in_every_layout(counts, name, is_tied):
    for of_rank in counts:
        assert of_rank[name, is_tied] == by_hand(is_tied=is_tied)
