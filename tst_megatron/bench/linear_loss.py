"""Time output layer and loss of bags together, against the matrix products that all ways need.

Shapes: N latent positions, V vocabulary, H hidden, K slots per bag.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import backward

from tst_megatron.bench.comparing import Settings, compare_cases
from tst_megatron.bench.results import Result, contender_version
from tst_megatron.bench.timing import Contender
from tst_megatron.model.linear_loss import WORKSPACE_BYTES, linear_multi_hot_cross_entropy
from tst_megatron.model.loss import vocab_parallel_multi_hot_cross_entropy

BARE = "three bare matrix products"
BAG_SIZES = (1, 16)
ROWS_OF_A_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Size:
    """One output layer."""

    num_positions: int
    vocabulary: int
    hidden: int
    dtype: torch.dtype
    workspace_bytes: int


GPU_SIZES = (
    Size(16384, 151936, 2048, torch.bfloat16, WORKSPACE_BYTES),
    Size(8192, 151936, 1536, torch.bfloat16, WORKSPACE_BYTES),
    Size(8192, 128256, 576, torch.bfloat16, WORKSPACE_BYTES),
)
"""A large one, 10B-A1B's and llama-270m's."""

CPU_SIZES = (Size(1024, 4096, 128, torch.float32, 4 * 2**20),)
"""The quickstart's."""


class Inputs:
    """Hidden states, a weight, targets and an upstream gradient, which all ways share."""

    def __init__(self, size: Size, bag_size: int, *, device: torch.device, seed: int) -> None:
        """Draw them; logits come out about as peaked as those of a trained model."""
        generator = torch.Generator(device=device).manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=size.dtype)

        self.hidden = draw(size.num_positions, size.hidden).requires_grad_()
        self.weight = (draw(size.vocabulary, size.hidden) * size.hidden**-0.5).requires_grad_()
        uniform = torch.rand((size.num_positions, bag_size), generator=generator, device=device)
        self.targets = (uniform**3 * size.vocabulary).long()
        self.upstream = torch.rand(size.num_positions, generator=generator, device=device)

    def forget(self) -> None:
        """Drop the gradients of the run before."""
        self.hidden.grad = self.weight.grad = None


def compare(settings: Settings, *, sizes: Sequence[Size] | None = None) -> Result:
    """Time output layer and loss, in chunks and at once; arguments as for the loss alone."""
    meter = settings.meter()

    def cases() -> Iterator[tuple[str, list[Contender]]]:
        for size in sizes or (GPU_SIZES if meter.is_gpu else CPU_SIZES):
            for bag_size in BAG_SIZES:
                shape = f"{size.num_positions} positions x {size.hidden} x {size.vocabulary} tokens"
                workspace = f"workspace {size.workspace_bytes / 2**20:.0f} MiB"
                inputs = Inputs(size, bag_size, device=settings.device, seed=settings.seed)
                yield f"{shape}, K = {bag_size}, {workspace}", ways(inputs, size)

    question = "Output layer and loss of bags, forward and backward"
    return compare_cases("linear-loss", question, BARE, cases(), settings)


def ways(inputs: Inputs, size: Size) -> list[Contender]:
    """List every way, and the bare matrix products for comparison."""
    ours, by_torch = contender_version("tst-megatron"), contender_version("torch")
    known: list[tuple[str, str, Callable[[], object]]] = [
        (BARE, by_torch, functools.partial(_products, inputs, times=1)),
        ("four: the logits twice", by_torch, functools.partial(_products, inputs, times=2)),
        ("linear loss, logits saved", ours, _linear(inputs, size, "save")),
        ("linear loss, logits in chunks, twice", ours, _linear(inputs, size, "recompute")),
        ("output layer, then one pass", ours, functools.partial(_whole, inputs)),
        ("chunks of positions, plain torch", by_torch, functools.partial(_by_positions, inputs)),
    ]
    return [
        Contender(name=name, version=version, run=run, before=inputs.forget)
        for name, version, run in known
    ]


def _products(inputs: Inputs, *, times: int) -> None:
    with torch.no_grad():
        for _ in range(times):
            logits = inputs.hidden @ inputs.weight.t()
        _ = logits @ inputs.weight, logits.t() @ inputs.hidden


def _linear(inputs: Inputs, size: Size, mode: Literal["save", "recompute"]) -> Callable[[], object]:
    def run() -> None:
        loss = linear_multi_hot_cross_entropy(
            inputs.hidden,
            inputs.weight,
            inputs.targets,
            mode=mode,
            workspace_bytes=size.workspace_bytes,
        )
        backward(loss, inputs.upstream)

    return run


def _whole(inputs: Inputs) -> None:
    logits = inputs.hidden @ inputs.weight.t()
    loss = vocab_parallel_multi_hot_cross_entropy(logits, inputs.targets, may_overwrite_logits=True)
    backward(loss, inputs.upstream)


def _by_positions(inputs: Inputs) -> None:
    """The gradient of a chunk of positions at once, added up over chunks by autograd."""
    for start in range(0, len(inputs.targets), ROWS_OF_A_CHUNK):
        rows = slice(start, start + ROWS_OF_A_CHUNK)
        scores = (inputs.hidden[rows] @ inputs.weight.t()).float()
        loss = scores.logsumexp(-1) - scores.gather(-1, inputs.targets[rows]).mean(-1)
        backward(loss, inputs.upstream[rows])
