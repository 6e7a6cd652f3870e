"""Imports of large packages, with Python's garbage collector put off."""

import subprocess
import sys

CODE = """
from tst_megatron.system.packages import collecting_later

class Circle:
    def __del__(self):
        print("collected")

with collecting_later():
    circle = Circle()
    circle.itself = circle
del circle
print("before the end")
"""


def test_what_was_exempt_is_collected_at_the_end():
    """Libraries with a count of their own objects call the others leaks, below what was said."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["before the end", "collected"]
