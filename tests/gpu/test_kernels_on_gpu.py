"""The tests of the kernels once more, compiled and on the GPU, in a process that sees it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from devices import num_devices, on_gpu

pytestmark = pytest.mark.gpu

KERNELS = Path(__file__).parents[1] / "kernels"


@pytest.fixture(autouse=True)
def a_gpu():
    if not num_devices():
        pytest.skip("torch finds no CUDA device")


@pytest.mark.parametrize("file", sorted(path.name for path in KERNELS.glob("test_*.py")))
def test_kernels_pass_on_the_gpu(file):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(KERNELS / file)],
        env={**on_gpu(), "TESTS_SEE_GPU": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=os.fspath(KERNELS.parents[1]),
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout
