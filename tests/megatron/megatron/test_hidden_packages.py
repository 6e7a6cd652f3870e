"""Megatron under the CPU host beside packages for GPUs: as on a machine that lacks them."""

import json
import subprocess
import sys

import pytest

from tst_megatron.megatron.cpu import hidden

# Packages that would be taken, since anything can be imported from them, and a list of what
# Megatron looks for and does not find.
INSTALL = """
import importlib.abc, importlib.machinery, json, sys
from unittest.mock import MagicMock

import torch

PACKAGES = ("transformer_engine", "transformer_engine_torch", "apex")
asked = set()


class Anything(MagicMock):
    __path__ = []
    __version__ = "2.20.2"


class Installed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in PACKAGES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Anything()

    def exec_module(self, module):
        pass


class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        frame = sys._getframe(1)
        while frame and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if path is None and any(
            f"/megatron/{part}/" in frame.f_code.co_filename for part in ("core", "training")
        ):
            asked.add(name)


sys.meta_path.insert(0, Installed())
sys.meta_path.append(Missing())
"""
REPORT = """
flags = ("HAVE_TE", "HAVE_APEX", "HAVE_APEX_OR_TE", "HAVE_FUSED_LAYER_NORM")
taken = [
    f"{name}.{flag}" for name, module in list(sys.modules.items())
    for flag in flags if name.startswith("megatron") and vars(module).get(flag)
]
taken += [name for name in sys.modules if name.partition(".")[0] in PACKAGES and sys.modules[name]]
number = len([name for name in sys.modules if name.startswith("megatron")])
print(json.dumps({"number": number, "taken": taken, "asked": sorted(asked)}))
"""
UNDER_THE_HOST = """
from tst_megatron.megatron.cpu import host
host.install()
import tst_megatron.megatron.loop
"""
CHECK_OF_A_GPU_RECIPE = """
from tst_megatron.training.check.check_recipe import install_host
install_host("bf16")
install_host("bf16")
import tst_megatron.megatron.names
"""
MISSING = {
    "amp_C": "Apex's own extension, of no use without it",
    "causal_conv1d": "Mamba layers",
    "cupy": "moves weights to an engine of inference",
    "deep_ep": "a dispatcher that a recipe asks for",
    "einops": "Mamba layers and hierarchical context parallelism",
    "emerging_optimizers": "optimizers that a recipe asks for",
    "fast_hadamard_transform": "sparse attention",
    "fla": "gated delta layers",
    "flash_attn": "attention of inference",
    "flash_attn_3": "attention of inference",
    "flash_mla": "attention of inference",
    "flashattn_hopper": "attention of inference",
    "flashinfer": "inference",
    "fused_weight_gradient_mlp_cuda": "gradient-accumulation-fusion, which the host switches off",
    "mamba_ssm": "Mamba layers",
    "multistorageclient": "checkpoints in an object store",
    "nvidia_kitchen": "quantised attention that a recipe asks for",
    "nvidia_resiliency_ext": "an --async-strategy that the host does not take",
    "nvshmem": "moves weights to an engine of inference",
    "torch_memory_saver": "inference",
    "wandb": "a tracker",
}
"""Package that Megatron also looks for -> what it is for. None of it runs on the CPU unasked."""


def report(program: str) -> dict:
    words = [sys.executable, "-c", INSTALL + program + REPORT]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().rpartition("\n")[2])


@pytest.fixture(scope="module")
def under_the_host():
    return report(UNDER_THE_HOST)


def test_megatron_finds_no_package_for_gpus(under_the_host):
    assert under_the_host["number"] > 100 and under_the_host["taken"] == []


def test_check_of_a_gpu_recipe_on_a_login_node_finds_none_either():
    found = report(CHECK_OF_A_GPU_RECIPE)
    assert found["number"] > 100 and found["taken"] == []


def test_megatron_looks_for_no_other_package_that_could_run_on_the_cpu(under_the_host):
    """So that a new version of Megatron, which may look for more, is read."""
    assert set(under_the_host["asked"]) <= set(MISSING), "hide it, or say here what it is for"


def test_packages_that_are_found_too_late_are_an_error(monkeypatch):
    monkeypatch.delitem(sys.modules, "apex", raising=False)
    assert "megatron.core" in sys.modules, "as in every test here"
    with pytest.raises(RuntimeError, match="^apex must be hidden before Megatron is imported"):
        hidden.hide_packages()
