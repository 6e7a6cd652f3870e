"""The picture of a plan: what is drawn are the plan's own numbers, and a bad path is refused."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
from made_models import made_10b, made_schedule, point
from matplotlib import image

from tst_megatron.plan import picture as drawing
from tst_megatron.plan.cost.machine import machine_for
from tst_megatron.plan.cost.table import arm, cost_section
from tst_megatron.plan.decision.verdict import decide
from tst_megatron.plan.drawn import bars_of, curve_of, losses_title, marks_of, memory_title
from tst_megatron.plan.gain.grids import estimate
from tst_megatron.plan.gain.views import compare, views_section
from tst_megatron.plan.make_plan import Plan
from tst_megatron.plan.memory import table
from tst_megatron.plan.picture import check_picture, draw_plan
from tst_megatron.plan.published.read import published
from tst_megatron.plan.wishes import Hardware

KNOWN = published()
PAIR_10B = {"num_steps": 49_983, "bag_size": 16, "steps": 12_483}
STAGES = (
    {"parameters": 20, "moments": 30, "kept for backward: embedding": 5},
    {"parameters": 20, "moments": 30, "kept for backward: moe": 25, "at work in a layer": 4},
)
"""Gigabytes of two pipeline stages, of which each has a part that the other lacks."""


def memory_of(stages, scale=1.0):
    def rank(number, parts):
        sizes = {name: int(size * scale * 1e9) for name, size in parts.items()}
        return SimpleNamespace(
            rank=4 * number, stage=number, total=sum(sizes.values()), parts=lambda: sizes
        )

    ranks = tuple(rank(number, parts) for number, parts in enumerate(stages))
    fullest = max(ranks, key=lambda each: each.total)
    return SimpleNamespace(stages=ranks, fullest=fullest, assumptions=())


@pytest.fixture
def planned(monkeypatch):
    """Make a plan as ``make_plan`` does, of a model that Megatron need not count."""

    def plan(model=None, *, memory=None, gpu="b200", price=5.88, baseline_steps=None, gains=None):
        model = model or made_10b(**PAIR_10B)
        hardware = Hardware(gpu=gpu, num_gpus=8, price=price)
        machine = machine_for(KNOWN, hardware, active=model.size, is_moe=True)
        there = point(model)
        found = estimate(KNOWN, there)
        if gains is not None:
            low, gain, high = gains
            found = dataclasses.replace(found, gain=gain, low=low, high=high)
        beside = None
        if baseline_steps:
            beside = arm("ordinary run", made_schedule(baseline_steps), model)
        ordinary = beside or arm("ordinary run", made_schedule(model.schedule.num_steps), model)
        arms = (ordinary, arm("TST", model.schedule, model))
        sections = [
            cost_section(KNOWN, model, machine, arms, None),
            views_section(
                *(KNOWN, model, machine),
                point=there,
                estimate=found,
                views=compare(KNOWN, model, there, found, baseline=beside),
                baseline=beside,
            ),
        ]
        if memory is not None:
            monkeypatch.setattr(table, "memory_of_recipe", lambda *_: memory)
            monkeypatch.setattr(table.fitting, "ways_to_fit", lambda *_: ([], []))
            sections.append(table.memory_section(None, machine, KNOWN.gpus[gpu], 1e9))
        return Plan(
            recipe="a $strange$ recipe.yaml",
            verdict=decide(KNOWN, there, None),
            sections=tuple(sections),
            assumptions=(),
            notes=(),
            sources={},
        )

    return plan


def by_name(plan):
    return {each.name: each for each in marks_of(plan)}


def values_of(plan, name):
    return next(each.values for each in plan.sections if each.name == name)


# --- cost against loss ---------------------------------------------------------------------------


def test_points_are_the_numbers_of_the_plan(planned):
    plan = planned()
    views, cost = values_of(plan, "views"), values_of(plan, "cost")
    found = by_name(plan)
    assert list(found) == ["equal flops", "TST", "equal loss", "equal data"]
    tst = found["TST"]
    dollars = cost["arms"][1]["dollars"]
    gap = views["equal flops gap nats"]
    assert (tst.x, tst.y) == (pytest.approx(dollars), gap["middle"])
    assert tst.y_range == (gap["low"], gap["high"])
    assert (found["equal flops"].x, found["equal flops"].y) == (pytest.approx(dollars), 0.0)
    factor = views["equal loss step factor"]
    loss = found["equal loss"]
    assert loss.x == pytest.approx(dollars * factor["middle"])
    assert loss.y == pytest.approx(gap["middle"])
    assert loss.x_range == pytest.approx((dollars * factor["low"], dollars * factor["high"]))
    data = found["equal data"]
    assert data.x == pytest.approx(dollars * views["raw tokens over positions"])
    assert gap["middle"] - data.y == pytest.approx(views["equal data gap nats"]["middle"])


def test_every_ordinary_run_lies_on_the_curve(planned):
    plan = planned(baseline_steps=125_000)
    curve = curve_of(plan)
    assert list(curve.x) == sorted(curve.x) and list(curve.y) == sorted(curve.y, reverse=True)
    found = by_name(plan)
    assert set(found) == {"equal flops", "TST", "equal loss", "equal data", "baseline"}
    for name, mark in found.items():
        if name == "TST":
            continue
        assert curve.x[0] < mark.x < curve.x[-1]
        after = next(i for i, x in enumerate(curve.x) if x > mark.x)
        assert curve.y[after] < mark.y < curve.y[after - 1], name
    # The law as published falls less, so the curve is one edge of its band.
    assert curve.published[-1] > curve.y[-1]


def test_baseline_lies_where_its_gap_says(planned):
    plan = planned(baseline_steps=125_000)
    views, mark = values_of(plan, "views"), by_name(plan)["baseline"]
    gap = views["equal flops gap nats"]["middle"] - mark.y
    assert gap == pytest.approx(views["baseline gap nats"]["middle"])
    assert mark.x == pytest.approx(values_of(plan, "cost")["arms"][0]["dollars"])


def test_equal_loss_that_no_run_reaches_is_said_and_has_no_point(planned):
    plan = planned(gains=(8.0, 9.0, 10.0))
    assert "equal loss" not in by_name(plan)
    assert "No ordinary run ends as low" in losses_title(plan)
    assert "No ordinary run" not in losses_title(planned())


def test_end_without_a_number_is_drawn_to_the_edge(planned, tmp_path):
    plan = planned(gains=(0.04, 0.05, 5.0))
    assert values_of(plan, "views")["equal loss step factor"]["high"] is None
    mark = by_name(plan)["equal loss"]
    assert mark.x_range[0] < mark.x and mark.x_range[1] is None and "no end" in mark.label
    draw_plan(plan, tmp_path / "plan.png")
    assert all(map(math.isfinite, curve_of(plan).x))


def test_run_that_reads_as_much_text_is_one_point(planned):
    plan = planned(made_10b(**PAIR_10B, inputs="tokens"))
    found = by_name(plan)
    assert "equal data" not in found
    assert "as much text" in found["equal flops"].label


def test_without_a_price_gpu_hours_are_the_cost(planned, tmp_path):
    plan = planned(price=0.0)
    hours = values_of(plan, "cost")["arms"][1]["gpu hours"]
    assert by_name(plan)["TST"].x == pytest.approx(hours)
    assert "$" not in by_name(plan)["TST"].label
    draw_plan(plan, tmp_path / "plan.png")


def test_extrapolation_is_named_in_title_and_legend(planned):
    plan = planned()
    assert "EXTRAPOLATED" in losses_title(plan)
    assert "extrapolated" in by_name(plan)["TST"].label
    inside = {**values_of(plan, "views"), "is extrapolated": False}
    sections = [SimpleNamespace(name="views", values=inside), plan.sections[0]]
    known = SimpleNamespace(sections=sections)
    assert "EXTRAPOLATED" not in losses_title(known)
    assert "extrapolated" not in by_name(known)["TST"].label


def test_what_is_drawn_is_also_in_json(planned):
    plan = planned(memory=memory_of(STAGES), baseline_steps=125_000)
    keys = json.loads(json.dumps(plan.as_keys(), allow_nan=False))
    runs = keys["views"]["ordinary runs"]
    assert runs["equal flops"]["gap nats"] == 0.0 and runs["equal flops"]["steps"] == 49_983
    assert runs["baseline"]["steps"] == pytest.approx(125_000, abs=1)
    assert runs["equal data"]["dollars"] == pytest.approx(runs["equal data"]["gpu hours"] * 5.88)
    assert len(keys["views"]["ordinary curve"]) > 30
    assert [each["rank"] for each in keys["memory"]["stages"]] == [0, 4]


# --- memory by part ------------------------------------------------------------------------------


def test_bars_are_the_parts_of_every_stage(planned):
    plan = planned(memory=memory_of(STAGES))
    bars = bars_of(plan)
    assert bars.stages == ("stage 0, rank 0", "stage 1, rank 4")
    assert bars.parts == {
        "parameters": (20.0, 20.0),
        "moments": (30.0, 30.0),
        "kept for backward: embedding": (5.0, 0.0),
        "kept for backward: moe": (0.0, 25.0),
        "at work in a layer": (0.0, 4.0),
    }
    assert list(bars.parts)[-1] == "at work in a layer"
    assert (bars.capacity, bars.room) == (180.0, 162.0)
    assert bars.of_fullest["moments"] == 30.0
    assert "kept for backward: embedding" not in bars.of_fullest


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        ("h100", "79.0 GB and DOES NOT FIT into the 80 GB of h100"),
        ("b200", "79.0 GB and fits into the 180 GB of b200"),
        ("a100", "79.0 GB; the memory of a100 is not known here"),
    ],
)
def test_title_says_whether_it_fits(planned, gpu, words):
    plan = planned(memory=memory_of(STAGES), gpu=gpu)
    assert words in memory_title(plan)
    assert (bars_of(plan).capacity is None) == (gpu == "a100")


def test_without_memory_there_are_no_bars(planned):
    assert bars_of(planned()) is None


# --- the file ------------------------------------------------------------------------------------


def size_of(path):
    height, width = image.imread(path).shape[:2]
    return width, height


@pytest.mark.parametrize(
    ("stages", "gpu", "scale"),
    [
        (None, "b200", 1),
        (STAGES[1:], "b200", 1),
        (STAGES, "h100", 1),
        (STAGES * 8, "b200", 0.01),
        (STAGES, "a100", 1),
    ],
)
def test_picture_is_an_image_of_a_sensible_size(planned, tmp_path, stages, gpu, scale):
    memory = None if stages is None else memory_of(stages, scale)
    path = tmp_path / "new" / "plan.png"
    before = dict(matplotlib.rcParams)
    draw_plan(planned(memory=memory, gpu=gpu, price=1.0), path)
    assert list(path.parent.iterdir()) == [path]
    width, height = size_of(path)
    assert 1000 < width < 2000 and 600 < height < 3000
    assert (height > 1100) == (memory is not None)
    assert dict(matplotlib.rcParams) == before


def test_picture_is_replaced_whole(planned, tmp_path):
    path = tmp_path / "plan.png"
    path.write_text("another")
    draw_plan(planned(), path)
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [path]
    draw_plan(planned(), path)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("name", "fix"),
    [("plan.pdf", "plan.png"), ("plan", "plan.png"), ("plan.png.jpg", "plan.png.png")],
)
def test_other_suffix_is_refused(tmp_path, name, fix):
    with pytest.raises(ValueError) as caught:
        check_picture(tmp_path / name)
    assert str(caught.value) == (
        f"--picture {tmp_path / name}: a picture is a PNG file, and this name does not end in "
        f".png. Name it {tmp_path / fix}"
    )


def test_folder_and_places_that_cannot_be_written_to_are_refused(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"folder\.png: is a folder\. Name a file in it, such as"):
        check_picture(tmp_path / "folder.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        check_picture(tmp_path / "file" / "plan.png")
    with pytest.raises(ValueError, match=r"nothing can be made in /proc"):
        check_picture(Path("/proc/plan.png"))
    check_picture(tmp_path / "new" / "PLAN.PNG")
    assert not (tmp_path / "new").exists()


def test_file_that_is_there_does_not_hide_that_its_folder_is_closed(tmp_path, monkeypatch):
    path = tmp_path / "plan.png"
    path.write_text("another")
    asked = []
    monkeypatch.setattr(drawing, "check_writable", asked.append)
    check_picture(path)
    assert asked == [path]
