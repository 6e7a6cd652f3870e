"""The loss of bags against every other way to compute it: forward and backward from given logits.

The baselines are what there is without a kernel for several integer targets: K calls of a
cross-entropy for one, dense targets, one cross-entropy and a gather, the compiler, and the way of
the paper's co-author (normaliser once, K gathers, the fp32 softmax kept; rebuilt from its
description). None of them is in the product.

Shapes: N latent positions, V vocabulary, K slots per bag.
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

from tst_megatron.bench.comparing import Notes, Settings, compare_cases
from tst_megatron.bench.results import Result, contender_version
from tst_megatron.bench.timing import NOT_COMPILED, Contender, Timing
from tst_megatron.megatron.cpu.meter import Meter
from tst_megatron.model.loss import vocab_parallel_multi_hot_cross_entropy
from tst_megatron.system.packages import import_if_there

OURS = "one pass, gradient over the logits"
BAG_SIZES = (1, 4, 16)
CHECKED_ROWS = 16

Call = Callable[[Tensor, Tensor], Tensor]
"""(logits [N, V], targets [N]) -> losses of N positions."""


@dataclass(frozen=True, slots=True)
class Size:
    """One set of logits."""

    num_positions: int
    vocabulary: int
    dtype: torch.dtype


GPU_SIZES = (
    Size(16384, 151936, torch.bfloat16),
    Size(8192, 38016, torch.bfloat16),
    Size(2048, 19072, torch.bfloat16),
)
"""Two micro-batches of 10B-A1B, a quarter of its vocabulary, and a small one."""

CPU_SIZES = (Size(1024, 4096, torch.float32), Size(256, 32064, torch.float32))
"""The quickstart's, and a larger vocabulary."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What all ways are given."""

    logits_NV: Tensor
    stored_NV: Tensor
    """The same numbers, to restore logits that were overwritten."""
    targets_NK: Tensor
    upstream_N: Tensor

    @classmethod
    def draw(cls, size: Size, bag_size: int, *, device: torch.device, seed: int) -> Inputs:
        """Draw peaked logits, as a trained model has them, and targets of falling frequency."""
        generator = torch.Generator(device=device).manual_seed(seed)
        shape = (size.num_positions, size.vocabulary)
        logits = torch.randn(shape, generator=generator, device=device, dtype=size.dtype) * 2
        uniform = torch.rand((size.num_positions, bag_size), generator=generator, device=device)
        targets = (uniform**3 * size.vocabulary).long()
        upstream = torch.rand(size.num_positions, generator=generator, device=device) + 0.5
        return cls(logits.requires_grad_(), logits.detach().clone(), targets, upstream)

    def restore(self) -> None:
        """Write the logits anew and drop their gradient."""
        self.logits_NV.grad = None
        with torch.no_grad():
            self.logits_NV.copy_(self.stored_NV)

    def error(self, run: Callable[[], object]) -> float:
        """Relative error of some rows of the gradient against double precision."""
        self.restore()
        run()
        assert self.logits_NV.grad is not None
        rows = slice(0, CHECKED_ROWS)
        found = self.logits_NV.grad[rows].double()
        probability = self.stored_NV[rows].double().softmax(-1)
        targets = self.targets_NK[rows]
        share = torch.full_like(targets, 1.0 / targets.shape[1], dtype=torch.float64)
        wanted = probability.scatter_add(-1, targets, -share) * self.upstream_N[rows, None]
        return float((found - wanted).norm() / wanted.norm())


def compare(settings: Settings, *, sizes: Sequence[Size] | None = None) -> Result:
    """Time the loss of bags, and what else could compute it.

    Args:
        settings: how long, and on what.
        sizes: of the logits; by default those of the device.
    """
    meter = settings.meter()

    def cases() -> Iterator[tuple[str, list[Contender]]]:
        for size in sizes or (GPU_SIZES if meter.is_gpu else CPU_SIZES):
            for bag_size in BAG_SIZES:
                shape = f"{size.num_positions} positions x {size.vocabulary} tokens"
                inputs = Inputs.draw(size, bag_size, device=settings.device, seed=settings.seed)
                yield f"{shape}, K = {bag_size}", ways(inputs, meter)

    question = "Loss of bags from given logits, forward and backward"
    return compare_cases("loss", question, OURS, cases(), settings, notes_on=_notes)


def ways(inputs: Inputs, meter: Meter) -> list[Contender]:
    """Every way to compute the loss and its gradient that this machine has."""
    logits, bag_size = inputs.logits_NV, inputs.targets_NK.shape[1]
    num_bytes = 3 * logits.numel() * logits.element_size()
    ours = contender_version("tst-megatron")
    by_torch = contender_version("torch")
    found = [
        _way(inputs, OURS, ours, _ours(inputs, overwrites=True), num_bytes),
        _way(inputs, "one pass", ours, _ours(inputs, overwrites=False), num_bytes),
        _way(
            inputs,
            "compiled log-sum-exp less gathered mean",
            by_torch,
            _compiled(inputs) if meter.is_gpu else None,
            absent=NOT_COMPILED,
        ),
        _way(inputs, "co-author's: softmax kept in fp32", by_torch, _co_author(inputs)),
        _way(inputs, f"{bag_size} x F.cross_entropy", by_torch, _calls(inputs, _torch_call)),
        _way(inputs, "F.cross_entropy, dense targets", by_torch, _dense(inputs)),
        *_single_label_ways(inputs, on_gpu=meter.is_gpu),
    ]
    # The floor of any way: it reads the logits twice and writes them once.
    copy = torch.empty_like(inputs.stored_NV)
    found.append(
        Contender(
            name="copy of the logits, 1.5 times",
            version=by_torch,
            run=functools.partial(_copy, copy, inputs.stored_NV),
            num_bytes=num_bytes,
        )
    )
    return found


def _single_label_ways(inputs: Inputs, *, on_gpu: bool) -> list[Contender]:
    """K calls of the kernels for one label that others have, and one call with a gather."""
    bag_size = inputs.targets_NK.shape[1]
    megatron = contender_version("megatron-core")
    # Both need CUDA already when they are imported.
    engine = import_if_there("transformer_engine.pytorch.cross_entropy") if on_gpu else None
    liger = import_if_there("liger_kernel.transformers.functional") if on_gpu else None
    calls: dict[tuple[str, str], Call | None] = {
        ("Megatron, native fused", megatron): _megatron_call,
        ("Transformer Engine", contender_version("transformer-engine")): (
            functools.partial(_engine_call, engine) if engine else None
        ),
        ("Liger", contender_version("liger-kernel")): (
            functools.partial(_liger_call, liger) if liger else None
        ),
    }
    found = []
    for (name, version), call in calls.items():
        run = _calls(inputs, call) if call else None
        found.append(_way(inputs, f"{bag_size} x {name}", version, run))
        if bag_size > 1 and name == "Transformer Engine":
            gathered = _one_call_and_gather(inputs, call) if call else None
            found.append(_way(inputs, f"{name} and a gather", version, gathered))
    return found


def _way(
    inputs: Inputs,
    name: str,
    version: str,
    run: Callable[[], object] | None,
    num_bytes: int | None = None,
    *,
    absent: str = "not installed",
) -> Contender:
    return Contender(
        name=name,
        version=version,
        run=run,
        absent=absent,
        before=inputs.restore,
        num_bytes=num_bytes,
        error=functools.partial(inputs.error, run) if run else None,
    )


def _notes(timings: Sequence[Timing]) -> Notes:
    """How near the floor it is, and what was faster."""
    by_name = {timing.name: timing for timing in timings}
    ours, copy = by_name[OURS].spread, by_name["copy of the logits, 1.5 times"].spread
    notes: Notes = {}
    if ours and copy:
        notes["share of the bandwidth of a copy"] = round(copy.median / ours.median, 3)
    faster = [
        timing.name
        for timing in timings
        if timing.ratio and timing.ratio.median < 1 and not timing.name.startswith("copy")
    ]
    notes["faster"] = ", ".join(faster) or "none"
    return notes


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)
    half = len(source) // 2
    target[:half].copy_(source[:half])


def _ours(inputs: Inputs, *, overwrites: bool) -> Callable[[], object]:
    def run() -> None:
        loss = vocab_parallel_multi_hot_cross_entropy(
            inputs.logits_NV, inputs.targets_NK, may_overwrite_logits=overwrites
        )
        backward(loss, inputs.upstream_N)

    return run


def _compiled(inputs: Inputs) -> Callable[[], object]:
    @functools.partial(torch.compile, fullgraph=True)
    def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
        scores = logits.float()
        return scores.logsumexp(-1) - scores.gather(-1, targets).mean(-1)

    return lambda: backward(loss_of(inputs.logits_NV, inputs.targets_NK), inputs.upstream_N)


def _dense(inputs: Inputs) -> Callable[[], object]:
    def run() -> None:
        targets = inputs.targets_NK
        share = torch.ones_like(targets, dtype=inputs.logits_NV.dtype) / targets.shape[1]
        dense = torch.zeros_like(inputs.stored_NV).scatter_add_(-1, targets, share)
        loss = F.cross_entropy(inputs.logits_NV, dense, reduction="none")
        backward(loss, inputs.upstream_N.to(loss.dtype))

    return run


class _CoAuthor(torch.autograd.Function):
    """Normaliser once, K gathers, the fp32 softmax kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_NK: Tensor) -> Tensor:
        scores = logits_NV.float() - logits_NV.float().amax(-1, keepdim=True)
        target_scores = scores.gather(-1, targets_NK).mean(-1)
        softmax = scores.exp_()
        total = softmax.sum(-1, keepdim=True)
        softmax.div_(total)
        ctx.save_for_backward(softmax, targets_NK)
        ctx.dtype = logits_NV.dtype
        return total.squeeze(-1).log() - target_scores

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        softmax, targets_NK = ctx.saved_tensors
        share = torch.full_like(targets_NK, -1.0 / targets_NK.shape[1], dtype=torch.float32)
        softmax.scatter_add_(-1, targets_NK, share)
        return softmax.mul_(grad_N.unsqueeze(-1)).to(ctx.dtype), None


def _co_author(inputs: Inputs) -> Callable[[], object]:
    def run() -> None:
        loss = _CoAuthor.apply(inputs.logits_NV, inputs.targets_NK)  # type: ignore[no-untyped-call]
        backward(loss, inputs.upstream_N)

    return run


def _calls(inputs: Inputs, call: Call) -> Callable[[], object]:
    """One call and one backward pass for each slot: all at once would keep K softmaxes."""

    def run() -> None:
        upstream = inputs.upstream_N / inputs.targets_NK.shape[1]
        for target_N in inputs.targets_NK.t().contiguous():
            loss = call(inputs.logits_NV, target_N)
            backward(loss, upstream.to(loss.dtype).view_as(loss))

    return run


def _one_call_and_gather(inputs: Inputs, call: Call) -> Callable[[], object]:
    """The log-sum-exp from one call, the other targets by a gather."""

    def run() -> None:
        first = inputs.targets_NK[:, 0].contiguous()
        picked = inputs.logits_NV.gather(-1, inputs.targets_NK).float()
        loss = call(inputs.logits_NV, first).view(-1) + picked[:, 0] - picked.mean(-1)
        backward(loss, inputs.upstream_N)

    return run


def _torch_call(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV, target_N, reduction="none")


def _megatron_call(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    from tst_megatron.megatron import single_step

    # It works in the memory of fp32 logits (Megatron-LM pull request 1594), which the next of K
    # calls reads; of bf16 ones it makes its own fp32 copy.
    if logits_NV.dtype == torch.float32:
        logits_NV = logits_NV.clone()
    return single_step.single_label_cross_entropy(logits_NV, target_N)


def _engine_call(engine: Any, logits_NV: Tensor, target_N: Tensor) -> Tensor:
    loss: Tensor = engine.parallel_cross_entropy(logits_NV.unsqueeze(0), target_N.unsqueeze(0))
    return loss


def _liger_call(liger: Any, logits_NV: Tensor, target_N: Tensor) -> Tensor:
    loss: Tensor = liger.liger_cross_entropy(logits_NV, target_N, reduction="none")
    return loss
