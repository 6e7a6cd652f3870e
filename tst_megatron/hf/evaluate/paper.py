"""The paper's downstream results, for the table beside ours.

Source: Table 1 of arXiv 2605.06546, zero-shot, final-step checkpoints, per cent. The paper says
neither which of acc and acc_norm it prints, nor which form of MMLU, nor the harness's version.
"""

from __future__ import annotations

from dataclasses import dataclass

TASKS = (
    "hellaswag",
    "arc_easy",
    "arc_challenge",
    "mmlu",
    "mmlu_continuation",
    "boolq",
    "openbookqa",
    "piqa",
    "winogrande",
)
"""The tasks of ``--tasks paper``. The paper has one MMLU; both of lm-eval's forms are run."""

_COLUMNS = (
    *("hellaswag", "arc_easy", "arc_challenge", "mmlu"),
    *("boolq", "openbookqa", "piqa", "winogrande"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRun:
    """One line of the paper's table."""

    description: str
    percent: dict[str, float]
    """Task to accuracy in per cent; tasks that the paper does not have for this run are absent."""


def _run(description: str, *percent: float | None) -> PaperRun:
    values = dict(zip(_COLUMNS, percent, strict=True))
    return PaperRun(
        description=description, percent={k: v for k, v in values.items() if v is not None}
    )


RUNS = {
    # task order of the arguments:               HS    AE    AC    MMLU  BQ    OB    PQ    WG
    "270m-20k-base": _run("270M, 20k steps", 36.3, 46.7, 24.9, None, 56.7, 29.2, 66.4, 51.3),
    "270m-20k-tst": _run("270M TST, 20k steps", 38.6, 47.6, 26.4, None, 54.0, 29.8, 67.0, 51.1),
    "270m-100k-base": _run("270M, 100k steps", 40.2, 47.5, 26.2, None, 58.5, 30.6, 67.3, 51.5),
    "270m-100k-tst": _run("270M TST, 100k steps", 42.6, 50.3, 25.5, None, 57.9, 32.4, 69.0, 54.2),
    "600m-base": _run("600M, 20k steps", 43.5, 51.7, 25.5, None, 56.6, 31.2, 69.0, 52.6),
    "600m-tst": _run("600M TST, 20k steps", 48.2, 52.5, 26.9, None, 54.8, 35.0, 70.6, 53.9),
    "3b-20k-base": _run("3B, 20k steps", 57.6, 60.6, 31.9, 31.2, 58.4, 36.6, 74.5, 56.5),
    "3b-36k-base": _run("3B, 36k steps", 62.3, 65.9, 34.9, 32.7, 62.1, 36.4, 74.7, 60.0),
    "3b-50k-base": _run("3B, 50k steps", 63.9, 67.3, 36.8, 33.3, 64.6, 38.0, 75.5, 60.9),
    "3b-tst": _run("3B TST, 20k steps", 62.4, 66.3, 36.0, 32.8, 60.0, 42.0, 76.1, 59.6),
    "10b-base": _run("10B-A1B, 125k steps", 70.1, 73.8, 46.3, 37.4, 66.2, 44.0, 77.2, 61.3),
    "10b-tst": _run("10B-A1B TST, 50k steps", 71.2, 74.2, 47.3, 39.0, 69.4, 43.2, 77.4, 63.0),
}


def number_beside(run: str, task: str) -> float | None:
    """The paper's per cent for a task of ours, or None where it has none.

    Args:
        run: a key of ``RUNS``.
        task: lm-eval's name. The paper's one MMLU stands beside both of ours.
    """
    return RUNS[run].percent.get("mmlu" if task == "mmlu_continuation" else task)
