"""What training asks of the plan of a run."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest

from tst_megatron.recipe.tst_config import TSTConfig
from tst_megatron.schedule import Schedule, resolve_phases
from tst_megatron.training.run.plan import RunPlan


def plan(*, flags=(), test=False, **identity):
    schedule = Schedule(
        phases=resolve_phases([(1, 1.0)], num_steps=10), num_latent_positions=8, global_batch_size=2
    )
    manifest = SimpleNamespace(test=object() if test else None)
    return RunPlan(
        recipe=Path("a.yaml"),
        identity={"profile": "cpu", "eval-interval": 5, "eval-iters": 1, **identity},
        tst=TSTConfig(),
        flags=flags,
        arguments=argparse.Namespace(),
        schedule=schedule,
        stream=None,
        corpora=(SimpleNamespace(manifest=manifest),),
        environment={},
    )


def test_hashes_of_checkpoints_are_expected_where_the_run_writes_them():
    assert plan(flags=("--seed", "1", "--verify-integrity")).saves_manifest
    assert not plan(flags=("--seed", "1")).saves_manifest


@pytest.mark.parametrize(
    ("identity", "test", "evaluations"),
    [
        ({}, False, {"validation"}),
        ({}, True, {"validation", "test"}),
        ({"eval-iters": 0}, True, set()),
        ({"eval-interval": None}, True, set()),
    ],
)
def test_last_step_is_followed_by_the_evaluations_that_there_is_text_for(
    identity, test, evaluations
):
    assert plan(test=test, **identity).last_evaluations == evaluations


def test_profile_says_whether_ranks_are_on_the_cpu():
    assert plan().is_on_cpu and not plan(profile="bf16").is_on_cpu
