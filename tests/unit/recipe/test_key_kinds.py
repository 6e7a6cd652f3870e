"""The keys of evaluation may change over the life of a run, unless evaluation leaves a trace."""

import argparse

import pytest

from tst_megatron.recipe.keys.kinds import evaluation_leaves_a_trace


@pytest.mark.parametrize(
    ("changes", "leaves"),
    [
        ({}, False),
        ({"moe_input_jitter_eps": 0.01}, True),
        ({"moe_router_force_biased": 0.1}, True),
        ({"qk_clip": True}, True),
        ({"fp8": "hybrid", "fp8_recipe": "delayed"}, True),
        ({"fp8": "hybrid", "fp8_recipe": "mxfp8"}, False),
        ({"fp8_recipe": "delayed"}, False),
    ],
)
def test_evaluation_leaves_a_trace_where_it_draws_or_remembers(changes, leaves):
    neutral = {
        "moe_input_jitter_eps": None,
        "moe_router_force_biased": None,
        "qk_clip": False,
        "fp8": None,
        "fp8_recipe": "delayed",
    }
    assert evaluation_leaves_a_trace(argparse.Namespace(**{**neutral, **changes})) is leaves
