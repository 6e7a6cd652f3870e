"""What a run says beside its plan: the numbers, and the assumption that was off."""

import json

import pytest
from made_plans import FLOPS_PER_STEP, made_facts, made_plan
from status_folders import NOW, step_row
from typer.testing import CliRunner

from tst_megatron.cli.app import app
from tst_megatron.training.report.facts import write_facts
from tst_megatron.training.report.plan_file import write_plan


def keep(folder, plan, facts=None):
    write_plan(folder.run.plan, plan)
    write_facts(folder.path / "facts.json", facts or made_facts())


def verdict(folder):
    return folder.status().beside_plan.verdict


def rows(folder):
    return {row.name: row for row in folder.status().beside_plan.rows}


def test_run_without_a_plan_says_nothing_of_one(running):
    assert running.status().beside_plan is None


def test_run_without_a_step_says_nothing_of_its_plan(folder):
    keep(folder, made_plan())
    assert folder.started().status().beside_plan is None


def test_run_that_follows_its_plan_says_so_with_every_number(running):
    keep(running, made_plan())
    assert verdict(running) == "as planned, within 10%"
    found = {name: (row.actual, row.planned) for name, row in rows(running).items()}
    tokens = 4 * 16 * 64 / 2.0
    assert found == {
        "MFU": (pytest.approx(0.2), 0.2),
        "step time": (2.0, 2.0),
        "raw tokens/s": (tokens, tokens),
        "time of all steps": (2000.0, 2000.0),
        "price of all steps": (pytest.approx(40.0), pytest.approx(40.0)),
    }
    assert rows(running)["MFU"].planned_range == (0.1, 0.25)
    assert rows(running)["step time"].planned_range == (pytest.approx(1.6), pytest.approx(4.0))


def test_lower_mfu_is_named_with_the_range_that_was_assumed(running):
    plan = made_plan(mfu=0.25)
    plan["cost"]["this run"]["gpu hours"] *= 0.2 / 0.25
    keep(running, plan)
    assert verdict(running) == (
        "a step takes 1.25 times as long as planned; MFU is 20.0%, and 25.0% (10.0% to 25.0%) was "
        "assumed"
    )


def test_fewer_gpus_are_named(running):
    # As many GPU hours in half of the time.
    keep(running, made_plan(gpus=16))
    assert rows(running)["price of all steps"].actual == pytest.approx(40.0)
    assert rows(running)["price of all steps"].planned == pytest.approx(40.0)
    assert verdict(running) == (
        "a step takes 2 times as long as planned; it has 8 GPUs, and the plan 16 GPUs"
    )


def test_another_kind_of_gpu_is_named(running):
    keep(running, made_plan(), made_facts(peak=1000.0, device="NVIDIA H200"))
    assert "it runs on NVIDIA H200, and b200 was planned" in verdict(running)
    assert rows(running)["price of all steps"].actual is None


def test_recipe_that_became_larger_is_named(running):
    keep(running, made_plan(), made_facts(flops=1.5 * FLOPS_PER_STEP))
    assert "a step has 1.5 times the FLOPs that were planned" in verdict(running)


def test_largest_of_several_reasons_comes_first(running):
    keep(running, made_plan(), made_facts(flops=1.5 * FLOPS_PER_STEP, gpus=2))
    said = verdict(running)
    assert said.index("2 GPUs") < said.index("1.5 times the FLOPs")


def test_several_small_reasons_name_the_largest(running):
    plan = made_plan(mfu=0.218)
    plan["cost"]["this run"]["gpu hours"] *= 0.2 / 0.218 / 1.08
    keep(running, plan, made_facts(flops=1.08 * FLOPS_PER_STEP))
    assert verdict(running) == (
        "a step takes 1.18 times as long as planned; MFU is 20.0%, and 21.8% (10.0% to 25.0%) was "
        "assumed"
    )


def test_steps_of_earlier_ranks_and_of_the_trunk_are_not_held_to_the_plan(folder):
    folder.steps(1, 40, step_seconds=8.0).steps(41, 60).started()
    keep(folder, made_plan())
    layouts = [{"after step": 0, "layout": {}}, {"after step": 40, "layout": {"ranks": 8}}]
    folder.run.versions.write_text(json.dumps({"tst_megatron": "0", "layouts": layouts}))
    assert verdict(folder) == "as planned, within 10%"
    assert rows(folder)["time of all steps"].actual == pytest.approx(2000.0)


def test_device_without_a_known_peak_is_held_to_its_flops(folder):
    with folder.run.metrics.open("w") as file:
        row = step_row(1) | {"device": "cpu"}
        del row["MFU"]
        file.write(json.dumps(row) + "\n")
    keep(folder.started(), made_plan(), made_facts(peak=None, device="cpu"))
    assert verdict(folder) == "as planned, within 10%"
    keep(folder, made_plan(mfu=0.1), made_facts(peak=None, device="cpu"))
    assert "its device does 400 TFLOP/s, and 200 of one b200 were planned" in verdict(folder)
    assert rows(folder)["MFU"].actual is None


def with_memory(folder, *, device, used, gpus=8):
    memory = {"bytes of stages": [90e9, 50e9]}
    with folder.run.metrics.open("a") as file:
        row = step_row(121) | {"device": device, "peak memory bytes": used}
        file.write(json.dumps(row) + "\n")
    keep(folder, made_plan(memory=memory), made_facts(gpus=gpus))
    return folder


def test_memory_is_that_of_the_last_stage_whose_rank_records_it(running):
    with_memory(running, device="NVIDIA B200", used=52e9)
    assert (rows(running)["peak memory"].actual, rows(running)["peak memory"].planned) == (
        52e9,
        50e9,
    )
    assert verdict(running) == "as planned, within 10%"


def test_more_memory_than_planned_names_the_estimate(running):
    with_memory(running, device="NVIDIA B200", used=75e9)
    assert "peak memory is 50% above the plan: if micro-batch, recomputation" in verdict(running)


def test_memory_on_another_number_of_gpus_is_not_held_to_the_plans(running):
    with_memory(running, device="NVIDIA B200", used=75e9, gpus=4)
    assert "peak memory" not in rows(running)
    assert verdict(running).endswith("it has 4 GPUs, and the plan 8 GPUs")


def test_memory_of_a_process_on_the_cpu_is_not_held_to_a_gpus(running):
    with_memory(running, device="cpu", used=75e9)
    assert "peak memory" not in rows(running)


def test_plan_of_other_steps_asks_for_another(running):
    keep(running, made_plan(phases=((4, 200), (1, 800))))
    assert verdict(running).endswith("make it again")
    assert rows(running) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"mfu": 0},
        {"mfu": True},
        {"mfu range": []},
        {"mfu range": ["a", 1]},
        {"gpus": -1},
        {"this run": [3]},
        {"this run": {"name": "x"}},
        {"gpu": 4},
    ],
)
def test_damaged_plan_is_named_and_takes_nothing_else_away(running, change):
    keep(running, made_plan(**change))
    status = running.status()
    assert status.beside_plan is None
    assert [said.partition(" ")[0] for said in status.damaged] == ["plan.json"]
    assert status.step == 120


@pytest.fixture
def fixed_time(monkeypatch):
    monkeypatch.setattr("tst_megatron.cli.runs.time.time", lambda: NOW)


def test_sheet_and_json_have_the_plan(running, fixed_time):
    keep(running, made_plan())
    result = CliRunner().invoke(app, ["status", str(running.path)], env={"COLUMNS": "200"})
    lines = {" ".join(line.split()) for line in result.output.splitlines()}
    assert {
        "plan as planned, within 10%",
        "MFU 20.0%; planned 20.0% (10.0% to 25.0%)",
        "step time 2 s; planned 2 s (1.6 s to 4 s)",
        "raw tokens/s 2.05k; planned 2.05k",
        "time of all steps 33 min 20 s; planned 33 min 20 s",
        "price of all steps $40; planned $40",
    } <= lines
    found = json.loads(
        CliRunner().invoke(app, ["status", "--json", str(running.path)]).output,
    )["beside plan"]
    assert found["verdict"] == "as planned, within 10%"
    assert found["rows"][1] == {
        "name": "step time",
        "unit": "seconds",
        "actual": 2.0,
        "planned": 2.0,
        "planned range": [1.6, 4.0],
    }
