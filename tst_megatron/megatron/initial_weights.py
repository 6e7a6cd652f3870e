"""Draw initial weights on the CPU so that they do not depend on the parallel layout.

Megatron draws them from one generator in the order in which a rank builds its part. With
``use-cpu-initialization`` that generator is the same on every rank of an expert-parallel group, so
two ranks would start with the same experts. And a layer that a rank does not build shifts all that
comes after it. Here every weight has a generator of its own, seeded by the run's seed and by the
weight's name in the complete model. Example:
``decoder.layers.7.mlp.experts.local_experts.3.linear_fc1.weight`` is the same with one rank and
with eight, and on a GPU with the same key as on the CPU host. Layers of Transformer Engine keep the
weights that Megatron draws.

Remove when Megatron's weights no longer depend on the layout with ``use-cpu-initialization``.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tst_megatron.megatron import names
from tst_megatron.megatron.repairs.wrapping import wrap

_DRAW = "tst_megatron_draw"
"""Attribute of a weight that is being built: a function that draws its values again."""


def draw_by_place() -> None:
    """Let every GPT that is built draw each weight for its place in the complete model."""
    wrap(names.tensor_parallel_layers, "_initialize_affine_weight_cpu", _remembered)
    wrap(names.GPTModel, "__init__", _drawn_by_place)


def _remembered(initialise: Callable[..., Any]) -> Callable[..., Any]:
    """Keep on a weight how Megatron fills it: the method, the full shape, this rank's part."""

    @functools.wraps(initialise)
    def wrapper(weight: Any, *args: Any, **kwargs: Any) -> Any:
        # The attributes that this sets on the weight may be set once.
        again = {**kwargs, "skip_set_tensor_parallel_attributes": True}
        setattr(weight, _DRAW, functools.partial(initialise, weight, *args, **again))
        return initialise(weight, *args, **kwargs)

    return wrapper


def _drawn_by_place(build: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(build)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        if not (self.config.perform_initialization and self.config.use_cpu_initialization):
            return
        if names.global_vars._GLOBAL_ARGS is None:
            # Built outside a run, without a seed: its weights will be loaded.
            return
        with torch.random.fork_rng(devices=[]):
            for place, draw in _draws(self):
                digest = hashlib.sha256(f"{names.get_args().seed}/{place}".encode()).digest()
                # Not torch.manual_seed, which would seed the generators of GPUs too.
                torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
                draw()
        if self.pre_process or self.post_process or self.mtp_process:
            # Copies of the embeddings on other pipeline stages take them from the first again.
            self.setup_embeddings_and_output_layer()

    return wrapper


def _draws(model: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """List each random weight of a stage: its name in the complete model, and what draws it."""
    for place, module in _modules(model, ""):
        for name, weight in module.named_parameters(recurse=False):
            draw = weight.__dict__.pop(_DRAW, None)
            if draw is not None:
                yield f"{place}{name}", draw
        if isinstance(module, names.Router):
            yield f"{place}weight and bias", module.reset_parameters
        if getattr(module, "gate_weight", None) is not None:
            method = model.config.init_method
            yield f"{place}gate_weight", functools.partial(method, module.gate_weight.data)
        if isinstance(getattr(module, "softmax_offset", None), torch.nn.Parameter):
            yield f"{place}softmax_offset", functools.partial(_draw_offsets, module)


def _modules(module: Any, place: str) -> Iterator[tuple[str, Any]]:
    """List a module and all inside it; layers and experts are numbered as in the complete model."""
    yield place, module
    first = 0
    if isinstance(module, names.SequentialMLP):
        first = module.ep_group.rank() * module.num_local_experts
    for name, child in module.named_children():
        if isinstance(module, torch.nn.ModuleList) and isinstance(child, names.TransformerLayer):
            name = str(child.layer_number - 1)
        below = f"{place}{name}."
        if isinstance(module, names.SequentialMLP) and name == "local_experts":
            for i, expert in enumerate(child):
                yield from _modules(expert, f"{below}{first + i}.")
            continue
        yield from _modules(child, below)


def _draw_offsets(attention: Any) -> None:
    """Draw one number for each head, and keep those of this tensor-parallel rank."""
    offsets, num_heads = attention.softmax_offset.data, attention.config.num_attention_heads
    all_heads = offsets.new_empty(num_heads)
    attention.config.init_method(all_heads)
    first = attention.pg_collection.tp.rank() * len(offsets)
    offsets.copy_(all_heads[first : first + len(offsets)])
