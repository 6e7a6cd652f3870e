"""The CPU host with Transformer Engine in sight: its layers are built, and no kernel of it runs."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import pytest
import torch

from tst_megatron.megatron.cpu import hidden, host
from tst_megatron.system.packages import has_transformer_engine

BLACKWELL = types.SimpleNamespace(
    name="cpu", major=10, minor=0, total_memory=0, multi_processor_count=148
)
"""What Transformer Engine and Megatron ask of a device before they build for FP8."""
ANSWERS = {
    "torch.cuda:get_device_properties": lambda *_: BLACKWELL,
    "torch.cuda:get_device_capability": lambda *_: (10, 0),
}


def skip_without_transformer_engine() -> None:
    """Skip a module of tests where Transformer Engine is not installed."""
    if not has_transformer_engine():
        pytest.skip(
            "needs Transformer Engine, for which `make test-te` makes an environment",
            allow_module_level=True,
        )


def install() -> None:
    """Install the CPU host so that Megatron finds Transformer Engine, which finds a GPU."""
    if host.is_installed():
        return
    hidden.HIDDEN = tuple(each for each in hidden.HIDDEN if each.package == "apex")
    host.FAKES = tuple(
        dataclasses.replace(fake, replacement=ANSWERS.get(fake.target, fake.replacement))
        for fake in host.FAKES
    )
    host.install()
    # Its layers refuse to be built without one.
    torch.cuda.is_available = lambda: True


def as_in_fp8(model: Any, recipe: str) -> None:
    """Give every layer the state that it would have after a step in FP8.

    Args:
        model: of Transformer Engine's layers.
        recipe: a class of ``transformer_engine.common.recipe``. That of delayed scaling also gets
            scales, which go into checkpoints.
    """
    import transformer_engine.pytorch as te
    from transformer_engine.common import recipe as recipes
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

    layers = [each for each in model.modules() if isinstance(each, TransformerEngineBaseModule)]
    assert layers
    with te.fp8_autocast(enabled=True, fp8_recipe=getattr(recipes, recipe)()):
        for number, layer in enumerate(layers, start=1):
            layer.init_fp8_metadata(num_gemms=getattr(layer, "num_gemms", 1))
            if recipe == "DelayedScaling":
                layer.fp8_meta["scaling_fwd"].scale.fill_(float(number))
