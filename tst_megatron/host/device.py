"""The device that a command which runs a model by itself takes."""

from __future__ import annotations

import re

from tst_megatron.host import cpu


def find(device: str | None) -> str:
    """The device that was asked for, or a GPU if there is one.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``; None leaves the choice to the machine.

    Raises:
        ValueError: another name, or a GPU where torch sees none.
    """
    if device is None:
        return "cpu" if cpu.is_needed() else "cuda"
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise ValueError(f"--device {device} is none of cpu, cuda, cuda:N")
    if device != "cpu" and cpu.is_needed():
        raise ValueError(f"--device {device}: torch sees no GPU here. Use cpu")
    return device
