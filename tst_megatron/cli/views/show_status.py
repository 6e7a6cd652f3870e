"""Show how runs stand: one run as a sheet, several as a table, each as keys for a script."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from tst_megatron.cli.views.status import RunStatus
from tst_megatron.training.console import duration
from tst_megatron.training.report.metrics_file import MFU, SAID
from tst_megatron.training.report.show_beside import lines_of

STYLES = {"running": "green", "finished": "green", "failed": "red", "no sign of life": "red"}

NOTHING = "none"


def as_keys(status: RunStatus) -> dict[str, Any]:
    """Return the facts for JSON, under the names of ``metrics.jsonl`` where it has them too."""
    facts = _with_spaces(dataclasses.asdict(status))
    if status.beside_plan is not None:
        rows = [_with_spaces(row) for row in facts["beside plan"]["rows"]]
        facts["beside plan"] = {"verdict": status.beside_plan.verdict, "rows": rows}
    facts["TFLOP/s per device"] = facts.pop("teraflops per device")
    facts[MFU] = facts.pop("mfu")
    # JSON knows no NaN and no infinity.
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in facts.items()
    }


def _with_spaces(facts: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", " "): value for name, value in facts.items()}


# --- one run -------------------------------------------------------------------------------------


def sheet(status: RunStatus) -> Table:
    """Return one run, a line for each fact."""
    grid = Table.grid(padding=(0, 2))
    for name, text in _lines(status):
        style = STYLES.get(status.state, "") if name == "state" else ""
        grid.add_row(Text(name, style="dim"), Text(text, style=style))
    return grid


def _lines(status: RunStatus) -> list[tuple[str, str]]:
    state = f"{status.state}{_joint(status)}{status.reason}"
    share = status.step / status.num_steps
    lines = [
        ("run", status.run),
        *([("trunk", f"{_branch(status)}, in {status.trunk}")] if status.trunk else []),
        ("state", state),
        ("step", f"{status.step:,} of {status.num_steps:,} ({share:.1%})"),
        ("phase", _phase(status)),
        ("raw tokens", f"{_short(status.raw_tokens)} of {_short(status.raw_tokens_of_all_steps)}"),
        (SAID.get(status.loss_name or "", "loss"), _nats(status.loss_nats)),
        ("validation loss", _nats(status.validation_loss_nats, step=status.validation_step)),
        ("speed", _speed(status)),
        ("step time", f"{status.step_seconds:.3f} s" if status.step_seconds else NOTHING),
        ("time left", _time_left(status)),
        (
            "last step",
            NOTHING
            if status.seconds_since_last_step is None
            else f"{duration(status.seconds_since_last_step)} ago",
        ),
        ("checkpoint", _checkpoint(status)),
    ]
    if status.beside_plan is not None:
        lines += lines_of(status.beside_plan)
    if status.num_starts:
        jobs = "job" if len(status.jobs) == 1 else "jobs"
        requeues = _count(status.num_requeues, "requeue")
        starts = f"{status.num_starts} ({jobs} {', '.join(status.jobs)}), {requeues}"
        links = _count(status.links_without_progress, "link")
        lines += [("starts", starts), ("without progress", f"{links} in a row")]
    if status.has_stop_file:
        lines.append(("stop file", "STOP is there"))
    lines += [("damaged", said) for said in status.damaged]
    return lines


def _branch(status: RunStatus) -> str:
    return f"branch of {Path(status.trunk or '').name} at step {status.steps_of_trunk:,}"


def _joint(status: RunStatus) -> str:
    # "no sign of life for 3 h" reads on; all others have a reason behind a colon.
    return " " if status.state == "no sign of life" else ": " if status.reason else ""


def _phase(status: RunStatus) -> str:
    now = f"{status.phase}, bags of {status.bag_size}" if status.bag_size > 1 else status.phase
    if len(status.bag_sizes) == 1:
        now = "training"
    if status.steps_to_next_phase is None or status.next_bag_size is None:
        return now
    following = f"bags of {status.next_bag_size}" if status.next_bag_size > 1 else "recovery"
    if not status.steps_to_next_phase:
        return f"{now}; {following} with the next step"
    return f"{now}; {following} in {_count(status.steps_to_next_phase, 'step')}"


def _speed(status: RunStatus) -> str:
    parts = []
    if status.raw_tokens_per_second is not None:
        parts.append(f"{_short(status.raw_tokens_per_second)} raw tokens/s")
    if status.teraflops_per_device is not None:
        parts.append(f"{_flops(status.teraflops_per_device)} TFLOP/s per device")
    if status.mfu is not None:
        parts.append(f"MFU {status.mfu:.1%}")
    return ", ".join(parts) or NOTHING


def _time_left(status: RunStatus) -> str:
    if status.seconds_left is None:
        return "unknown"
    left = duration(status.seconds_left)
    if status.estimated_end_utc is None:
        return left
    day, _, hour = status.estimated_end_utc.partition("T")
    return f"{left}; ends about {day} {hour[:5]} UTC"


def _checkpoint(status: RunStatus) -> str:
    if status.checkpoint_step is None:
        return NOTHING
    missing = status.steps_since_checkpoint
    verb = "is" if missing == 1 else "are"
    behind = f"; {_count(missing, 'step')} {verb} not in it yet" if missing else ""
    return f"step {status.checkpoint_step:,}{behind}"


# --- several runs --------------------------------------------------------------------------------


def table(found: Sequence[RunStatus]) -> Table:
    """Return several runs, a row each."""
    rows = Table("run", "state", box=None, padding=(0, 2, 0, 0))
    for name in ("step", "phase", "raw tokens", "loss", "validation", "tokens/s", "TFLOP/s"):
        rows.add_column(name, justify="right")
    for name in ("step time", "left", "last step", "unsaved", "starts"):
        rows.add_column(name, justify="right")
    rows.add_column("reason")
    for each in found:
        age, left = each.seconds_since_last_step, each.seconds_left
        speed, flops = each.raw_tokens_per_second, each.teraflops_per_device
        cells = (
            f"{each.step:,} of {each.num_steps:,}",
            _phase_in_a_table(each),
            _short(each.raw_tokens),
            "" if each.loss_nats is None else f"{SAID[each.loss_name or '']} {each.loss_nats:.4f}",
            "" if each.validation_loss_nats is None else f"{each.validation_loss_nats:.4f}",
            "" if speed is None else _short(speed),
            "" if flops is None else _flops(flops),
            "" if each.step_seconds is None else f"{each.step_seconds:.3f} s",
            "" if left is None else duration(left),
            "" if age is None else duration(age),
            f"{each.steps_since_checkpoint:,}",
            str(each.num_starts or ""),
            "; ".join(
                [
                    *([_branch(each)] if each.trunk else []),
                    each.reason,
                    *(f"damaged: {said}" for said in each.damaged),
                ]
            ),
        )
        state = Text(each.state, style=STYLES.get(each.state, ""))
        rows.add_row(Text(each.run), state, *map(Text, cells))
    return rows


def _phase_in_a_table(status: RunStatus) -> str:
    """Name the bags that the run has or had, also in recovery or at its end."""
    bags = [bag_size for bag_size in status.bag_sizes if bag_size > 1]
    if not bags:
        return "training"
    if status.bag_size > 1:
        return f"bags of {status.bag_size}"
    return f"recovery after bags of {', '.join(map(str, bags))}"


# --- numbers in words ----------------------------------------------------------------------------


def _short(number: float) -> str:
    """Return a number in thousands, millions, billions or trillions, such as ``1.50M``."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f}{letter}"
    return f"{number:.0f}"


def _nats(loss: float | None, *, step: int | None = None) -> str:
    if loss is None:
        return NOTHING
    return f"{loss:.4f} nats" + ("" if step is None else f" at step {step:,}")


def _flops(number: float) -> str:
    """Return TFLOP/s with a digit after the point, or three digits below 10, as on a CPU."""
    return f"{number:,.1f}" if number >= 10 else f"{number:.3g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
