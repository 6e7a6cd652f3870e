"""Write the tables of docs/speed.md that are calculated from the kernels' machine code.

Run: uv run python tools/update_roofline.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from update_readme import replaced

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "speed.md"
ARCHITECTURES = {90: "Hopper", 100: "Blackwell"}
KERNELS = ("statistics bf16 K=16 uniform", "gradient bf16 K=16 uniform", "mean bf16 K=16")

# CUDA C++ programming guide, technical specifications by compute capability; the same for both.
REGISTERS, WARPS, BLOCKS = 65_536, 64, 32
WARP = 32
# Registers are given out for a warp in units of 256.
UNIT = 256
WIDE = 16
"""Bytes that a thread loads or stores at once."""

# Bandwidth of NVIDIA's data sheets in bytes a second, multiprocessors, highest clock in Hz.
GPUS = {
    "H100 SXM": (90, 3.35e12, 132, 1.98e9),
    "H200": (90, 4.8e12, 132, 1.98e9),
    "B200": (100, 8.0e12, 148, 1.965e9),
}
EXPONENTIALS = 16
"""Exponentials of a multiprocessor in a clock cycle (programming guide, arithmetic throughput)."""
POSITIONS, VOCABULARY = 16_384, 151_936


def facts_of(architecture: int) -> dict[str, dict[str, Any]]:
    """What ``kernel_facts.py`` prints, by kernel."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("kernel_facts.py")
    done = subprocess.run(
        [sys.executable, str(script), str(architecture)],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def resident_warps(facts: Mapping[str, Any]) -> int:
    """Warps that a multiprocessor holds at a time, by registers; shared memory is no limit here."""
    of_a_warp = -(-facts["registers"] * WARP // UNIT) * UNIT
    by_registers = REGISTERS // of_a_warp // facts["warps"]
    return min(by_registers, WARPS // facts["warps"], BLOCKS) * facts["warps"]


def bytes_in_a_pass(facts: Mapping[str, Any], kind: str) -> int:
    """Bytes that a program loads (``LDG``) or stores (``STG``) for ``block`` numbers."""
    return facts["instructions"].get(f"{kind}.E.128", 0) * WIDE * facts["warps"] * WARP


def kernel_rows(architecture: int, facts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Rows of the first table."""
    for name in KERNELS:
        each = facts[name]
        warps = resident_warps(each)
        read, written = (bytes_in_a_pass(each, kind) for kind in ("LDG", "STG"))
        cells = (
            f"`{name.partition(' ')[0]}`",
            ARCHITECTURES[architecture],
            each["registers"],
            each["spilled bytes"],
            f"{warps} of {WARPS}",
            f"{read / each['block']:g}",
            f"{written / each['block']:g}",
            # A mean does not wait for all its rows at once: they would not fit into its registers.
            "" if name.startswith("mean") else f"{read * warps // each['warps'] // 1024} KiB",
        )
        yield f"| {' | '.join(map(str, cells))} |"


def time_rows(facts: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Rows of the second table."""
    num_logits = POSITIONS * VOCABULARY
    for gpu, (architecture, bandwidth, num_processors, clock) in GPUS.items():
        cells = [gpu]
        for name in KERNELS[:2]:
            each = facts[architecture][name]
            moved = sum(bytes_in_a_pass(each, kind) for kind in ("LDG", "STG")) / each["block"]
            cells.append(f"{1e3 * num_logits * moved / bandwidth:.2f}")
        cells.append(f"{1e3 * num_logits / (EXPONENTIALS * num_processors * clock):.2f}")
        yield f"| {' | '.join(cells)} |"


def tables(facts: Mapping[int, Mapping[str, Mapping[str, Any]]]) -> str:
    """Both tables."""
    head = (
        "| kernel | for | registers | spilled bytes | warps resident | bytes read | bytes written "
    )
    head += "| loads in flight |\n|---|---|---|---|---|---|---|---|"
    times = "| GPU | `statistics`, ms | `gradient`, ms | exponentials of either, ms |"
    times += "\n|---|---|---|---|"
    rows = [row for each in ARCHITECTURES for row in kernel_rows(each, facts[each])]
    return "\n".join([head, *rows, "", times, *time_rows(facts)]) + "\n"


def main() -> None:
    facts = {architecture: facts_of(architecture) for architecture in ARCHITECTURES}
    document = GUIDE.read_text(encoding="utf-8")
    GUIDE.write_text(replaced(document, tables(facts), by=Path(__file__).name), encoding="utf-8")


if __name__ == "__main__":
    main()
