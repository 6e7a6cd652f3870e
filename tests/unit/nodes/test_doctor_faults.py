"""Every fault that a machine may have is named with its fix, and ends with status 1."""

import doctor_facts as of
import pytest
from doctor_facts import by_level, healthy, without_gpu, without_shared_memory

from tst_megatron.nodes.doctor.facts import Disk, Image, Probe
from tst_megatron.system.machine.nvidia_smi import FIELDS, Answer, parse

V100 = {"name": "Tesla V100", "capability": [7, 0]}


def with_disk(facts, **changes):
    disk = Disk(**{"name": "run folder", "path": "/runs/one", "free_gib": 100.0, **changes})
    return of.with_machine(facts, disks=(*facts.machine.disks, disk))


FAULTS = {
    "torch is missing": (
        of.without_torch,
        "bf16",
        "torch",
        [
            "not installed",
            "needed: torch>=2.11",
            "fix: uv pip install --python python 'torch>=2.11'",
        ],
    ),
    "torch is too old": (
        lambda f: of.with_packages(f, copies=of.copies(torch="2.10.1")),
        "bf16",
        "torch",
        ["2.10.1", "needed: torch>=2.11", "fix: uv pip install --python python 'torch>=2.11'"],
    ),
    "torch is broken": (
        lambda f: of.with_probe(f, "torch", Probe(problem=of.NO_SUCH_LIBRARY)),
        "bf16",
        "torch",
        [
            f"2.11.0: {of.NO_SUCH_LIBRARY}",
            "fix: uv pip install",
            "--reinstall-package torch 'torch==2.11.0'",
        ],
    ),
    "torch has no CUDA": (
        lambda f: of.with_torch(f, cuda=None, version="2.11.0+cpu", num_gpus=0, gpus=[]),
        "bf16",
        "torch",
        [
            "2.11.0+cpu, built without CUDA",
            "needed: torch with CUDA",
            "fix: uv pip install",
            "uv sync --frozen",
        ],
    ),
    "the driver is too old for CUDA": (
        lambda f: of.with_gpus(of.with_torch(f, num_gpus=0, gpus=[]), driver="570.86.15"),
        "bf16",
        "driver",
        ["570.86.15", "needed: R580 or newer for CUDA 13.0", "fix: update the driver to R580"],
    ),
    "there is no driver": (
        lambda f: without_gpu(),
        "bf16",
        "driver",
        ["no NVIDIA driver", "R580 or newer for profile bf16", "fix: run this on a node with GPUs"],
    ),
    "the container has no GPUs": (
        lambda f: of.with_gpus(
            of.with_torch(f, num_gpus=0, gpus=[]), health=Answer(problem="nvidia-smi: not found")
        ),
        "bf16",
        "GPUs",
        ["torch sees 0, nvidia-smi 0", "fix: start the container with its GPUs", "--nv"],
    ),
    "GPUs are hidden": (
        lambda f: of.with_machine(
            of.with_torch(f, num_gpus=0, gpus=[]), environment={"CUDA_VISIBLE_DEVICES": ""}
        ),
        "bf16",
        "GPUs",
        ["torch sees 0, nvidia-smi 8", "fix: they are hidden by CUDA_VISIBLE_DEVICES=: unset it"],
    ),
    "a GPU is lost": (
        lambda f: of.with_torch(f, num_gpus=7, gpus=[of.H100] * 7),
        "bf16",
        "GPUs",
        ["torch sees 7, nvidia-smi 8", "fix: look at nvidia-smi and dmesg"],
    ),
    "CUDA does not start": (
        lambda f: of.with_torch(f, num_gpus=0, gpus=[], warnings=["Error 802: not initialized"]),
        "bf16",
        "GPUs",
        ["Error 802: not initialized", "fix: look at nvidia-smi and dmesg; on NVSwitch"],
    ),
    "a GPU has memory errors": (
        lambda f: of.with_gpus(f, health=parse(of.HEALTH.replace("3, 0,", "3, 2,"), FIELDS)),
        "bf16",
        "nvidia-smi",
        ["GPU 3: 2 uncorrected ECC errors", "fix: leave the node out"],
    ),
    "a GPU does not compute": (
        lambda f: of.with_torch(
            f, sum_problems=[None, *["CUDA error: no kernel image is available"] * 2]
        ),
        "bf16",
        "GPUs",
        ["GPU 1, 2 of torch: CUDA error: no kernel image", "fix: if torch has no kernels for it"],
    ),
    "a GPU is too old for BF16": (
        lambda f: of.with_torch(f, gpus=[V100] * 8),
        "bf16",
        "GPUs",
        ["Tesla V100, compute capability 7.0", "needed: 8.0 or above", "fix: use a profile"],
    ),
    "MXFP8 on Hopper": (
        lambda f: f,
        "mxfp8",
        "GPUs",
        ["H100 80GB HBM3, compute capability 9.0", "10.0 or above for profile mxfp8", "Blackwell"],
    ),
    "Transformer Engine is missing": (
        lambda f: of.with_probe(
            of.with_packages(f, copies=of.copies(transformer_engine=None)),
            "transformer engine",
            None,
        ),
        "bf16",
        "Transformer Engine",
        [
            "not installed",
            "pytorch]==2.20.2, for profile bf16",
            "fix: uv pip install --python python --no-build-isolation 'transformer-engine",
            "uv sync --frozen --extra gpu",
        ],
    ),
    "Transformer Engine lacks its part for torch": (
        lambda f: of.with_probe(
            of.with_packages(f, copies=of.copies(transformer_engine_torch=None)),
            "transformer engine",
            Probe(problem="ModuleNotFoundError: No module named 'transformer_engine_torch'"),
        ),
        "fp8",
        "Transformer Engine",
        ["its part for torch (transformer-engine-torch) is missing", "--no-build-isolation"],
    ),
    "Transformer Engine is too old": (
        lambda f: of.with_packages(f, copies=of.copies(transformer_engine="2.9.0+abc")),
        "tuned",
        "Transformer Engine",
        ["2.9.0+abc", "needed: 2.12.0 or newer for profile tuned", "fix: uv pip install"],
    ),
    "Apex is the namesake": (
        of.namesake,
        "bf16",
        "Apex",
        [
            "0.9.10.dev0",
            "a namesake: another project",
            "fix: uv pip uninstall --python python apex",
        ],
    ),
    "Apex has no extension": (
        lambda f: of.with_probe(f, "wgrad", None),
        "tuned",
        "fused_weight_gradient_mlp_cuda",
        ["not installed", "needed: this extension of NVIDIA's Apex", "fix: build Apex from github"],
    ),
    "Apex's extension is broken": (
        lambda f: of.with_probe(f, "wgrad", Probe(problem="ImportError: undefined symbol: _ZN2")),
        "fp8",
        "fused_weight_gradient_mlp_cuda",
        ["undefined symbol: _ZN2", "gradient-accumulation-fusion=false behind the recipe"],
    ),
    "NCCL is another one": (
        lambda f: of.with_torch(f, nccl="2.18.3", nccl_file="/usr/lib/libnccl.so.2"),
        "bf16",
        "NCCL",
        [
            "2.18.3 from /usr/lib/libnccl.so.2, while nvidia-nccl-cu13 is 2.28.9",
            "fix: take /usr/lib off LD_LIBRARY_PATH",
        ],
    ),
    "torch has no NCCL": (
        lambda f: of.with_torch(f, carriers=["gloo"], nccl=None, nccl_file=None),
        "bf16",
        "NCCL",
        ["was built without it", "needed: NCCL", "fix: install torch of PyPI"],
    ),
    "gloo does not start": (
        lambda f: of.with_torch(f, gloo_problem="Unable to resolve hostname to a (local) address"),
        "bf16",
        "gloo",
        ["Unable to resolve hostname", "fix: export GLOO_SOCKET_IFNAME=INTERFACE"],
    ),
    "torch has no gloo": (
        lambda f: of.with_torch(f, carriers=["nccl"]),
        "bf16",
        "gloo",
        ["was built without it", "needed: gloo", "fix: install torch of PyPI"],
    ),
    "shared memory is small": (
        without_shared_memory,
        "bf16",
        "shared memory",
        ["/dev/shm: 0.06 GiB free", "needed: 1 GiB", "--shm-size=16g or --ipc=host"],
    ),
    "open files are few": (
        lambda f: of.with_limits(f, nofile=(256, 256)),
        "bf16",
        "limit nofile",
        ["256, at most 256", "needed: 1024 or more open files", "fix: root raises the hard limit"],
    ),
    "processes are few": (
        lambda f: of.with_limits(f, nproc=(512, 4096)),
        "bf16",
        "limit nproc",
        ["512, at most 4096", "needed: 1024 or more processes", "fix: ulimit -u 4096"],
    ),
    "a container allows few processes": (
        lambda f: of.with_machine(f, most_tasks_of_container=100),
        "bf16",
        "limit of the container",
        ["100 processes and threads", "fix: start the container with --pids-limit=-1"],
    ),
    "memory cannot be locked": (
        lambda f: of.with_limits(f, memlock=(8 * 2**20, 8 * 2**20)),
        "bf16",
        "limit memlock",
        ["8192 KiB, with InfiniBand (mlx5_0)", "needed: unlimited", "--ulimit memlock=-1"],
    ),
    "addresses are limited": (
        lambda f: of.with_limits(f, **{"as": (2**36, 2**36)}),
        "bf16",
        "limit as",
        ["64.0 GiB of address space", "needed: unlimited", "fix: root raises the hard limit"],
    ),
    "the disk is full": (
        lambda f: with_disk(f, free_gib=0.004),
        "bf16",
        "run folder",
        ["/runs/one: 0.00 GiB free", "needed: 1 GiB free", "fix: free space there"],
    ),
    "a cache cannot be written": (
        lambda f: with_disk(
            f, name="Triton's cache", path="/nobody/.triton", problem="Permission denied"
        ),
        "bf16",
        "Triton's cache",
        ["/nobody/.triton: Permission denied", "export TRITON_CACHE_DIR=FOLDER"],
    ),
    "there is no compiler": (
        lambda f: of.with_machine(f, compiler=None),
        "bf16",
        "C compiler",
        ["none", "needed: gcc, clang", "fix: apt-get install gcc"],
    ),
    "there are no headers of Python": (
        lambda f: of.with_machine(f, has_python_headers=False),
        "bf16",
        "Python.h",
        ["not there", "fix: apt-get install python3.12-dev"],
    ),
    "the user has no name": (
        lambda f: of.with_machine(f, user=None),
        "bf16",
        "user",
        ["has no name here", "torch.compile", "fix: export USER=NAME"],
    ),
    "the clock is far behind": (
        lambda f: of.with_machine(f, now=1.0e9),
        "bf16",
        "clock",
        ["2001-09-09", "before this project's own files were written (2027", "fix: start its time"],
    ),
    "an interface does not exist": (
        lambda f: of.with_machine(f, environment={"NCCL_SOCKET_IFNAME": "=bond0"}),
        "bf16",
        "NCCL_SOCKET_IFNAME",
        ["=bond0, and there are lo, eth0, ib0", "fix: name one that all nodes have"],
    ),
    "Megatron is another version": (
        lambda f: of.with_packages(f, copies=of.copies(megatron_core="0.19.1")),
        "bf16",
        "megatron-core",
        [
            "0.19.1",
            "needed: megatron-core==0.19.2",
            "fix: uv pip install --python python 'megatron-core==0.19.2'",
        ],
    ),
    "Megatron is a pre-release": (
        lambda f: of.with_packages(f, copies=of.copies(megatron_core="0.19.2rc1")),
        "bf16",
        "megatron-core",
        ["0.19.2rc1", "needed: megatron-core==0.19.2"],
    ),
    "Megatron has no training loop": (
        lambda f: of.with_modules(f, **{"megatron.training": None}),
        "bf16",
        "megatron-core",
        [
            "no megatron.training",
            "needed: megatron.training and",
            "-package megatron-core 'megatron-core==0.19.2'",
        ],
    ),
    "Megatron's extension does not load": (
        lambda f: of.with_probe(f, "helpers", Probe(problem="ImportError: GLIBC_2.38 not found")),
        "bf16",
        "megatron-core",
        [
            "helpers_cpp: ImportError: GLIBC_2.38 not found",
            "-package megatron-core 'megatron-core==0.19.2'",
        ],
    ),
    "Megatron has no module": (
        lambda f: of.with_modules(f, **{"megatron.core": None}),
        "bf16",
        "megatron-core",
        [
            "0.19.2, without a module megatron.core",
            "-package megatron-core 'megatron-core==0.19.2'",
        ],
    ),
    "Megatron cannot be imported": (
        lambda f: of.with_probe(f, "megatron", Probe(problem="hung for 180 s")),
        "bf16",
        "megatron-core",
        ["0.19.2: hung for 180 s", "needed: all that training imports"],
    ),
    "Python is another one": (
        lambda f: of.with_packages(f, python="3.13.1"),
        "bf16",
        "Python",
        ["3.13.1", "needed: <3.13,>=3.12", "fix: make the environment anew"],
    ),
    "an image was changed": (
        lambda f: of.with_packages(
            f, image=Image(versions={"torch": "2.13.0a0+81", "deep-ep": "1.2", "numpy": "2.3.0"})
        ),
        "bf16",
        "image",
        ["deep-ep 1.2 is gone; torch was 2.13.0a0+81 and is 2.11.0", "PYTHONNOUSERSITE=1"],
    ),
    "an image does not say what it has": (
        lambda f: of.with_packages(f, image=Image(problem="image.json: KeyError: 'versions'")),
        "bf16",
        "image",
        ["image.json: KeyError: 'versions'", "fix: Take the image again"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named_with_its_fix_and_ends_with_status_1(doctor, fault):
    change, profile, check, words = FAULTS[fault]
    facts = change(healthy())
    status, out = doctor(facts, "--profile", profile)
    assert status == 1
    for word in words:
        assert word in out
    named = [each for each in by_level(facts, profile, "problem") if each.check == check]
    assert named and all(each.found and each.needed and each.fix for each in named)
