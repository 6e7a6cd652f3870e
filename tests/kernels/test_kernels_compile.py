"""Every kernel compiles for Hopper and Blackwell, and reaches memory in the order that it must.

No GPU is needed for it. The interpreter runs one program at a time and all its threads at once, so
what threads could do to each other shows here alone.
"""

import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import update_roofline


@pytest.fixture(scope="module")
def facts_of_all(tmp_path_factory):
    """By architecture and kernel, what ``tools/kernel_facts.py`` says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        return {each: update_roofline.facts_of(each) for each in update_roofline.ARCHITECTURES}


@pytest.fixture(scope="module", params=list(update_roofline.ARCHITECTURES))
def facts(request, facts_of_all):
    return request.param, facts_of_all[request.param]


@pytest.fixture
def kernels(facts):
    """By kernel, its loads, stores and barriers in the order of the program."""
    return {name: each["steps"] for name, each in facts[1].items()}


def of(kernels, kind):
    found = {name: steps for name, steps in kernels.items() if name.startswith(kind)}
    assert len(found) >= 6
    return found


def test_target_logits_are_read_by_all_threads_before_any_writes(kernels):
    """The gradient may go over the logits, and every warp has a copy of the targets."""
    for name, steps in of(kernels, "gradient").items():
        stores = [place for place, step in enumerate(steps) if step.startswith("st.")]
        alone = [
            place for place, step in enumerate(steps) if step.startswith("ld.") and ".v" not in step
        ]
        between = steps[max(alone) : min(stores)]
        assert "bar.sync" in between, (name, steps)


def test_exact_gradient_of_a_target_is_written_last(kernels):
    for name, steps in of(kernels, "gradient").items():
        *_, last_barrier = (place for place, step in enumerate(steps) if step == "bar.sync")
        after = steps[last_barrier + 1 :]
        assert len(after) == 1 and after[0].startswith("st.global"), (name, steps)
        assert ".v" not in after[0]


@pytest.mark.parametrize("kind", ["statistics", "gradient", "mean", "segment", "row"])
def test_rows_are_read_sixteen_bytes_at_a_time(kernels, kind):
    for name, steps in of(kernels, kind).items():
        assert any(step.startswith("ld.global.v4.b32") for step in steps), (name, steps)


@pytest.mark.parametrize("kind", ["gradient", "mean", "segment", "row"])
def test_rows_are_written_sixteen_bytes_at_a_time(kernels, kind):
    for name, steps in of(kernels, kind).items():
        assert any(step.startswith("st.global.v4.b32") for step in steps), (name, steps)


def test_mean_reads_each_row_once_and_writes_once(kernels):
    for name, steps in of(kernels, "mean").items():
        num_slots = int(name.partition("K=")[2])
        width = 1 if "bf16" in name else 2
        assert sum(step.startswith("ld.global.v4") for step in steps) == width * num_slots, name
        assert sum(step.startswith("st.") for step in steps) == width, name


def test_nothing_is_added_atomically(kernels):
    for name, steps in kernels.items():
        assert not [step for step in steps if step.startswith(("atom.", "red."))], name


# --- machine code ---------------------------------------------------------------------------------


def test_no_register_is_spilled(facts):
    for name, each in facts[1].items():
        assert each["spilled bytes"] == 0, name
        assert not any(op.startswith(("LDL", "STL")) for op in each["instructions"]), name


def test_multiprocessors_hold_enough_warps(facts):
    """At least half of those that there is room for, by registers; shared memory is no limit."""
    for kind in ("statistics", "gradient", "mean", "segment", "row"):
        for name, each in of(facts[1], kind).items():
            assert update_roofline.resident_warps(each) >= update_roofline.WARPS // 2, name
            assert each["shared bytes"] <= 8192, name


@pytest.mark.parametrize(("kind", "written"), [("statistics", 0), ("gradient", 1)])
def test_each_logit_is_read_once_and_written_once_sixteen_bytes_at_a_time(facts, kind, written):
    """One pass of the loop is in the code once, so its loads are those of ``block`` logits."""
    for name, each in of(facts[1], kind).items():
        size = (2 if "bf16" in name else 4) * each["block"]
        assert update_roofline.bytes_in_a_pass(each, "LDG") == size, name
        assert update_roofline.bytes_in_a_pass(each, "STG") == written * size, name
        # The others are of targets, their logits and weights: a number each.
        of_any_width = {"LDG.E.128", "LDG.E.64", "LDG.E", "LDG.E.U16"}
        loads = {op for op in each["instructions"] if op.startswith("LDG")}
        assert loads <= of_any_width, (name, loads)


def test_one_exponential_for_a_logit_and_direction(facts):
    for kind in ("statistics", "gradient"):
        for name, each in of(facts[1], kind).items():
            of_a_thread = each["block"] // (each["warps"] * update_roofline.WARP)
            # One more rescales the sum, or is of a target.
            assert of_a_thread <= each["instructions"]["MUFU.EX2"] <= of_a_thread + 1, name


def test_tables_of_the_guide_are_those_of_these_kernels(facts_of_all):
    locked = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]
    (version,) = (each["version"] for each in locked if each["name"] == "triton")
    if importlib.metadata.version("triton") != version:
        pytest.skip(f"the guide has what triton {version} makes of the kernels")
    guide = update_roofline.GUIDE.read_text(encoding="utf-8")
    assert update_roofline.tables(facts_of_all) in guide, "run tools/update_roofline.py"
