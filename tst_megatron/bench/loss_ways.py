"""Compute the loss of bags in every known way: this project's and those it is compared with.

The other ways are what there is without a kernel for several integer targets: K calls of a
cross-entropy for one target, dense targets, one cross-entropy and a gather, the compiler, and the
way of the paper's co-author (normaliser once, K gathers, the fp32 softmax kept; rebuilt from its
description). The product has none of them.

Shapes: N latent positions, V vocabulary, K slots per bag.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import backward

from tst_megatron.model.loss import vocab_parallel_multi_hot_cross_entropy

CHECKED_ROWS = 16

Call = Callable[[Tensor, Tensor], Tensor]
"""(logits [N, V], targets [N]) -> losses of N positions."""


@dataclass(frozen=True, slots=True)
class Size:
    """One set of logits."""

    num_positions: int
    vocabulary: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Inputs:
    """Input that all ways share."""

    logits_NV: Tensor
    stored_NV: Tensor
    """A copy, to restore logits that were overwritten."""
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
        """Restore the logits and drop their gradient."""
        self.logits_NV.grad = None
        with torch.no_grad():
            self.logits_NV.copy_(self.stored_NV)

    def error(self, run: Callable[[], object]) -> float:
        """Return the relative error of some rows of the gradient against double precision."""
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


def ours(inputs: Inputs, *, overwrites: bool) -> Callable[[], object]:
    """This project's loss."""

    def run() -> None:
        loss = vocab_parallel_multi_hot_cross_entropy(
            inputs.logits_NV, inputs.targets_NK, may_overwrite_logits=overwrites
        )
        backward(loss, inputs.upstream_N)

    return run


def compiled(inputs: Inputs) -> Callable[[], object]:
    """The plain formula, compiled by torch."""

    @functools.partial(torch.compile, fullgraph=True)
    def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
        scores = logits.float()
        return scores.logsumexp(-1) - scores.gather(-1, targets).mean(-1)

    return lambda: backward(loss_of(inputs.logits_NV, inputs.targets_NK), inputs.upstream_N)


def dense(inputs: Inputs) -> Callable[[], object]:
    """One cross-entropy with dense targets."""

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


def co_author(inputs: Inputs) -> Callable[[], object]:
    """The way of the paper's co-author."""

    def run() -> None:
        loss = _CoAuthor.apply(inputs.logits_NV, inputs.targets_NK)  # type: ignore[no-untyped-call]
        backward(loss, inputs.upstream_N)

    return run


def calls(inputs: Inputs, call: Call) -> Callable[[], object]:
    """One call and one backward pass for each slot: all at once would keep K softmaxes."""

    def run() -> None:
        upstream = inputs.upstream_N / inputs.targets_NK.shape[1]
        for target_N in inputs.targets_NK.t().contiguous():
            loss = call(inputs.logits_NV, target_N)
            backward(loss, upstream.to(loss.dtype).view_as(loss))

    return run


def one_call_and_gather(inputs: Inputs, call: Call) -> Callable[[], object]:
    """The log-sum-exp from one call, the other targets by a gather."""

    def run() -> None:
        first = inputs.targets_NK[:, 0].contiguous()
        picked = inputs.logits_NV.gather(-1, inputs.targets_NK).float()
        loss = call(inputs.logits_NV, first).view(-1) + picked[:, 0] - picked.mean(-1)
        backward(loss, inputs.upstream_N)

    return run


def torch_call(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Torch's cross-entropy for one label."""
    return F.cross_entropy(logits_NV, target_N, reduction="none")


def megatron_call(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Megatron's native fused cross-entropy for one label."""
    from tst_megatron.megatron import single_step

    # It works in the memory of fp32 logits (Megatron-LM pull request 1594), which the next of K
    # calls reads; of bf16 ones it makes its own fp32 copy.
    if logits_NV.dtype == torch.float32:
        logits_NV = logits_NV.clone()
    return single_step.single_label_cross_entropy(logits_NV, target_N)


def engine_call(engine: Any, logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Transformer Engine's cross-entropy for one label."""
    loss: Tensor = engine.parallel_cross_entropy(logits_NV.unsqueeze(0), target_N.unsqueeze(0))
    return loss


def liger_call(liger: Any, logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Liger's cross-entropy for one label."""
    loss: Tensor = liger.liger_cross_entropy(logits_NV, target_N, reduction="none")
    return loss
