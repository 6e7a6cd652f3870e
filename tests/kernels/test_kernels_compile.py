"""Every kernel compiles for Hopper and Blackwell, and reaches memory in the order that it must.

No GPU is needed for it. The interpreter runs one program at a time and all its threads at once, so
what threads could do to each other shows here alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[90, 100])
def kernels(request, tmp_path_factory):
    """By kernel, its loads, stores and barriers in the order of the program."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_kernels.py")), str(request.param)],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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
