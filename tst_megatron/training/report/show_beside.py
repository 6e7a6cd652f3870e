"""Say in words how a run stands beside its plan."""

from __future__ import annotations

from tst_megatron.plan.amounts import dollars, num_bytes, short
from tst_megatron.training.console import duration
from tst_megatron.training.report.beside_plan import Beside, Row


def lines_of(beside: Beside) -> list[tuple[str, str]]:
    """Return names and texts: the verdict first, then a line for each number."""
    return [("plan", beside.verdict), *((row.name, _said(row)) for row in beside.rows)]


def _said(row: Row) -> str:
    actual = "unknown" if row.actual is None else _write(row, row.actual)
    band = ""
    if row.planned_range is not None and row.planned_range[0] != row.planned_range[1]:
        low, high = (_write(row, each) for each in row.planned_range)
        band = f" ({low} to {high})"
    return f"{actual}; planned {_write(row, row.planned)}{band}"


def _write(row: Row, value: float) -> str:
    if row.unit == "share":
        return f"{value:.1%}" if value >= 0.001 else f"{100 * value:.2g}%"
    if row.unit == "dollars":
        return dollars(value)
    if row.unit == "bytes":
        return num_bytes(value)
    if row.unit == "per second":
        return short(value)
    return duration(value) if value >= 100 else f"{value:.3g} s"
