"""Importing any of the ways to a checkpoint is enough for it to be read with every check."""

import subprocess
import sys

import pytest
import tiny

from tst_megatron.megatron import arguments

WAYS = (
    "tst_megatron.megatron.loop",
    "tst_megatron.megatron.single_step",
    "tst_megatron.megatron.setup_without_values",
    "tst_megatron.megatron.distributed_checkpoint.model",
    "tst_megatron.training.dataset",
    "tst_megatron.training.report.recorder",
)
# One import of Megatron, and a fork for each way, which has imported no other.
PROCESS = f"""
import importlib, os
from tst_megatron.megatron.cpu import host
host.install()
from tst_megatron.megatron import names
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
READS = ((FileSystemReader, "read_metadata"), (FileSystemReader, "read_data"),
         (DefaultLoadPlanner, "load_bytes"), (names.dist_common, "load_common"),
         (names.dist_serialization, "load_common"), (names.dist_core, "maybe_load_config"))
def checked():
    return sum(hasattr(getattr(owner, name), "tst_megatron_original") for owner, name in READS)
print("before", checked(), flush=True)
for way in {WAYS!r}:
    if not os.fork():
        importlib.import_module(way)
        print(way, checked() == len(READS), flush=True)
        os._exit(0)
    os.wait()
"""


def test_each_way_to_a_checkpoint_reads_it_checked():
    ended = subprocess.run(
        [sys.executable, "-c", PROCESS], capture_output=True, text=True, env=tiny.environment()
    )
    expected = ["before 0", *(f"{way} True" for way in WAYS)]
    assert ended.stdout.splitlines() == expected, ended.stderr


def test_arguments_are_never_taken_from_a_checkpoint():
    with pytest.raises(AssertionError, match="read_checked"):
        arguments.parse_arguments(["--use-checkpoint-args", "--load", "a-folder"])
