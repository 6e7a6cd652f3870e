"""What a newer Megatron-Core would touch: its sources against the installed ones."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import newer_megatron  # noqa: E402
from newer_megatron import Source, touched, uses  # noqa: E402

OURS = {
    "names.py": "from megatron.core import arena, moved\nfrom megatron.core.one import Box, kept\n",
    "loop.py": """
from megatron.core.two import direct
from ours import names
names.arena.step(1)
names.moved.here()
wrap(names.Box, "method", None)
TARGET = "megatron.core.arena:Stand.inner"
""",
}
THEIRS = {
    "core/__init__.py": "",
    "core/arena/__init__.py": "from .steps import step\nclass Stand:\n  inner = 1\n",
    "core/arena/steps.py": "def step(a):\n  return a\n",
    "core/moved.py": "def here():\n  pass\n",
    "core/one.py": "class Box:\n  def method(self): return 1\nkept = 3\n",
    "core/two.py": "from elsewhere import direct\n",
}


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def changed(tmp_path, files):
    """What is told where some of the files are others in the newer version (None: not there)."""
    package = write(tmp_path / "ours", OURS)
    old = write(tmp_path / "old" / "megatron", THEIRS)
    newer = {
        **THEIRS,
        **{f"core/{name}.py": text for name, text in files.items()},
    }
    new = write(tmp_path / "new" / "megatron", {k: v for k, v in newer.items() if v is not None})
    return touched(Source(old.parent), Source(new.parent), uses(package))


def test_names_are_found_in_every_form(tmp_path):
    found = {use.name for use in uses(write(tmp_path / "ours", OURS))}
    assert found == {
        *("megatron.core.arena", "megatron.core.moved", "megatron.core.one.Box"),
        *("megatron.core.one.kept", "megatron.core.two.direct", "megatron.core.arena.step"),
        *("megatron.core.moved.here", "megatron.core.one.Box.method"),
        "megatron.core.arena.Stand.inner",
    }


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, []),
        ({"arena/steps": "def step(a):\n  # a remark\n  return a\n"}, []),
        ({"arena/steps": "def step(a, b):\n  return a\n"}, ["changed megatron.core.arena.step"]),
        ({"arena/steps": "def walk(a):\n  return a\n"}, ["gone megatron.core.arena.step"]),
        ({"moved": None}, ["gone megatron.core.moved", "gone megatron.core.moved.here"]),
        ({"two": "from others import direct\n"}, ["changed megatron.core.two.direct"]),
        ({"one": THEIRS["core/one.py"] + "other = 1\n"}, []),
        ({"one": THEIRS["core/one.py"].replace("3", "4")}, ["changed megatron.core.one.kept"]),
        (
            {"arena/__init__": "class Stand:\n  inner = 2\n"},
            ["gone megatron.core.arena.step", "changed megatron.core.arena.Stand.inner"],
        ),
    ],
)
def test_what_changed_is_told(tmp_path, files, told):
    found = changed(tmp_path, files)
    assert sorted(f"{what} {name.partition(' (')[0]}" for what, name in found) == sorted(told)


def test_places_here_are_told(tmp_path):
    ((_, name),) = changed(tmp_path, {"arena/steps": "def step(b):\n  return b\n"})
    assert name == "megatron.core.arena.step (ours/loop.py:4)"


def test_every_name_that_is_taken_is_in_the_installed_version():
    installed = Source(Path(str(importlib.metadata.distribution("megatron-core").locate_file(""))))
    used = uses()
    assert len(used) > 150
    assert [use for use in used if installed.text(use.name) is None] == []


@pytest.mark.parametrize(("there", "status"), [("0.0.1", 0), ("99.0", 1), (None, 0)])
def test_status_tells_whether_there_is_a_newer_one(monkeypatch, capsys, there, status):
    here = importlib.metadata.version("megatron-core")
    monkeypatch.setattr(sys, "argv", ["newer_megatron.py"])
    monkeypatch.setattr(newer_megatron, "_install", lambda *_: there or here)
    assert newer_megatron.main() == status
    said = capsys.readouterr().out
    # An empty folder has none of the names.
    assert ("is the newest" in said) == (there is None)
    assert ("gone    megatron.training.training.train_step" in said) == (there is not None)
