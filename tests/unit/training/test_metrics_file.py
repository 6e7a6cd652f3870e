import json

import pytest

from tst_megatron.training.report.metrics_file import drop_lines_after, events_at, read_metrics


def step(number, event="step"):
    return json.dumps({"event": event, "step": number, "lm loss": 5.0 - number / 10})


@pytest.fixture
def metrics(tmp_path):
    """Four steps, an evaluation after the second and one after the fourth."""
    path = tmp_path / "metrics.jsonl"
    rows = [step(1), step(2), step(2, "validation"), step(3), step(4), step(4, "validation")]
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


def steps_of(path, event="step"):
    return [row["step"] for row in read_metrics(path, event=event)]


def dropped(path):
    return path.with_name("metrics.dropped.jsonl")


def test_rows_are_read_by_event_and_in_order(metrics):
    assert steps_of(metrics) == [1, 2, 3, 4]
    assert steps_of(metrics, "validation") == [2, 4]
    assert steps_of(metrics, "other") == []
    assert read_metrics(metrics)[1] == {"event": "step", "step": 2, "lm loss": 4.8}


def test_missing_metrics_are_named_on_reading_and_nothing_on_dropping(tmp_path):
    path = tmp_path / "metrics.jsonl"
    drop_lines_after(path, 3)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        read_metrics(path)


def test_kinds_of_rows_of_a_step_are_told_also_of_a_torn_file(metrics, tmp_path):
    with metrics.open("a") as file:
        file.write('{"event": "test", "st')
    assert events_at(metrics, 3) == {"step"}
    assert events_at(metrics, 4) == {"step", "validation"}
    assert events_at(metrics, 5) == set()
    assert events_at(tmp_path / "none.jsonl", 4) == set()


def test_lines_after_a_step_are_moved_and_those_of_the_step_stay(metrics):
    drop_lines_after(metrics, 2)
    assert steps_of(metrics) == [1, 2]
    assert steps_of(metrics, "validation") == [2]
    assert steps_of(dropped(metrics)) == [3, 4]
    assert steps_of(dropped(metrics), "validation") == [4]


def test_nothing_is_written_when_no_line_is_after_the_step(metrics):
    before = metrics.read_bytes(), metrics.stat().st_mtime_ns
    drop_lines_after(metrics, 4)
    assert (metrics.read_bytes(), metrics.stat().st_mtime_ns) == before
    assert not dropped(metrics).exists()


def test_all_lines_are_moved_for_a_run_that_starts_again(metrics):
    drop_lines_after(metrics, 0)
    assert metrics.read_text() == ""
    assert steps_of(dropped(metrics)) == [1, 2, 3, 4]


def test_second_drop_is_added_to_the_first(metrics):
    drop_lines_after(metrics, 3)
    drop_lines_after(metrics, 1)
    assert steps_of(metrics) == [1]
    assert steps_of(dropped(metrics)) == [4, 2, 3]


@pytest.mark.parametrize(
    "torn", ['{"event": "st', "12", "null", "[1]", '{"event": "step"}', '{"step": "3"}', "\x00\x00"]
)
def test_torn_line_is_moved_too(metrics, torn):
    with metrics.open("a") as file:
        file.write(torn)
    drop_lines_after(metrics, 4)
    assert steps_of(metrics) == [1, 2, 3, 4]
    assert dropped(metrics).read_text() == f"{torn}\n"


def test_last_line_that_lost_only_its_end_of_line_gets_it_back(metrics):
    """Otherwise the next step is appended to it, and neither can be read."""
    metrics.write_text(metrics.read_text().removesuffix("\n"))
    drop_lines_after(metrics, 4)
    with metrics.open("a") as file:
        file.write(f"{step(5)}\n")
    assert steps_of(metrics) == [1, 2, 3, 4, 5]
