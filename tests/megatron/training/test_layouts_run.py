"""A run of both phases with all of Megatron's overlaps trains as one process does."""

import pytest
import tiny
from interrupted import interrupted_at
from layouts import OVERLAPS, VPP2

SWITCH, STEPS = 6, 12

RUN = {
    "num_layers": 4,
    "train_iters": STEPS,
    "save_interval": 1,
    "eval_interval": STEPS // 2,
    "eval_iters": 2,
    # Small enough that rounding does not become another choice of experts.
    "lr": 2e-3,
    "moe_aux_loss_coeff": 0.1,
    "moe_z_loss_coeff": 0.01,
    "dist_ckpt_optim_fully_reshardable": True,
}


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory):
    """One of one process; one of four that begins with the weights of its first step.

    Pipeline stages draw their initial weights from seeds of their own.
    """
    folder = tmp_path_factory.mktemp("layouts_run")
    tst = {"bag-size": 4, "superposition-steps": SWITCH}
    recipe = tiny.write_recipe(folder / "tst.yaml", text, tst, **RUN)
    tiny.train(recipe, folder / "one process")
    interrupted_at(1, folder / "one process", folder / "four", more_steps=0, torn="")
    keys = [f"{key}={str(value).lower()}" for key, value in {**VPP2, **OVERLAPS}.items()]
    arguments = ("train", str(recipe), *keys, "--run-folder", str(folder / "four"))
    log = folder / "four.log"
    tiny.wait(tiny.fork_ranks(*arguments, num_ranks=4, log=log), log)
    return folder / "one process", folder / "four"


@pytest.mark.parametrize(("event", "num_rows"), [("step", STEPS), ("validation", 2)])
def test_interleaved_stages_with_overlaps_train_as_one_process(runs, event, num_rows):
    expected, rows = (tiny.metrics(run, event) for run in runs)
    assert len(rows) == len(expected) == num_rows
    for row, other in zip(rows, expected, strict=True):
        numbers = {key: value for key, value in other.items() if "loss" in key}
        numbers |= {key: other[key] for key in ("grad-norm",) if key in other}
        assert numbers
        assert {key: row[key] for key in numbers} == pytest.approx(numbers, rel=1e-5)


def test_runs_have_both_phases_and_the_layout(runs):
    for run in runs:
        names = ["bag loss" if "bag loss" in row else "lm loss" for row in tiny.metrics(run)]
        assert names == ["bag loss"] * SWITCH + ["lm loss"] * (STEPS - SWITCH)
    log = (runs[1] / "logs" / "rank-0.log").read_text()
    assert "pipeline-model-parallel-size 1 -> 2" in log
