"""List the flags of Megatron that a recipe on the CPU host must set; torch is not needed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WITHOUT_TRANSFORMER_ENGINE: Mapping[str, Any] = {
    "transformer-impl": "local",
    "attention-backend": "unfused",  # the fused ones belong to Transformer Engine
    "masked-softmax-fusion": False,
    "gradient-accumulation-fusion": False,
    "rope-fusion": False,
    "no-persist-layer-norm": True,
}
"""Also what one GPU needs where Transformer Engine and Apex are not installed (``quickstart``)."""

ARGUMENTS: Mapping[str, Any] = {
    **WITHOUT_TRANSFORMER_ENGINE,  # Transformer Engine and the fused kernels need CUDA
    "distributed-backend": "gloo",  # NCCL needs CUDA
    # Megatron draws on the CPU; megatron/initial_weights.py makes that independent of the layout.
    "use-cpu-initialization": True,
    "bias-dropout-fusion": False,  # these fused kernels are CUDA-only too
    "bias-swiglu-fusion": False,
}
"""``check/plain.py`` overlays them with ``profile: cpu``; the reason stands beside each."""
