"""Whole runs of both phases in other layouts train as one process does."""

import pytest
import tiny
from layouts import OVERLAPS, TP2, VPP2

SWITCH, STEPS = 6, 12

RUNS = {
    "one process": (1, {"use-distributed-optimizer": False}),
    "VPP2 on PP2 x DP2, both overlaps": (4, {**VPP2, **OVERLAPS}),
    "TP2+SP": (2, TP2),
}
# Short enough that Adam, which divides by the size of a gradient, does not enlarge differences of
# rounding: over 12 steps a loss of one process and of one with other sums differ by 1e-7 to 1e-6.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts_run")
    recipes = {}
    for number, (name, (num_ranks, flags)) in enumerate(RUNS.items()):
        recipes[name] = tiny.write_recipe(
            folder / f"{number}.yaml",
            text,
            {"bag-size": 4, "superposition-steps": SWITCH},
            num_layers=4,
            train_iters=STEPS,
            eval_interval=STEPS // 2,
            eval_iters=2,
            lr=1e-3,
            moe_aux_loss_coeff=0.1,
            moe_z_loss_coeff=0.01,
            **flags,
        )
    for name, recipe in recipes.items():
        arguments = ("train", str(recipe), "--run-folder", str(folder / name))
        log = folder / f"{name}.log"
        tiny.wait(tiny.fork_ranks(*arguments, num_ranks=RUNS[name][0], log=log), log)
    return {name: folder / name for name in recipes}


@pytest.mark.parametrize("layout", [name for name in RUNS if name != "one process"])
def test_losses_of_a_whole_run_are_those_of_one_process(runs, layout):
    for event, num_rows in (("step", STEPS), ("validation", 2)):
        rows, expected = (tiny.metrics(runs[name], event) for name in (layout, "one process"))
        assert len(rows) == len(expected) == num_rows
        for row, other in zip(rows, expected, strict=True):
            losses = {key: value for key, value in other.items() if "loss" in key}
            assert losses
            assert {key: row[key] for key in losses} == pytest.approx(losses, rel=TOLERANCE)


def test_runs_have_both_phases(runs):
    names = ["bag loss" if "bag loss" in row else "lm loss" for row in tiny.metrics(runs["TP2+SP"])]
    assert names == ["bag loss"] * SWITCH + ["lm loss"] * (STEPS - SWITCH)
