"""Define what a plan's GPU hours are made of: the GPU, its price, and the MFU to expect."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tst_megatron.plan.published.read import published
from tst_megatron.plan.published.records import Anchor, Published
from tst_megatron.plan.wishes import Hardware

DEFAULT_GPU, DEFAULT_NUM_GPUS = "b200", 64
"""Those of the paper's larger runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The GPUs of a plan."""

    name: str
    num_gpus: int
    peak_flops: float
    """Of one GPU, dense, in BF16, each second."""
    mfu: float
    mfu_low: float
    mfu_high: float
    mfu_basis: str
    """Where the MFU is from, in a phrase."""
    price: float
    """Dollars per GPU hour."""
    price_low: float
    price_high: float
    price_basis: str
    sources: tuple[str, ...]

    def hours(self, flops: float, mfu: float | None = None) -> float:
        """Return the GPU hours of some FLOPs."""
        return flops / (self.peak_flops * (mfu or self.mfu)) / 3600

    def days(self, flops: float) -> float:
        """Return the days of some FLOPs on all GPUs."""
        return self.hours(flops) / self.num_gpus / 24

    def cost(self, flops: float) -> float:
        """Return the dollars of some FLOPs."""
        return self.hours(flops) * self.price


def machine_for(known: Published, wanted: Hardware, *, active: int, is_moe: bool) -> Machine:
    """Put together what was given and what is published.

    Args:
        known: what is published.
        wanted: what was given.
        active: parameters that compute one position.
        is_moe: the model is a mixture of experts.

    Raises:
        ValueError: a value cannot be, or a GPU or its price is not known.
    """
    check_hardware(known, wanted)
    name = _name(wanted)
    mfu, price = wanted.mfu, wanted.price
    facts = known.gpus[name]
    sources = {facts.source}
    if mfu is None:
        mfu, low, high, basis, sources_of_mfu = _usual_mfu(known, active, is_moe)
        sources |= set(sources_of_mfu)
    else:
        low, high, basis = mfu, mfu, "given"
    is_given = price is not None
    price = facts.price if price is None else price
    assert price is not None
    if not is_given:
        sources.add("prices")
    return Machine(
        name=name,
        num_gpus=wanted.num_gpus or DEFAULT_NUM_GPUS,
        peak_flops=facts.peak_teraflops * 1e12,
        mfu=mfu,
        mfu_low=low,
        mfu_high=high,
        mfu_basis=basis,
        price=price,
        price_low=price if is_given else facts.price_low or price,
        price_high=price if is_given else facts.price_high or price,
        price_basis="given" if is_given else f"of {known.prices_of}",
        sources=tuple(key for key in known.sources if key in sources),
    )


def peak_teraflops(device: str) -> float | None:
    """Return the dense BF16 peak of a device in TFLOP/s; None where it is not known.

    Args:
        device: its name, as its driver gives it.
    """
    name = gpu_named(device)
    return None if name is None else published().gpus[name].peak_teraflops


def gpu_named(device: str) -> str | None:
    """Return the name of a kind of GPU for ``--gpu``; None where it is not known.

    Args:
        device: its name, as its driver gives it.
    """
    # One name may be a part of another, and then the longer one is meant.
    gpus = sorted(published().gpus.items(), key=lambda gpu: len(gpu[1].device), reverse=True)
    return next((name for name, gpu in gpus if gpu.device.lower() in device.lower()), None)


def _name(wanted: Hardware) -> str:
    return (wanted.gpu or DEFAULT_GPU).lower()


def check_hardware(known: Published, wanted: Hardware) -> None:
    """Check the GPUs that were asked for.

    Raises:
        ValueError: values cannot be, or a GPU or its price is not known; a line for each.
    """
    name, mfu, price = _name(wanted), wanted.mfu, wanted.price
    problems = []
    if name not in known.gpus:
        problems.append(
            f"--gpu: {name} is none of {', '.join(known.gpus)}. For another GPU give the one of "
            "these that is nearest in peak, with --mfu and --price"
        )
    elif price is None and known.gpus[name].price is None:
        problems.append(
            f"--price: no price of a {name} is known here. Give one in dollars per GPU hour"
        )
    if mfu is not None and not 0 < mfu <= 1:
        problems.append(
            f"--mfu: {mfu:g} is no fraction above 0 and up to 1. Write 13% as --mfu 0.13"
        )
    if price is not None and not 0 <= price < math.inf:
        problems.append(f"--price: {price:g} is no price. Give dollars per GPU hour, 0 or more")
    if wanted.num_gpus is not None and wanted.num_gpus < 1:
        problems.append(f"--gpus: {wanted.num_gpus} is no number of GPUs. Give 1 or more")
    if problems:
        raise ValueError("\n".join(problems))


def _usual_mfu(
    known: Published, active: int, is_moe: bool
) -> tuple[float, float, float, str, tuple[str, ...]]:
    """Return an MFU, its range, its reason and its sources."""
    if is_moe:
        band = known.moe_mfu
        basis = "mixtures of experts with few active parameters and learned routing, on B200"
        return band.mfu, band.low, band.high, basis, (band.source, "paper")
    dense = [anchor for anchor in known.anchors if anchor.kind == "dense"]

    def distance(anchor: Anchor) -> float:
        return abs(math.log(active / (anchor.active or 1)))

    nearest = min(dense, key=distance)
    values = [anchor.mfu for anchor in dense]
    basis = f"of {nearest.name}, the nearest dense run; range of all of them"
    return nearest.mfu, min(values), max(values), basis, (nearest.source,)
