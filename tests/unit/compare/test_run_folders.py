"""What a run folder of ours tells, and folders that tell too little."""

import json
import math

import numpy as np
import pytest
from made_runs import POSITIONS_PER_STEP, Made, falling

from tst_megatron.compare.runs.open_runs import open_runs
from tst_megatron.plan.cost.machine import peak_teraflops
from tst_megatron.recipe.recipe import RecipeError

PHASES = ((4, 300), (1, 700))
EVALUATIONS = range(100, 1001, 100)


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path / "tst", PHASES).steps(1, 1000).validation(falling(EVALUATIONS))


def only(path):
    (run,), notes = open_runs([path])
    return run, notes


def problem(*paths):
    with pytest.raises(RecipeError) as error:
        open_runs(list(paths))
    assert len(error.value.problems) == 1
    return str(error.value)


def test_run_says_what_its_recipe_and_records_say(made):
    run, notes = only(made.path)
    assert (run.name, run.kind, run.seed, run.device) == ("tst", "run folder", 1234, "cpu")
    assert (run.num_steps, run.last_step, run.phases) == (1000, 1000, PHASES)
    assert run.trunk is None and notes == []
    assert run.validation.steps.tolist() == list(EVALUATIONS)
    assert run.validation.values[0] == 4.5 and run.validation.values[-1] == pytest.approx(2.0)
    assert len(run.training["bag loss"].steps) == 300 and len(run.training["lm loss"].steps) == 700


def test_costs_are_totals_up_to_each_evaluation(made):
    run, _ = only(made.path)
    tokens = [POSITIONS_PER_STEP * (step + 3 * min(step, 300)) for step in EVALUATIONS]
    assert run.raw_tokens.tolist() == tokens
    assert run.flops.tolist() == [3.0e9 * step for step in EVALUATIONS]
    assert run.hours == pytest.approx([2.0 * step / 3600 for step in EVALUATIONS])
    assert run.numbers["own hours"] == pytest.approx(2000 / 3600)
    assert run.numbers["raw tokens per second"] == pytest.approx(tokens[-1] / 2000)
    assert run.numbers["parameters"] == 300_000


def test_slow_steps_count_once_where_every_row_is_read(tmp_path):
    made = Made(tmp_path / "run").steps(1, 500).steps(501, 501, seconds=600.0).steps(502, 1000)
    run, _ = only(made.validation({500: 3.0, 1000: 2.0}).path)
    assert run.hours * 3600 == pytest.approx([1000, 999 * 2 + 600])


def test_slow_step_of_a_long_run_does_not_stand_for_its_neighbours(tmp_path):
    made = Made(tmp_path / "run", ((1, 20_000),)).steps(1, 20_000)
    lines = made.metrics.read_text().splitlines()
    from tst_megatron.compare.runs.sampled_rows import sample_rows

    sampled = [row["step"] for row in sample_rows(made.metrics).steps]
    slow = sampled[len(sampled) // 2]
    row = json.loads(lines[slow - 1]) | {"step seconds": 5000.0}
    lines[slow - 1] = json.dumps(row)
    made.metrics.write_text("\n".join(lines) + "\n")
    run, notes = only(made.validation({20_000: 2.0}).path)
    assert run.hours[-1] * 3600 == pytest.approx(40_000, rel=0.01)
    assert "run: steps at even distances were read" in notes[0]


def test_flops_without_facts_come_from_the_recorded_rate(made):
    versions = {"device": "cpu", "world size": 2, "torch": "2.11.0"}
    (made.path / "versions.json").write_text(json.dumps(versions))
    run, notes = only(made.without_facts().path)
    # 0.0015 TFLOP/s x 2 s x 2 ranks.
    assert run.flops[0] == pytest.approx(100 * 6.0e9)
    assert len(notes) == 1 and "tst: no facts.json was kept" in notes[0]
    assert run.facts["versions"] == {"device": "cpu", "world size": 2, "torch": "2.11.0"}


def test_branch_has_its_trunk_in_hours_and_not_in_own_hours(made):
    branch = {"format": 1, "trunk": "/runs/trunk", "trunk name": "trunk", "step": 600}
    (made.path / "branch.json").write_text(json.dumps(branch))
    run, _ = only(made.path)
    assert run.trunk == ("trunk", 600)
    assert run.hours[-1] == pytest.approx(2000 / 3600)
    assert run.numbers["own hours"] == pytest.approx(800 / 3600)
    assert run.numbers["raw tokens per second"] == pytest.approx(POSITIONS_PER_STEP / 2)


def test_numbers_of_an_accelerator(tmp_path):
    made = Made(tmp_path / "run").facts(device="NVIDIA H200")
    rate = {"TFLOP/s per device": 494.5, "peak memory bytes": 8e9, "load_balancing_loss": 1.25}
    run, _ = only(made.steps(1, 1000, **rate).validation({1000: 2.0}).path)
    assert run.numbers["MFU"] == pytest.approx(0.5)
    assert run.numbers["peak memory bytes"] == 8e9
    assert run.numbers["load balancing loss"] == pytest.approx(1.25)


def test_peaks_of_devices():
    names = ("NVIDIA GB200", "NVIDIA B200", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "cpu")
    assert [peak_teraflops(name) for name in names] == [2500, 2250, 989, 312, None]


def test_checkpoints_lead_to_their_run(made):
    (made.path / "checkpoints").mkdir()
    assert only(made.path / "checkpoints")[0].name == "tst"


def test_evaluations_by_sequence_are_found(made):
    made.blocks(1100, np.full(64, 256.0))
    run, _ = only(made.path)
    assert list(run.block_files) == [1100]


def test_runs_of_one_name_are_told_apart_by_their_path(tmp_path):
    for place in ("seed-1/tst", "seed-2/tst", "seed-2/baseline"):
        Made(tmp_path / place).validation({1000: 2.0})
    runs, _ = open_runs(
        [tmp_path / "seed-1/tst", tmp_path / "seed-2/tst", tmp_path / "seed-2/baseline"]
    )
    assert [run.name for run in runs] == ["seed-1/tst", "seed-2/tst", "baseline"]


# --- damage --------------------------------------------------------------------------------------


def test_damaged_line_is_left_out_and_said(made):
    made.lines('{"event": "validation", "step": 10')
    run, notes = only(made.path)
    assert len(run.validation.steps) == 10
    assert notes == [f"{made.path}: 1 damaged lines of metrics.jsonl are left out"]


def test_losses_that_are_no_numbers_are_left_out_and_said(made):
    made.validation({1100: math.nan, 1200: math.inf})
    run, notes = only(made.path)
    assert run.validation.steps[-1] == 1000 and run.facts["diverged at"] == 1100
    assert notes == [
        f"{made.path}: 2 of 12 validation losses are no finite numbers, the first at step 1,100; "
        "they are left out"
    ]


def test_single_loss_that_is_no_number_in_between_is_no_divergence(made):
    made.validation({500: math.nan})
    assert "diverged at" not in only(made.path)[0].facts


def test_damaged_facts_are_said(made):
    (made.path / "facts.json").write_text("{")
    _, notes = only(made.path)
    assert "facts.json: is not JSON" in notes[0] and "is not known" in notes[0]


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({}, "has recorded no evaluation yet, and only losses on held-out text are compared"),
        ({10: math.nan}, "none of its 1 validation losses is a finite number"),
    ],
)
def test_run_without_a_loss_is_refused(tmp_path, losses, said):
    made = Made(tmp_path / "run").steps(1, 10).validation(losses)
    assert f"{made.path}: {said}" in problem(made.path)


def test_run_without_rows_is_refused(tmp_path):
    made = Made(tmp_path / "run")
    assert (
        problem(made.path) == f"{made.path}: has recorded nothing yet (metrics.jsonl holds no row)"
    )


def test_damaged_recipe_is_refused(tmp_path):
    made = Made(tmp_path / "run").validation({10: 2.0})
    (made.path / "resolved.yaml").write_text("phases: [[4, 100]]")
    assert "resolved.yaml says no schedule" in problem(made.path)


def test_missing_path_is_refused(tmp_path):
    path = tmp_path / "none"
    assert problem(path) == f"{path}: there is no such file or folder"


def test_empty_folder_is_refused(tmp_path):
    assert problem(tmp_path) == f"{tmp_path}: is an empty folder, and so no run"


def test_folder_that_is_no_run_is_refused_and_runs_in_it_are_named(made):
    folder = made.path.parent
    assert problem(folder) == (
        f"{folder}: is no run, because it has neither resolved.yaml nor TensorBoard's event files. "
        f"Did you mean {made.path}?"
    )


def test_file_that_is_no_run_is_refused(made):
    assert f"{made.metrics.parent / 'note.txt'}: is a file, and no CSV file" in problem(
        _written(made.path / "note.txt")
    )


def _written(path):
    path.write_text("text")
    return path


def test_same_run_twice_is_refused(made, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(made.path)
    assert f"{link}: is the same run as {made.path}" in problem(made.path, link)
    (made.path / "tensorboard").mkdir()
    (made.path / "checkpoints").mkdir(exist_ok=True)
    for part in ("tensorboard", "checkpoints"):
        said = problem(made.path, made.path / part)
        assert f"{made.path / part}: is the same run as {made.path}" in said


def test_all_problems_are_named_at_once(tmp_path):
    with pytest.raises(RecipeError) as error:
        open_runs([tmp_path / "one", tmp_path / "two"])
    assert len(error.value.problems) == 2


def test_no_run_is_refused():
    assert "no run was named" in problem()
