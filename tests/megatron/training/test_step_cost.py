"""A step in superposition costs what one at bag size 1 costs: bags are no extra work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GATE = 1.15
"""On a machine that others use too; 30 undisturbed pairs measure 1.00 (docs/measured.md)."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The quickstart's model at both bag sizes in turns, by the command that users have."""
    folder = tmp_path_factory.mktemp("bench")
    recipe = ROOT / "examples" / "quickstart" / "tst.yaml"
    command = ["bench", "step", str(recipe), "micro-batch-size=4", "--bag-size", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "tst_megatron", *command, "--rounds", "21", "--output", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_superposition_costs_no_more_than_the_gate(measured):
    folder, _ = measured
    (case,) = json.loads((folder / "step.json").read_text())["cases"]
    one, eight = case["timings"]
    assert (one["name"], eight["name"]) == ("K = 1", "K = 8")
    assert len(eight["seconds"]) == 21
    assert eight["ratio"]["median"] <= GATE


def test_result_says_what_was_measured_where_and_how(measured):
    folder, shown = measured
    document = json.loads((folder / "step.json").read_text())
    assert document["command"].startswith("tst-megatron bench step ")
    assert document["device"]["name"].startswith("CPU, ")
    assert {"torch", "megatron-core", "tst-megatron"} <= document["versions"].keys()
    assert "4 layers of 128, 4096 tokens, 4 x 128 latent positions" in shown
    assert (folder / "step.md").read_text().strip() in shown
    assert (folder / "step.png").read_bytes().startswith(b"\x89PNG")
