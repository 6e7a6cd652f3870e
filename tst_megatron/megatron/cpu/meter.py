"""Measure time and memory of what runs on a device."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch


class Meter:
    """Measures what runs on one device.

    On a GPU the time is that between two events on the stream, so that the work which the processor
    does ahead is not counted. The L2 cache is overwritten before each run, since small inputs would
    still be in it.
    """

    def __init__(self, device: torch.device) -> None:
        """Measure on this device."""
        self.device = device
        self.is_gpu = device.type == "cuda"
        self._flush: torch.Tensor | None = None
        if self.is_gpu:
            l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(2 * l2_bytes, dtype=torch.int8, device=device)

    def seconds(self, run: Callable[[], object]) -> float:
        """Return the seconds that a run takes, until the device has finished it."""
        if self._flush is None:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self._flush.zero_()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def peak_bytes(self, run: Callable[[], object]) -> tuple[int, int] | None:
        """Return the peak memory of a run: (in all, above that before the run); None on a CPU.

        A processor's memory has no counter that can be reset.
        """
        if not self.is_gpu:
            return None
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device)
        return peak, peak - before

    def free(self) -> None:
        """Free the memory that a failed run has left."""
        if self.is_gpu:
            torch.cuda.empty_cache()

    def facts(self) -> dict[str, str]:
        """Describe the device: name, cores or memory, and of a GPU its driver and clocks."""
        if not self.is_gpu:
            # The cores that this process may use: in a container these are not all.
            cores = len(os.sched_getaffinity(0))
            return {
                "name": f"CPU, {cores} cores",
                "processor": _processor(),
                "threads": str(torch.get_num_threads()),
            }
        properties = torch.cuda.get_device_properties(self.device)
        facts = {
            "name": properties.name,
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": str(torch.version.cuda),
        }
        return {**facts, **_nvidia_smi()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _nvidia_smi() -> dict[str, str]:
    fields = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")
    if not shutil.which("nvidia-smi"):
        return {}
    asked = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = asked.stdout.splitlines()
    if asked.returncode or not lines:
        return {}
    return dict(zip(fields, (value.strip() for value in lines[0].split(",")), strict=False))
