"""Every command beside an installed Transformer Engine, on a machine without a GPU."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS / "te"), str(TESTS / "megatron")]

from tst_megatron.megatron.cpu import host

host.install()
