"""Compile the one extension of NVIDIA's Apex that Megatron's output layer needs, for the image.

    python image_apex.py COMMIT FOLDER

Nothing else of Apex: where a package `apex` can be imported, Megatron takes its LayerNorm, and that
refuses RMSNorm. Needs git, nvcc and ninja; TORCH_CUDA_ARCH_LIST says for which GPUs. Remove this
when Megatron accumulates gradients in its output layer without Apex.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = "https://github.com/NVIDIA/apex"
NAME = "fused_weight_gradient_mlp_cuda"
SOURCES = (
    "csrc/megatron/fused_weight_gradient_dense.cpp",
    "csrc/megatron/fused_weight_gradient_dense_cuda.cu",
    "csrc/megatron/fused_weight_gradient_dense_16bit_prec_cuda.cu",
)
NVCC_FLAGS = (
    "-O3",
    "-U__CUDA_NO_HALF_OPERATORS__",
    "-U__CUDA_NO_HALF_CONVERSIONS__",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "--use_fast_math",
)
"""As Apex's own setup.py compiles it."""


def missing() -> list[str]:
    """What the compilation needs and is not here."""
    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    there = {
        "torch": importlib.util.find_spec("torch"),
        "git": shutil.which("git"),
        "ninja": shutil.which("ninja"),
        "nvcc": shutil.which("nvcc") or shutil.which(f"{cuda}/bin/nvcc"),
    }
    return [name for name, found in there.items() if not found]


def fetch(commit: str, folder: Path, repository: str = REPOSITORY) -> None:
    """Check out one commit, whose number is also its checksum."""
    for arguments in (
        ["init", "--quiet"],
        ["fetch", "--quiet", "--depth=1", repository, commit],
        ["checkout", "--quiet", "--detach", "FETCH_HEAD"],
    ):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)


def compile_extension(source: Path, folder: Path) -> Path:
    """Compile Apex's extension from a checkout into a folder, and return the library."""
    extension = importlib.import_module("torch.utils.cpp_extension")
    with tempfile.TemporaryDirectory() as build:
        extension.load(
            name=NAME,
            sources=[str(source / each) for each in SOURCES],
            extra_include_paths=[str(source / "csrc")],
            extra_cflags=["-O3"],
            extra_cuda_cflags=list(NVCC_FLAGS),
            build_directory=build,
            with_cuda=True,
            verbose=True,
        )
        library = Path(shutil.copy(Path(build) / f"{NAME}.so", folder))
    library.chmod(0o755)
    return library


def main() -> int:
    commit, folder = sys.argv[1], Path(sys.argv[2])
    if lacking := missing():
        print(
            f"error: BUILD_APEX=1: the base image has no {', '.join(lacking)}. Apex's extension "
            "is compiled against the base's torch and CUDA: take NVIDIA's base, or leave "
            "BUILD_APEX out",
            file=sys.stderr,
        )
        return 1
    with tempfile.TemporaryDirectory() as source:
        fetch(commit, Path(source))
        print(compile_extension(Path(source), folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
