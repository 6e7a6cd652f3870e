import io

import pytest
from rich.console import Console

from tst_megatron.system import progress
from tst_megatron.system.progress import byte_progress


def test_log_of_a_job_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    text = io.StringIO()
    console = Console(file=text, width=40)
    with byte_progress(console, "tokenising", 10_000_000_000, done=1_000_000_000) as advance:
        for _ in range(5):
            now += 30
            advance(600_000_000)
    assert text.getvalue().splitlines() == [
        "tokenising: 2.20 of 10.00 GB, 20.0 MB/s, 6 minutes left",
        "tokenising: 3.40 of 10.00 GB, 20.0 MB/s, 6 minutes left",
    ]


def test_nothing_is_said_without_a_console() -> None:
    with byte_progress(None, "tokenising", 10) as advance:
        advance(10)
