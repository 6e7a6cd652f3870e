"""The command ``plan``: the picture that it writes, and what it refuses before any work."""

import json
from types import SimpleNamespace

import pytest
from test_cli import run_main

from tst_megatron.cli import plan as command
from tst_megatron.megatron.cpu import host
from tst_megatron.plan import make_plan, picture, show


@pytest.fixture
def asked(monkeypatch):
    """The recipes that were read; plan and picture are made up."""
    calls = []
    made = SimpleNamespace(as_keys=lambda: {"recipe": "r.yaml"})
    monkeypatch.setattr(command, "load_recipe", lambda path, *_: calls.append(path))
    monkeypatch.setattr(host, "install", lambda **_: None)
    monkeypatch.setattr(make_plan, "make_plan", lambda *_, **__: made)
    monkeypatch.setattr(show, "show", lambda _, console: console.print("shown"))
    monkeypatch.setattr(picture, "draw_plan", lambda _, path: path.write_bytes(b"drawn"))
    return calls


def test_picture_is_written_and_named_last(asked, tmp_path, monkeypatch, capsys):
    path = tmp_path / "plan.png"
    status, out, error = run_main(monkeypatch, capsys, "plan", "r.yaml", "--picture", str(path))
    assert (status, error) == (0, "") and len(asked) == 1
    assert out.splitlines() == ["shown", f"picture: {path}"]
    assert path.read_bytes() == b"drawn"


def test_json_is_alone_on_standard_output(asked, tmp_path, monkeypatch, capsys):
    path = tmp_path / "plan.png"
    status, out, error = run_main(
        monkeypatch, capsys, "plan", "r.yaml", "--json", "--picture", str(path)
    )
    assert status == 0 and path.exists()
    assert json.loads(out) == {"recipe": "r.yaml"}
    assert error == f"picture: {path}\n"


def test_without_the_option_there_is_no_picture(asked, monkeypatch, capsys):
    monkeypatch.setattr(picture, "draw_plan", lambda *_: pytest.fail("nobody asked for it"))
    assert run_main(monkeypatch, capsys, "plan", "r.yaml") == (0, "shown\n", "")


@pytest.mark.parametrize("name", ["plan.svg", "/proc/plan.png", "", "run/checkpoints/plan.png"])
def test_impossible_picture_is_refused_before_a_recipe_is_read(
    asked, tmp_path, monkeypatch, capsys, name
):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "resolved.yaml").write_text("")
    path = tmp_path / name
    status, out, error = run_main(
        monkeypatch, capsys, "plan", "r.yaml", "--memory", "--picture", str(path)
    )
    assert (status, out) == (2, "") and str(path) in error and "Traceback" not in error
    assert asked == []


def test_all_that_is_wrong_with_the_options_is_said_at_once(asked, tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("text")
    words = ["--gpu", "v100", "--mfu", "13", "--gpus", "0", "--price", "-1", "--max-days", "3"]
    words += ["--tokens-available", "many", "--picture", "p.svg"]
    words += ["--run-folder", str(tmp_path / "thesis")]
    status, out, error = run_main(monkeypatch, capsys, "plan", "r.yaml", *words)
    assert (status, out, asked) == (2, "", [])
    for said in (
        *("--gpu: v100", "--mfu: 13", "--gpus: 0", "--price: -1", "--max-days: is a limit"),
        *("--tokens-available: many", "--picture p.svg", "--run-folder: "),
    ):
        assert said in error
    assert len(error.splitlines()) == 8


def test_folder_of_something_else_is_refused_before_a_recipe_is_read(
    asked, tmp_path, monkeypatch, capsys
):
    (tmp_path / "chapter.tex").write_text("text")
    status, _, error = run_main(
        monkeypatch, capsys, "plan", "r.yaml", "--run-folder", str(tmp_path)
    )
    assert status == 2 and "so it is not a run. Name another" in error
    assert asked == [] and not (tmp_path / "plan.json").exists()
