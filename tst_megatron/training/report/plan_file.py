"""Write and read ``plan.json``: the plan of a run, in its folder.

``tst-megatron plan --run-folder`` writes it. Where nobody did, the first rank makes one of what it
has counted, if the kind of GPU and its price are known. It is a record for readers: no start
depends on it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tst_megatron.system.files import write_beside
from tst_megatron.system.records import Damaged, Kinds, block_of, read_json

PLAN = "plan.json"
"""In a run folder; one without it has no plan."""

_NUMBER = (int, float)
_COST: Kinds = {
    "gpu": str,
    "gpus": int,
    "peak flops per gpu": _NUMBER,
    "mfu": _NUMBER,
    "mfu range": list,
    "dollars per gpu hour": _NUMBER,
    "this run": dict,
}
_ARM: Kinds = {
    "name": str,
    "steps": int,
    "flops": _NUMBER,
    "gpu hours": _NUMBER,
    "raw tokens by phase": list,
}
_PHASE: Kinds = {"bag size": int, "steps": int, "raw tokens": _NUMBER}


def write_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Write a plan's keys, replacing what is there.

    Raises:
        OSError: it cannot be written.
    """
    write_beside(path, json.dumps(plan, indent=2, allow_nan=False) + "\n")


def read_plan(path: Path) -> dict[str, Any] | None:
    """Read a run's ``plan.json``; None if there is none.

    Raises:
        Damaged: it cannot be read, or lacks what a run is compared with.
    """
    plan = read_json(path, {"cost": dict})
    if plan is None:
        return None
    cost = _block(plan["cost"], _COST)
    if len(cost["mfu range"]) != 2 or not all(map(_is_above_0, cost["mfu range"])):
        raise Damaged("says no 'mfu range' that fits")
    for phase in _block(cost["this run"], _ARM)["raw tokens by phase"]:
        _block(phase, _PHASE)
    return plan


def _block(value: Any, kinds: Kinds) -> dict[str, Any]:
    """Return a block whose numbers are all above 0, but for a price."""
    block = block_of(value, kinds)
    for key in kinds:
        is_number = isinstance(block[key], int | float) and key != "dollars per gpu hour"
        if is_number and not _is_above_0(block[key]):
            raise Damaged(f"says no {key!r} that fits")
    return block


def _is_above_0(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < sys.float_info.max
