"""Transformer Engine's layers on the CPU: built, named and saved, and not run."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS / "te"), str(TESTS / "megatron")]

import te_host

from tst_megatron.system.packages import has_transformer_engine

if has_transformer_engine():
    te_host.install()
