"""The machine of a recipe: can it train it, and with how many cores."""

import os

import pytest

from tst_megatron.megatron.cpu import device
from tst_megatron.system.machine import cores


@pytest.fixture
def gpus(monkeypatch):
    def have(number):
        monkeypatch.setattr(device.torch.cuda, "is_available", lambda: number > 0)
        # The CPU host says one, whatever there is.
        monkeypatch.setattr(device.torch.cuda, "device_count", lambda: max(1, number))

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return have


@pytest.mark.parametrize("profile", [None, "bf16", "tuned", "mxfp8", "fp8"])
def test_recipe_that_needs_a_gpu_is_told_what_to_do_without_one(gpus, profile):
    gpus(0)
    problem = device.why_not_here(profile)
    given = "names no profile" if profile is None else f"says {profile}"
    assert problem.startswith(f"profile: the recipe {given}, so it trains on a GPU")
    assert "`profile: cpu` into the recipe, or add profile=cpu" in problem
    assert "machine with a GPU" in problem and "CUDA_VISIBLE_DEVICES" not in problem
    gpus(1)
    assert device.why_not_here(profile) is None


def test_gpus_that_are_hidden_are_named(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "(CUDA_VISIBLE_DEVICES is '')" in device.why_not_here("bf16")


@pytest.mark.parametrize("number", [0, 1, 8])
def test_cpu_recipe_needs_none(gpus, number):
    gpus(number)
    assert device.why_not_here("cpu", num_ranks=64) is None


def test_more_ranks_than_gpus_are_refused(gpus):
    gpus(2)
    assert device.why_not_here(None, num_ranks=2) is None
    assert "each of the 4 ranks" in device.why_not_here(None, num_ranks=4)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.max": "nonsense"}, 16),
    ],
)
def test_cores_are_those_that_the_process_may_use(tmp_path, monkeypatch, files, wanted):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    assert cores.num_cores() == wanted
