"""Find packages that a recipe needs and that this environment lacks."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from tst_megatron.recipe.profiles import GPU_PROFILES
from tst_megatron.recipe.recipe import Recipe
from tst_megatron.system.packages import has_transformer_engine

DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/proc/driver/nvidia/version")
"""Files that NVIDIA's driver makes, on Linux and in Linux under Windows."""


def sees_gpu() -> bool:
    """Tell whether this machine seems to have a GPU, without torch, whose import takes seconds."""
    return any(Path(place).exists() for place in DRIVERS)


def package_remarks(recipe: Recipe, values: argparse.Namespace) -> tuple[list[str], list[str]]:
    """List the packages that a start of the recipe would import and this environment lacks.

    A login node may lack what the job has, so there they are notes. On a machine that can run the
    recipe, with the CPU host or a GPU, they are problems.

    Returns:
        (problems, notes).
    """
    missing = [
        f"{key}: needs {package}, which this environment lacks"
        for key, module, package in _needs(values)
        if importlib.util.find_spec(module) is None
    ]
    if recipe.profile == "cpu" or sees_gpu():
        return [f"{what}. Install it, or remove the key" for what in missing], []
    return [], [f"{what}; that of the job must have it" for what in missing]


def _needs(values: argparse.Namespace) -> list[tuple[str, str, str]]:
    """List (key, module, package) of every optional package that the run imports."""
    flex = values.moe_flex_dispatcher_backend if values.moe_token_dispatcher_type == "flex" else ""
    wanted = (
        ("wandb-project", values.wandb_project, "wandb", "wandb"),
        (
            f"optimizer: {values.optimizer}",
            values.optimizer not in ("adam", "sgd"),
            "emerging_optimizers",
            "emerging-optimizers",
        ),
        (
            "gradient-accumulation-fusion",
            values.gradient_accumulation_fusion,
            "fused_weight_gradient_mlp_cuda",
            "Apex with its CUDA extensions",
        ),
        ("moe-enable-deepep", values.moe_enable_deepep, "deep_ep", "DeepEP"),
        (
            f"moe-flex-dispatcher-backend: {flex}",
            flex in ("deepep", "hybridep"),
            "deep_ep",
            "DeepEP",
        ),
        ("use-kitchen-attention", values.use_kitchen_attention, "nvidia_kitchen", "nvidia-kitchen"),
        (
            "inprocess-restart",
            values.inprocess_restart,
            "nvidia_resiliency_ext",
            "nvidia-resiliency-ext",
        ),
        (
            "enable-ft-package",
            values.enable_ft_package,
            "nvidia_resiliency_ext",
            "nvidia-resiliency-ext",
        ),
    )
    return [(key, module, package) for key, is_set, module, package in wanted if is_set]


def profile_problems(recipe: Recipe, values: argparse.Namespace) -> list[str]:
    """Refuse a GPU profile on a machine with a GPU that lacks Transformer Engine.

    A machine without a GPU, such as a login node, is not the job's, so nothing is said there.
    """
    # Imports torch, which takes seconds.
    from tst_megatron.megatron.cpu import host

    needs_it = recipe.profile in GPU_PROFILES and values.transformer_impl == "transformer_engine"
    if not needs_it or host.is_needed() or has_transformer_engine():
        return []
    return [
        f"profile: {recipe.profile} needs Transformer Engine, which is not installed. Install it "
        "(pip install --no-build-isolation 'transformer-engine[pytorch]'), or use its container"
    ]
