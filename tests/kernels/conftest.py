"""Triton kernels on a GPU where one is shown, and in Triton's interpreter otherwise.

The interpreter runs one program after the other: it proves maths and indexing, not the absence of
races. `make test-gpu` runs the same tests with the GPU shown.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    # Before any kernel is decorated.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
