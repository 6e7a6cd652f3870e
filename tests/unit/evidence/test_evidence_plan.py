"""The plan of the evidence: every sweep can be trained, and a wrong one is refused in words."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tst_megatron.cli.app import app

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

from evidence import plan  # noqa: E402


def planned(tmp_path, *entries):
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps({"sweeps": list(entries)}))
    return plan.read_plan(path)


GOOD = {"name": "one", "about": "Why?", "recipe": "evidence/dense.yaml", "text": "python-512"}


@pytest.mark.parametrize(
    "sweep",
    [
        pytest.param(sweep, id=sweep.name)
        for path in (plan.PLAN, plan.GPU_PLAN)
        for sweep in plan.read_plan(path)
        if isinstance(sweep, plan.Sweep)
    ],
)
def test_sweep_can_be_planned(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [*sweep.words(), "--plan"]
    words[words.index("--output") + 1] = str(tmp_path / "sweep")
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output


def test_words_are_those_of_a_command(tmp_path):
    (sweep,) = planned(
        tmp_path,
        GOOD
        | {"grid": {"tst.bag-size": [2, 4]}, "arms": ["tst"], "seeds": 3, "set": {"lr": 2.0e-3}},
    )
    data = json.dumps({"runs/evidence/text/python-512": 1.0})
    assert shlex.join(sweep.words()) == (
        f"sweep examples/evidence/dense.yaml 'data={data}' vocab-size=512 lr=0.002 --arms tst "
        "--grid tst.bag-size=2,4 --seeds 3 --share-trunks --output runs/evidence/sweeps/one"
    )


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (GOOD | {"grids": {}}, "sweep one: grids is no key of a sweep"),
        ({key: GOOD[key] for key in GOOD if key != "about"}, "sweep one: has no about"),
        (GOOD | {"name": "a b"}, "small letters, digits, dots and dashes alone"),
        (GOOD | {"text": "python"}, "text python is not KIND-VOCABULARY"),
        (GOOD | {"recipe": "none.yaml"}, "there is no recipe none.yaml"),
    ],
)
def test_wrong_sweep_is_refused_in_words(tmp_path, entry, said):
    with pytest.raises(plan.PlanError) as caught:
        planned(tmp_path, entry, {key: GOOD[key] for key in ("name", "recipe")})
    lines = str(caught.value).splitlines()
    assert any(said in line for line in lines)
    # All problems at once.
    assert any("has no text" in line for line in lines)


BRANCHES = {"name": "two", "about": "Why?", "trunk": "one/run", "step": 5, "grid": {"lr": [1, 2]}}


def test_branches_have_the_text_of_their_trunk(tmp_path):
    _, branches = planned(tmp_path, GOOD, BRANCHES)
    assert isinstance(branches, plan.Branches)
    assert (branches.text, branches.step) == ("python-512", 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trunk": "none/run"}, "sweep two: no sweep before it has the name none"),
        ({"seeds": 2}, "sweep two: seeds is no key of a sweep"),
        ({"name": "one"}, "sweep one: is there twice"),
    ],
)
def test_wrong_branches_are_refused_in_words(tmp_path, change, said):
    with pytest.raises(plan.PlanError, match=said):
        planned(tmp_path, GOOD, BRANCHES | change)


def test_sweep_of_one_name_twice_is_refused(tmp_path):
    with pytest.raises(plan.PlanError, match="sweep one: is there twice"):
        planned(tmp_path, GOOD, {**GOOD, "grid": {}})
