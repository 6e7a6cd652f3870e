"""The slice of 10B-A1B that the GPU lane trains, counted on the model itself."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

import gpu_parts


@pytest.mark.parametrize(("gigabytes", "layers"), [(80, 8), (8, 1)])
def test_as_many_layers_as_the_memory_holds(gigabytes, layers):
    """18 bytes for each of 467M parameters of the tables and 313M of a layer, in 70% of it."""
    machine = gpu_parts.Machine.__new__(gpu_parts.Machine)
    machine.python = Path(sys.executable)
    machine.environment = {**os.environ, "PYTHONPATH": str(gpu_parts.ROOT)}
    machine.memory = gigabytes * 10**9
    expected = max(1, int((0.7 * machine.memory / 18 - 466_747_392) / 313_199_872))
    assert machine.layers_that_fit() == expected == layers
