"""List the flags of Megatron that a recipe on the CPU host must set; torch is not needed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ARGUMENTS: Mapping[str, Any] = {
    "transformer-impl": "local",  # Transformer Engine needs CUDA
    "distributed-backend": "gloo",  # NCCL needs CUDA
    "attention-backend": "unfused",  # the fused ones belong to Transformer Engine
    # Megatron draws on the CPU; megatron/initial_weights.py makes that independent of the layout.
    "use-cpu-initialization": True,
    "masked-softmax-fusion": False,  # the fused kernels of the next lines are CUDA-only
    "bias-dropout-fusion": False,
    "bias-swiglu-fusion": False,
    "gradient-accumulation-fusion": False,
    "rope-fusion": False,
    "no-persist-layer-norm": True,
}
"""``check/plain.py`` overlays them with ``profile: cpu``; the reason stands beside each."""
