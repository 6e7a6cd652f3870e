"""Triton kernels on a GPU where one is shown, and in Triton's interpreter otherwise.

The interpreter runs one program after the other: it proves maths and indexing, not the absence of
races. ``TESTS_SEE_GPU=1 pytest tests/kernels`` runs the same tests on a GPU.
"""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
