"""What the tests take from the machine: one thread, so that sums have one order, and no GPU.

The tests of the kernels alone are also meant for a GPU, which they see where ``TESTS_SEE_GPU`` is
set; without one Triton interprets them.
"""

import os

VISIBLE_DEVICES = os.environ.get("CUDA_VISIBLE_DEVICES")
"""What the machine shows; only the tests marked ``gpu`` see it."""

if not os.environ.get("TESTS_SEE_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Before anything imports triton, whose own functions are decorated then.
    os.environ["TRITON_INTERPRET"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
