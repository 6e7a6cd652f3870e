"""Hide packages for GPUs from Megatron where it runs on the CPU.

Megatron takes a kernel wherever the package that has it can be imported, whatever device the
tensors are on. So an image for GPUs would not work on a login node, and a checkpoint could not be
exported on the CPU beside a GPU.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Hidden:
    """One package that cannot be imported under the CPU host, as if it were not installed."""

    package: str
    asked_by: str
    """The places of Megatron that would use it on the CPU, and fail or compute otherwise."""
    hides: str
    """The behaviour of a GPU that a run on the CPU does not show."""


HIDDEN: tuple[Hidden, ...] = (
    Hidden(
        package="transformer_engine",
        asked_by="the router's matrix product (general_gemm), Adam and the norm and scaling of "
        "gradients (optimizers), permutation of positions, rotary embedding, cross-entropy, fp8 "
        "states of checkpoints, recompute, random numbers, and the version that validation asks",
        hides="its kernels; Megatron's own code in torch computes the same",
    ),
    Hidden(
        package="transformer_engine_torch",
        asked_by="fp8 casts, which import the extension itself",
        hides="the same",
    ),
    Hidden(
        package="apex",
        asked_by="norms (its fused LayerNorm, which knows no RMSNorm, and replaces torch's), Adam, "
        "and the norm and scaling of gradients",
        hides="its kernels; Megatron's own code in torch computes the same",
    ),
)


def hide_packages() -> None:
    """Let this process import none of them, from here on; a second call changes nothing.

    Raises:
        RuntimeError: Megatron was imported before, and has taken what it found.
    """
    packages = [hidden.package for hidden in HIDDEN]
    # None is what Python's import system documents for a module that must not be found.
    seen = [name for name in packages if name not in sys.modules or sys.modules[name] is not None]
    if seen and "megatron.core" in sys.modules:
        raise RuntimeError(
            f"{', '.join(seen)} must be hidden before Megatron is imported: what Megatron found by "
            "then would stay"
        )
    # Python finds a module that was imported before without asking for its package.
    parts = [
        name for name in sys.modules if name.startswith(tuple(f"{each}." for each in packages))
    ]
    for name in (*packages, *parts):
        sys.modules[name] = None  # type: ignore[assignment]
