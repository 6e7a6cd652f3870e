"""The command ``compare``: what it hands on, prints and writes."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))

from made_comparisons import nothing_known
from test_cli import run_main

from tst_megatron.compare import comparison


@pytest.fixture
def asked(monkeypatch):
    """What the comparison was asked for; its result is made up."""
    calls = []

    def compare_runs(paths, *, baseline):
        calls.append((paths, baseline))
        return nothing_known()

    monkeypatch.setattr(comparison, "compare_runs", compare_runs)
    return calls


def test_runs_and_baseline_are_handed_on_and_the_verdict_printed(asked, monkeypatch, capsys):
    status, out, error = run_main(monkeypatch, capsys, "compare", "a", "b", "--baseline", "a")
    assert (status, error) == (0, "")
    assert asked == [([Path("a"), Path("b")], "a")]
    assert "This says nothing yet: no tokenizer is recorded." in out
    assert max(map(len, out.splitlines())) <= 100


def test_page_is_written_and_named_last(asked, tmp_path, monkeypatch, capsys):
    page = tmp_path / "new" / "page.html"
    status, out, _ = run_main(monkeypatch, capsys, "compare", "a", "b", "--html", str(page))
    assert status == 0
    files = page.with_name("page-files")
    assert out.splitlines()[-1] == f"page: {page}, pictures: {files}"
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert {each.name for each in files.iterdir()} == {"validation-over-steps.png"}


def test_json_is_alone_on_standard_output(asked, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.html"
    status, out, error = run_main(
        monkeypatch, capsys, "compare", "a", "b", "--json", "--html", str(page)
    )
    assert status == 0 and page.exists()
    assert json.loads(out)["baseline"] == "a"
    assert error.startswith("page: ")


def test_bad_run_is_one_sentence_and_status_2(monkeypatch, capsys, tmp_path):
    status, out, error = run_main(monkeypatch, capsys, "compare", str(tmp_path / "nothing"))
    assert (status, out) == (2, "")
    assert "nothing" in error and "Traceback" not in error


def test_impossible_page_is_refused_before_any_run_is_read(asked, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "resolved.yaml").write_text("")
    for page in (tmp_path, run / "checkpoints" / "page.html"):
        status, out, error = run_main(monkeypatch, capsys, "compare", "a", "--html", str(page))
        assert (status, out) == (2, "") and str(page) in error
    assert asked == []


def test_page_in_the_place_of_an_input_or_over_a_link_is_refused(
    asked, tmp_path, monkeypatch, capsys
):
    table = tmp_path / "in.csv"
    table.write_text("step,loss\n")
    status, _, error = run_main(
        monkeypatch, capsys, "compare", "a", str(table), "--html", str(table)
    )
    assert status == 2 and "is one of the runs that are compared" in error
    assert table.read_text() == "step,loss\n"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "page-files").symlink_to(tmp_path / "elsewhere")
    status, _, error = run_main(
        monkeypatch, capsys, "compare", "a", "--html", str(tmp_path / "page.html")
    )
    assert status == 2 and "is a link" in error and not asked
