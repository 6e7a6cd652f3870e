"""The script that holds the layout finds each kind of offender, and the code has none."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import check_house  # noqa: E402

GOOD = {
    "__init__.py": "",
    "__main__.py": "",
    "schedule.py": "",
    "system/__init__.py": "",
    "system/files.py": "def write():\n    pass\n",
    "data/__init__.py": "",
    "data/text.py": "from tst_megatron.system.files import write\n",
    "training/__init__.py": "",
    "training/step.py": "from tst_megatron.data import text\n",
    "cli/__init__.py": "",
    "cli/app.py": "def main():\n    from tst_megatron.training import step\n",
}


@pytest.fixture
def offenders(tmp_path, capsys, monkeypatch):
    """Return a function: the offenders of the good house with some files changed."""

    def run(**changed):
        for name, text in {**GOOD, **{f"{key}.py": text for key, text in changed.items()}}.items():
            path = tmp_path / "tst_megatron" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(sys, "argv", ["check_house.py", "--root", str(tmp_path)])
        status = check_house.main()
        *lines, last = capsys.readouterr().out.splitlines()
        assert status == bool(lines) and f"{len(lines)} offenders" in last
        return lines

    return run


def test_code_has_no_offender(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["check_house.py"])
    assert check_house.main() == 0, capsys.readouterr().out


def test_good_house_has_none(offenders):
    assert offenders() == []


@pytest.mark.parametrize(
    "text",
    [
        "from tst_megatron.training import step\n",
        "import tst_megatron.training.step\n",
        "from tst_megatron.training.step import x\n",
        "if TYPE_CHECKING:\n    from tst_megatron.training import step\n",
        "def f():\n    # It takes long.\n    from tst_megatron.training import step\n",
    ],
)
def test_import_from_a_layer_above_is_named_wherever_it_stands(offenders, text):
    found = offenders(**{"data/text": text})
    (upward,) = (line for line in found if "may import" in line)
    assert upward.startswith("tst_megatron/data/text.py:")
    assert "imports training" in upward and "data may import schedule, system" in upward
    # The step imports the text.
    assert any("no circle" in line for line in found)


def test_rooms_of_one_layer_do_not_import_each_other(offenders):
    (line,) = offenders(
        **{"megatron/__init__": "", "megatron/loop": "from tst_megatron.data import text\n"}
    )
    assert "megatron may import schedule, system" in line


def test_circle_of_files_and_of_folders_is_named(offenders):
    circle = {
        "data/a": "from tst_megatron.data import b\n",
        "data/b": "from tst_megatron.data import a\n",
    }
    assert any("no circle of files" in line for line in offenders(**circle))


def test_circle_of_folders_without_one_of_files_is_named(offenders):
    found = offenders(
        **{
            "data/x/__init__": "",
            "data/y/__init__": "",
            "data/x/one": "from tst_megatron.data.y import one\n",
            "data/y/one": "",
            "data/y/two": "from tst_megatron.data.x import two\n",
            "data/x/two": "",
        }
    )
    assert found and all("no circle of folders" in line for line in found)


def test_file_in_the_root_and_a_full_folder_are_named(offenders):
    (line,) = offenders(extra="")
    assert "extra.py" in line and "alone" in line


def test_full_folder_is_named(offenders):
    (line,) = offenders(**{f"data/f{number}": "" for number in range(13)})
    assert line == "tst_megatron/data/ has 14 files and folders: at most 13"


def test_long_file_and_long_function_are_named(offenders):
    long = "def f():\n" + "    x = 1\n" * 60 + "# y\n" * 240
    lines = offenders(**{"data/long": long})
    assert lines == [
        "tst_megatron/data/long.py has 301 lines: at most 300",
        "tst_megatron/data/long.py:1 f has 61 lines: at most 60",
    ]
    assert offenders(**{"data/long": long.replace("    x = 1\n", "", 1)}) == []


def test_import_in_a_function_needs_a_reason_outside_the_commands(offenders):
    bare = "def f():\n    from tst_megatron.system import files\n"
    (line,) = offenders(**{"data/lazy": bare})
    assert line.startswith("tst_megatron/data/lazy.py:2 imports system.files in a function")
    reasoned = bare.replace("    from", "    # It takes seconds.\n    from")
    assert offenders(**{"data/lazy": reasoned}) == []
    assert offenders(**{"data/lazy": "", "cli/lazy": bare}) == []


def test_two_test_files_of_one_name_are_named(offenders, tmp_path):
    for folder in ("unit", "slurm"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
        for name in ("conftest.py", "test_same.py"):
            (tmp_path / "tests" / folder / name).write_text("")
    (line,) = offenders()
    assert line.startswith("tests/slurm/test_same.py, tests/unit/test_same.py: ")


def test_table_counts(tmp_path, offenders, capsys, monkeypatch):
    offenders(**{"data/text": '"""What it is."""\n\n# A comment.\n'})
    monkeypatch.setattr(sys, "argv", ["check_house.py", "--table", "--root", str(tmp_path)])
    assert check_house.main() == 0
    rows = capsys.readouterr().out.splitlines()
    for row in (
        "| files | 11 |",
        "| imports that run up | 0 |",
        "| imports in functions | 1 |",
        "| lines that are comments | 1 |",
        "| docstrings that begin with What | 1 |",
    ):
        assert row in rows
