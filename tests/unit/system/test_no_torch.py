"""The lowest room loads at once: importing it must not import torch, which takes seconds."""

import subprocess
import sys

EVERY_MODULE = """
import importlib, pkgutil, sys
import tst_megatron.system as room
for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
    importlib.import_module(module.name)
print(sorted({"torch", "megatron", "transformers"} & set(sys.modules)))
"""


def test_no_module_of_the_room_imports_torch_or_megatron():
    asked = subprocess.run(
        [sys.executable, "-c", EVERY_MODULE], capture_output=True, text=True, check=True
    )
    assert asked.stdout == "[]\n"
