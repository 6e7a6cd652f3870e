"""Facts of a healthy node of eight H100, and how tests change them."""

import dataclasses
import sys

import pytest

from tst_megatron.cli.app import main
from tst_megatron.nodes.doctor import gather
from tst_megatron.nodes.doctor.diagnose import findings_of
from tst_megatron.nodes.doctor.facts import Copy, Disk, Facts, GPUs, Machine, Packages, Probe
from tst_megatron.system.machine.nvidia_smi import FIELDS, parse

SITE = "/env/site-packages"
HEALTH = "".join(f"{gpu}, 0, No, No, Completed, {30 + gpu}, 4\n" for gpu in range(8))
NCCL_FILE = f"{SITE}/nvidia/nccl/lib/libnccl.so.2"
NOW = 1.8e9
NO_SUCH_LIBRARY = "ImportError: libcudart.so.13: cannot open shared object file"

VERSIONS = {
    "torch": "2.11.0",
    "megatron-core": "0.19.2",
    "transformers": "5.14.0",
    "numpy": "2.3.0",
    "transformer-engine": "2.20.2",
    "transformer-engine-cu13": "2.20.2",
    "transformer-engine-torch": "2.20.2",
    "nvidia-nccl-cu13": "2.28.9",
    "tst-megatron": "0.1.0",
}
REQUIRED = {
    "": ("torch>=2.11", "megatron-core==0.19.2", "transformers<5.15,>=5", "numpy>=2"),
    "gpu": ("transformer-engine[core-cu13,pytorch]==2.20.2",),
}
MODULES = {
    "torch": f"{SITE}/torch/__init__.py",
    "megatron.core": f"{SITE}/megatron/core/__init__.py",
    "megatron.training": f"{SITE}/megatron/training/__init__.py",
    "transformer_engine": f"{SITE}/transformer_engine/__init__.py",
    "fused_weight_gradient_mlp_cuda": f"{SITE}/fused_weight_gradient_mlp_cuda.so",
    "tst_megatron": f"{SITE}/tst_megatron/__init__.py",
}
H100 = {"name": "NVIDIA H100 80GB HBM3", "capability": [9, 0]}
TORCH = {
    "version": "2.11.0+cu130",
    "cuda": "13.0",
    "num_gpus": 8,
    "gpus": [H100] * 8,
    "warnings": [],
    "sum_problems": [None] * 8,
    "carriers": ["gloo", "nccl"],
    "nccl": "2.28.9",
    "nccl_file": NCCL_FILE,
    "gloo_problem": None,
}


def copies(**changes):
    """One copy of each distribution; a version of None takes it away."""
    versions = {**VERSIONS, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return {
        name: (Copy(version=version, folder=SITE),) for name, version in versions.items() if version
    }


def healthy():
    caches = ("Triton's cache", "cache of torch.compile")
    disks = [Disk(name=name, path="/tmp", free_gib=9.0, is_of_compilers=True) for name in caches]
    return Facts(
        packages=Packages(
            python="3.12.3", requires_python="<3.13,>=3.12", required=REQUIRED, copies=copies()
        ),
        probes={
            "modules": Probe(answers=MODULES),
            "torch": Probe(answers=TORCH),
            "helpers": Probe(answers={}),
            "transformer engine": Probe(),
            "wgrad": Probe(),
            "deep_ep": Probe(answers={"has_hybrid_ep": True}),
            "megatron": Probe(),
        },
        gpus=GPUs(driver="580.95.05", health=parse(HEALTH, FIELDS)),
        machine=Machine(
            shared_memory=Disk(name="shared memory", path="/dev/shm", free_gib=64.0),
            disks=(Disk(name="temporary folder", path="/tmp", free_gib=9.0), *disks),
            limits={
                "nofile": (65536, 65536),
                "nproc": (-1, -1),
                "memlock": (-1, -1),
                "core": (0, -1),
                "as": (-1, -1),
            },
            most_tasks_of_container=None,
            may_lock_memory=False,
            infiniband=("mlx5_0",),
            interfaces=("lo", "eth0", "ib0"),
            compiler="/usr/bin/gcc",
            has_python_headers=True,
            user="someone",
            is_clock_synchronised=True,
            now=NOW,
            written=NOW - 1e6,
            environment={},
        ),
    )


def without_gpu():
    """The same node without GPUs, driver, Transformer Engine and extensions."""
    facts = healthy()
    facts = with_packages(facts, copies=copies(transformer_engine=None))
    facts = with_torch(facts, num_gpus=0, gpus=[])
    for probe in ("transformer engine", "wgrad", "deep_ep"):
        facts = with_probe(facts, probe, None)
    return dataclasses.replace(facts, gpus=GPUs())


def with_packages(facts, **changes):
    return dataclasses.replace(facts, packages=dataclasses.replace(facts.packages, **changes))


def with_machine(facts, **changes):
    return dataclasses.replace(facts, machine=dataclasses.replace(facts.machine, **changes))


def with_limits(facts, **changes):
    return with_machine(facts, limits={**facts.machine.limits, **changes})


def with_gpus(facts, **changes):
    return dataclasses.replace(facts, gpus=dataclasses.replace(facts.gpus, **changes))


def with_probe(facts, name, probe):
    """Another answer; None takes the question away."""
    probes = {key: value for key, value in {**facts.probes, name: probe}.items() if value}
    return dataclasses.replace(facts, probes=probes)


def with_torch(facts, **changes):
    return with_probe(facts, "torch", Probe(answers={**facts.probes["torch"].answers, **changes}))


def with_modules(facts, **changes):
    """Other places; None takes a module away."""
    modules = {**facts.probes["modules"].answers, **changes}
    found = {name: place for name, place in modules.items() if place}
    return with_probe(facts, "modules", Probe(answers=found))


def without_torch(facts):
    facts = with_probe(with_packages(facts, copies=copies(torch=None)), "torch", None)
    return with_modules(facts, torch=None)


def without_shared_memory(facts, gib=0.0625):
    return with_machine(
        facts, shared_memory=Disk(name="shared memory", path="/dev/shm", free_gib=gib)
    )


@pytest.fixture
def doctor(monkeypatch, capsys):
    """Run the command on facts: (exit status, what it printed)."""

    def run(facts, *options):
        monkeypatch.setattr(gather, "gather", lambda **_: facts)
        monkeypatch.setattr(sys, "argv", ["tst-megatron", "doctor", *options])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return caught.value.code or 0, printed.out

    return run


def namesake(facts):
    facts = with_packages(facts, copies=copies(apex="0.9.10.dev0"))
    return with_modules(facts, apex=f"{SITE}/apex/__init__.py")


def by_level(facts, profile, level):
    return [each for each in findings_of(facts, profile) if each.level == level]
