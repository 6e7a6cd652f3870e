"""Time the embedding of bags against every other way to compute it, forward and backward.

The time of the gradient includes its way into Megatron's fp32 buffer, where it must go.

Shapes: B micro-batch, L latent positions, K tokens per bag, H hidden, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import backward

from tst_megatron.bench.comparing import Settings, compare_cases
from tst_megatron.bench.results import Result, contender_version
from tst_megatron.bench.timing import NOT_COMPILED, Contender
from tst_megatron.megatron.cpu.meter import Meter
from tst_megatron.model.embedding import bag_embedding
from tst_megatron.system.packages import import_if_there

OURS = "bag embedding"
COMPILED = "compiled gather and mean"
BAG_SIZES = (4, 8, 16)
CHECKED_BAGS = 64

Way = Callable[[Tensor, Tensor], Tensor]
"""(table [V, H], tokens [B, L, K]) -> [L, B, H]."""


@dataclass(frozen=True, slots=True)
class Size:
    """A table and a micro-batch."""

    vocabulary: int
    hidden: int
    batch: int
    length: int
    dtype: torch.dtype


GPU_SIZES = (
    Size(151936, 1536, 1, 8192, torch.bfloat16),
    Size(128256, 576, 4, 2048, torch.bfloat16),
)
"""10B-A1B's and llama-270m's."""

CPU_SIZES = (
    Size(4096, 128, 8, 128, torch.float32),
    Size(32064, 576, 2, 512, torch.float32),
    Size(32064, 576, 2, 512, torch.bfloat16),
)
"""The quickstart's, and llama-270m's with a smaller vocabulary."""


class Inputs:
    """A table with Megatron's buffer, tokens and an upstream gradient, which all ways share."""

    def __init__(self, size: Size, bag_size: int, *, device: torch.device, seed: int) -> None:
        """Draw them; frequencies of tokens fall as those of text do."""
        generator = torch.Generator(device=device).manual_seed(seed)
        options: dict[str, Any] = {"generator": generator, "device": device}
        shape = (size.vocabulary, size.hidden)
        self.table = torch.nn.Parameter(torch.randn(shape, **options).mul_(0.02).to(size.dtype))
        self.main_grad = torch.zeros(shape, device=device)
        uniform = torch.rand((size.batch, size.length, bag_size), **options)
        self.tokens = (uniform**4 * size.vocabulary).long()
        shape_LBH = (size.length, size.batch, size.hidden)
        self.upstream = torch.randn(shape_LBH, **options).to(size.dtype)

    def forward(self, way: Way) -> None:
        """Run the forward pass alone."""
        with torch.no_grad():
            way(self.table, self.tokens)

    def both(self, way: Way, *, adds_itself: bool) -> None:
        """Run forward, backward and into the buffer, as the hook of data parallelism does."""
        self.table.grad = None
        backward(way(self.table, self.tokens), self.upstream)
        if not adds_itself:
            assert self.table.grad is not None
            self.main_grad.add_(self.table.grad)

    def expose_main_grad(self, is_exposed: bool) -> None:
        """Let the table have the buffer as Megatron's parameters have, or not."""
        if is_exposed:
            vars(self.table).update(main_grad=self.main_grad, grad_added_to_main_grad=False)
        else:
            vars(self.table).clear()

    def error(self, way: Way) -> float:
        """Return the relative error of some means against double precision."""
        with torch.no_grad():
            found = way(self.table, self.tokens)[:CHECKED_BAGS, 0].double()
            rows = F.embedding(self.tokens[0, :CHECKED_BAGS], self.table).double()
        wanted = rows.mean(dim=1)
        return float((found - wanted).norm() / wanted.norm())


def compare(settings: Settings, *, sizes: Sequence[Size] | None = None) -> Result:
    """Time the embedding of bags, and what else could compute it; arguments as for the loss."""
    meter = settings.meter()

    def cases() -> Iterator[tuple[str, list[Contender]]]:
        for size in sizes or (GPU_SIZES if meter.is_gpu else CPU_SIZES):
            for bag_size in BAG_SIZES:
                inputs = Inputs(size, bag_size, device=settings.device, seed=settings.seed)
                table = f"table {size.vocabulary} x {size.hidden} {str(size.dtype)[6:]}"
                shape = f"{table}, {size.batch} x {size.length} bags, K = {bag_size}"
                yield f"{shape}: forward", ways(inputs, meter, both=False)
                yield f"{shape}: forward and backward", ways(inputs, meter, both=True)

    return compare_cases("embedding", "Embedding of bags", OURS, cases(), settings)


def ways(inputs: Inputs, meter: Meter, *, both: bool) -> list[Contender]:
    """List every way that this machine has."""
    by_torch = contender_version("torch")
    known: list[tuple[str, str, Way | None]] = [
        (OURS, contender_version("tst-megatron"), bag_embedding),
        ("Megatron's embedding and a mean", contender_version("megatron-core"), _megatron(inputs)),
        ("F.embedding_bag", by_torch, _embedding_bag),
        ("gather and mean", by_torch, _gather),
        (COMPILED, by_torch, torch.compile(_gather) if meter.is_gpu else None),
        ("FBGEMM, dense", contender_version("fbgemm-gpu"), _fbgemm() if meter.is_gpu else None),
    ]
    found = []
    for name, version, way in known:
        # The kernel adds to the buffer; the torch code of the CPU gives an ordinary gradient.
        adds_itself = name == OURS and meter.is_gpu
        run: Callable[[], object] | None = None
        if way is not None:
            run = (
                functools.partial(inputs.both, way, adds_itself=adds_itself)
                if both
                else functools.partial(inputs.forward, way)
            )
        if adds_itself:
            run = functools.partial(inputs.both, _into_main_grad, adds_itself=True) if both else run
        found.append(
            Contender(
                name=name,
                version=version,
                run=run,
                absent=NOT_COMPILED if name == COMPILED else "not installed",
                before=functools.partial(inputs.expose_main_grad, adds_itself),
                num_bytes=None if both else _floor(inputs),
                error=functools.partial(inputs.error, way) if way and not both else None,
            )
        )
    return found


def _floor(inputs: Inputs) -> int:
    """Return the bytes of the forward pass: each row is read once, each mean is written once."""
    means = inputs.upstream.numel()
    return means * (inputs.tokens.shape[-1] + 1) * inputs.table.element_size()


def _into_main_grad(table: Tensor, tokens: Tensor) -> Tensor:
    return bag_embedding(table, tokens, accumulate_into_main_grad=True)


def _gather(table: Tensor, tokens: Tensor) -> Tensor:
    return F.embedding(tokens.transpose(0, 1), table).float().mean(dim=2).to(table.dtype)


def _embedding_bag(table: Tensor, tokens: Tensor) -> Tensor:
    batch, length, bag_size = tokens.shape
    bags = tokens.transpose(0, 1).reshape(-1, bag_size)
    return F.embedding_bag(bags, table, mode="mean").view(length, batch, -1)


def _megatron(inputs: Inputs) -> Way:
    """Megatron's own embedding of all raw tokens, then the mean of each bag, then its transpose."""
    from tst_megatron.megatron import single_step

    room = single_step.plain_embedding(inputs.table)

    def way(table: Tensor, tokens: Tensor) -> Tensor:
        batch, length, bag_size = tokens.shape
        rows: Tensor = room(tokens.view(batch, length * bag_size))
        means = rows.view(batch, length, bag_size, -1).mean(dim=2)
        return means.transpose(0, 1).contiguous()

    return way


def _fbgemm() -> Way | None:
    """FBGEMM's dense table batched embedding, where it is installed."""
    module = import_if_there("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    if module is None:
        return None

    def way(table: Tensor, tokens: Tensor) -> Tensor:
        batch, length, bag_size = tokens.shape
        bags = module.DenseTableBatchedEmbeddingBagsCodegen(
            [table.shape], pooling_mode=module.PoolingMode.MEAN
        )
        bags.weights = torch.nn.Parameter(table.view(-1))
        offsets = torch.arange(0, tokens.numel() + 1, bag_size, device=tokens.device)
        pooled: Tensor = bags(tokens.transpose(0, 1).reshape(-1), offsets)
        return pooled.view(length, batch, -1)

    return way
