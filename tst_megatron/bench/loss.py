"""Time the loss of bags against every other way to compute it, forward and backward.

Each case gives all ways the same logits; ``loss_ways.py`` has the ways.

Shapes: N latent positions, V vocabulary, K slots per bag.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tst_megatron.bench import loss_ways
from tst_megatron.bench.comparing import Notes, Settings, compare_cases
from tst_megatron.bench.loss_ways import Call, Inputs, Size
from tst_megatron.bench.results import Result, contender_version
from tst_megatron.bench.timing import NOT_COMPILED, Contender, Timing
from tst_megatron.megatron.cpu.meter import Meter
from tst_megatron.system.packages import import_if_there

OURS = "one pass, gradient over the logits"
BAG_SIZES = (1, 4, 16)

GPU_SIZES = (
    Size(16384, 151936, torch.bfloat16),
    Size(8192, 38016, torch.bfloat16),
    Size(2048, 19072, torch.bfloat16),
)
"""Two micro-batches of 10B-A1B, a quarter of its vocabulary, and a small one."""

CPU_SIZES = (Size(1024, 4096, torch.float32), Size(256, 32064, torch.float32))
"""The quickstart's, and a larger vocabulary."""


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
    """List every way to compute the loss and its gradient that this machine has."""
    logits, bag_size = inputs.logits_NV, inputs.targets_NK.shape[1]
    num_bytes = 3 * logits.numel() * logits.element_size()
    ours = contender_version("tst-megatron")
    by_torch = contender_version("torch")
    found = [
        _way(inputs, OURS, ours, loss_ways.ours(inputs, overwrites=True), num_bytes),
        _way(inputs, "one pass", ours, loss_ways.ours(inputs, overwrites=False), num_bytes),
        _way(
            inputs,
            "compiled log-sum-exp less gathered mean",
            by_torch,
            loss_ways.compiled(inputs) if meter.is_gpu else None,
            absent=NOT_COMPILED,
        ),
        _way(inputs, "co-author's: softmax kept in fp32", by_torch, loss_ways.co_author(inputs)),
        _way(
            inputs,
            f"{bag_size} x F.cross_entropy",
            by_torch,
            loss_ways.calls(inputs, loss_ways.torch_call),
        ),
        _way(inputs, "F.cross_entropy, dense targets", by_torch, loss_ways.dense(inputs)),
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
        ("Megatron, native fused", megatron): loss_ways.megatron_call,
        ("Transformer Engine", contender_version("transformer-engine")): (
            functools.partial(loss_ways.engine_call, engine) if engine else None
        ),
        ("Liger", contender_version("liger-kernel")): (
            functools.partial(loss_ways.liger_call, liger) if liger else None
        ),
    }
    found = []
    for (name, version), call in calls.items():
        run = loss_ways.calls(inputs, call) if call else None
        found.append(_way(inputs, f"{bag_size} x {name}", version, run))
        if bag_size > 1 and name == "Transformer Engine":
            gathered = loss_ways.one_call_and_gather(inputs, call) if call else None
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
    """Note how near this project's time is to a copy's, and what was faster."""
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
