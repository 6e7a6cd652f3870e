"""What the tests take from the machine: one thread, so that sums have one order, and no GPU."""

import os

VISIBLE_DEVICES = os.environ.get("CUDA_VISIBLE_DEVICES")
"""What the machine shows; only the tests marked ``gpu`` see it."""

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["OMP_NUM_THREADS"] = "1"
