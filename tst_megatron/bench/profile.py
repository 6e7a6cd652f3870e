"""Profile a step kernel by kernel, and show what bags change in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

SHOWN = 15
STEPS = 3


def kernel_milliseconds(run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Milliseconds of each kernel, or on a CPU of each operator, in the mean of a few runs."""
    is_gpu = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU, activity.CUDA] if is_gpu else [activity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(STEPS):
            run()
        if is_gpu:
            torch.accelerator.synchronize(device)
    found: dict[str, float] = {}
    for event in profile.key_averages():
        spent = event.self_device_time_total if is_gpu else event.self_cpu_time_total
        if spent:
            found[event.key] = found.get(event.key, 0.0) + spent / 1e3 / STEPS
    return found


def differences(profiles: Mapping[str, Mapping[str, float]], baseline: str) -> list[dict[str, Any]]:
    """Kernels by how much the last profile spends more or less in them than the baseline.

    Args:
        profiles: by contender, milliseconds by kernel.
        baseline: one of them.
    """
    *_, last = profiles
    kernels = {kernel for profile in profiles.values() for kernel in profile}

    def changed(kernel: str) -> float:
        return profiles[last].get(kernel, 0.0) - profiles[baseline].get(kernel, 0.0)

    ordered = sorted(kernels, key=lambda kernel: (-abs(changed(kernel)), kernel))
    return [
        {"kernel": kernel, **{name: profile.get(kernel, 0.0) for name, profile in profiles.items()}}
        for kernel in ordered
    ]


def table(rows: list[dict[str, Any]], baseline: str) -> str:
    """The largest differences as Markdown, and the sums over all kernels."""
    names = [name for name in rows[0] if name != "kernel"]
    head = ["kernel, ms of a step", *names, f"{names[-1]} less {baseline}"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    total = {"kernel": "all", **{name: sum(row[name] for row in rows) for name in names}}
    for row in [*rows[:SHOWN], total]:
        # Names of templates are paragraphs, and a bar would end the cell.
        kernel = row["kernel"][:90].replace("|", "/")
        cells = [f"{row[name]:.3f}" for name in names]
        lines.append(
            f"| {kernel} | " + " | ".join(cells) + f" | {row[names[-1]] - row[baseline]:+.3f} |"
        )
    return "\n".join(lines) + "\n"
