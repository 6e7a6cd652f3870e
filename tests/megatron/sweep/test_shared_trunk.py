"""A sweep whose runs share a trunk trains every run to the bits that it would have alone."""

import pytest
import tiny

from tst_megatron.checkpoint.run_files import read_branch
from tst_megatron.sweep.plan import read_plan

TST = {"bag-size": 4, "superposition-steps": 8}
SHORT = {"train_iters": 18, "lr_wsd_decay_iters": 6, "eval_interval": 6}


@pytest.fixture(scope="module")
def swept(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    recipe = tiny.write_recipe(folder / "tst.yaml", text, TST, **SHORT)
    words = ["sweep", str(recipe), "--arms", "tst,reset-optimizer", "--share-trunks"]
    words += ["--output", str(folder / "sweep")]
    said = tiny.run(*words, log=folder / "sweep.log")
    again = tiny.run(*words, log=folder / "again.log")
    return read_plan(folder / "sweep"), said, again


def test_runs_are_finished_and_the_branch_trained_its_own_steps_alone(swept):
    plan, said, again = swept
    trunk, branch = plan.runs
    assert (trunk.trunk, branch.trunk.name, branch.trunk.step) == (None, trunk.name, 8)
    assert read_branch(plan.run(branch.name)).step == 8
    for run in plan.runs:
        assert tiny.state(plan.run(run.name))["status"] == "finished"
    # The first rows are the trunk's, with the times that its steps took.
    rows = [tiny.metrics(plan.run(run.name)) for run in plan.runs]
    assert rows[0][:8] == rows[1][:8] and len(rows[1]) == 18
    assert "2 runs, 28 steps instead of 36: 1 branch saves 22%" in said
    # Nothing is left to do, and nothing is asked of Megatron.
    assert "2 of 2 runs finished" in again and "asking Megatron" not in again


def test_branch_has_every_number_of_the_run_that_is_trained_alone(swept, tmp_path):
    plan, *_ = swept
    branch = plan.runs[1]
    tiny.train(plan.recipe(branch.name), tmp_path / "alone")
    for event in ("step", "validation"):
        found = tiny.loss_bits(plan.run(branch.name), event)
        assert found == tiny.loss_bits(tmp_path / "alone", event)
        assert max(found) == 18 and len(found) == {"step": 18, "validation": 3}[event]
    # The reset shows: the two runs of the sweep part at the switch.
    of_trunk = tiny.loss_bits(plan.run(plan.runs[0].name))
    of_branch = tiny.loss_bits(plan.run(branch.name))
    same = [step for step in of_trunk if of_trunk[step] == of_branch[step]]
    assert same[:8] == list(range(1, 9)) and 18 not in same
