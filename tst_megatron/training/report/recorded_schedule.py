"""Read from ``resolved.yaml`` what a run is, and the schedule that its steps follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tst_megatron.schedule import Schedule, resolve_phases
from tst_megatron.system.records import read_yaml


def recorded_schedule(resolved: Path) -> tuple[Schedule, dict[str, Any]]:
    """Return the schedule of a run, and everything that its ``resolved.yaml`` says.

    Args:
        resolved: the file, in the run's folder.

    Raises:
        ValueError: it says no schedule; the message names the run.
    """
    try:
        record = read_yaml(resolved) or {}
        sides = record.get("tst") or {}
        schedule = Schedule(
            phases=resolve_phases(
                [(bag_size, num_steps) for bag_size, num_steps in record["phases"]],
                num_steps=sum(num_steps for _, num_steps in record["phases"]),
                inputs=sides.get("inputs", "bags"),
                targets=sides.get("targets", "bags"),
            ),
            num_latent_positions=int(record["seq-length"]),
            global_batch_size=int(record["global-batch-size"]),
        )
    except Exception as error:
        # Damaged values raise whatever they happen to mean.
        raise ValueError(
            f"{resolved.parent}: {resolved.name} says no schedule ({error})"
        ) from error
    return schedule, record
