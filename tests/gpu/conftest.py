"""The small recipe and runs are those of the tests on real Megatron."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "megatron"))
