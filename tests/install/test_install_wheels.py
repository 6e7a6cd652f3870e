"""An environment from a folder of wheels, where there is no index."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_wheels import sha256_of, sources, wheel_of_pip, write_wheel

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import install_wheels
from install_wheels import make_environment, this_platform
from wheelhouse import finish


@pytest.fixture
def wheels(tmp_path):
    """A finished folder with the wheels of two packages, and pip."""
    folder = tmp_path / "wheels"
    files = [write_wheel(folder, name) for name in ("thing", "other")]
    finish(folder, [*files, Path(shutil.copy(wheel_of_pip(), folder))], {})
    return folder


def install(wheels, *options, **settings):
    """As a person does it, with an index that leads nowhere."""
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(
        [sys.executable, str(wheels / "install.py"), *map(str, options)],
        env={**os.environ, **nowhere, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def value_of(python, module):
    code = f"import {module}; print({module}.VALUE)"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return asked.stdout.strip()


def change_platform(wheels, **changes):
    path = wheels / "platform.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_finished_folder_is_enough_and_sources_can_be_used(wheels, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    for name, text in sources("other").items():
        (project / name).write_text(text)
    done = install(wheels, tmp_path / "venv", "--editable", project)
    assert done.returncode == 0, done.stderr
    assert "installed. To use it: . " in done.stdout
    python = tmp_path / "venv" / "bin" / "python"
    assert (value_of(python, "thing"), value_of(python, "other")) == ("41", "editable")


def test_wheel_that_was_damaged_on_its_way_is_refused_and_no_environment_is_left(wheels, tmp_path):
    write_wheel(wheels, "thing", module="VALUE = 42")
    done = install(wheels, tmp_path / "venv")
    assert done.returncode == 1
    assert "pip cannot install the wheels: its reason is above. Nothing is in" in done.stderr
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_settings_of_the_callers_pip_do_not_count(wheels, tmp_path):
    """With each of these alone pip installs elsewhere or nothing, and ends well, or it fails."""
    elsewhere, wanted = tmp_path / "elsewhere", tmp_path / "constraint.txt"
    wanted.write_text("thing==2.0\n")
    (tmp_path / "pip.conf").write_text(f"[install]\ntarget = {elsewhere}\n")
    settings = {
        "PIP_TARGET": str(elsewhere),
        "PIP_PREFIX": str(elsewhere),
        "PIP_DRY_RUN": "1",
        "PIP_USER": "1",
        "PIP_CONSTRAINT": str(wanted),
        "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
    }
    done = install(wheels, tmp_path / "venv", **settings)
    assert done.returncode == 0, done.stderr
    assert value_of(tmp_path / "venv" / "bin" / "python", "thing") == "41"
    assert not elsewhere.exists()


def test_wheels_that_are_not_in_the_environment_are_all_named(wheels, tmp_path, monkeypatch):
    """Whatever else makes pip end well without having done it."""
    monkeypatch.setattr(install_wheels, "_run", lambda *_: None)
    with pytest.raises(RuntimeError, match="venv: pip ended without an error") as told:
        make_environment(wheels, tmp_path / "venv")
    assert "not in it: other, pip, thing. Nothing is installed" in str(told.value)
    assert not (tmp_path / "venv").exists()


def test_folder_that_is_not_finished_is_refused(wheels, tmp_path):
    (wheels / "requirements.txt").unlink()
    done = install(wheels, tmp_path / "venv")
    assert done.returncode == 1
    assert "no requirements.txt in it. Let tools/wheelhouse.sh finish, and copy" in done.stderr


def test_environment_that_exists_is_not_overwritten(wheels, tmp_path):
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "mine").touch()
    done = install(wheels, tmp_path / "venv")
    assert done.returncode == 1
    assert "venv exists. Delete it, or name a folder that does not" in done.stderr
    assert (tmp_path / "venv" / "mine").exists()


def test_wheels_of_another_platform_are_refused_with_all_that_differs(wheels, tmp_path):
    change_platform(wheels, python="3.9", machine="riscv64", glibc="9.1")
    done = install(wheels, tmp_path / "venv")
    assert done.returncode == 1
    here = this_platform()
    assert f"the wheels are for python 3.9, and this is {here['python']}; " in done.stderr
    assert f"for machine riscv64, and this is {here['machine']}; the wheels need glibc 9.1" in (
        done.stderr
    )
    assert "make the folder on a machine like this one" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"python": "3.12", "machine": "x86_64"}', "no system and no glibc"),
        ('{"python": "3.12"', "not JSON"),
        ('["3.12"]', "no object"),
        (
            '{"python": "3.12", "machine": "a", "system": "b", "glibc": "new"}',
            "glibc is no version: 'new'",
        ),
    ],
)
def test_damaged_description_of_the_platform_is_refused(wheels, tmp_path, text, said):
    (wheels / "platform.json").write_text(text)
    done = install(wheels, tmp_path / "venv")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"platform.json is damaged ({said}" in done.stderr
    assert "Copy the folder again, or let tools/wheelhouse.sh finish" in done.stderr


def test_glibc_is_compared_as_numbers(wheels, monkeypatch):
    change_platform(wheels, glibc="2.9")
    here = {**this_platform(), "glibc": "2.28"}
    monkeypatch.setattr(install_wheels, "this_platform", lambda: here)
    install_wheels.refuse_another_platform(wheels)


def test_folder_without_wheels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no wheel in it. WHEELS is a folder of .whl files"):
        make_environment(tmp_path, tmp_path / "venv")


@pytest.mark.parametrize("with_list", [True, False])
def test_wheels_are_installed_over_this_python_but_those_that_are_left_to_it(tmp_path, with_list):
    """As `make gpu-check WHEELS=DIR` does it: of any wheels, and a system's packages count."""
    files = [write_wheel(tmp_path / "wheels", name) for name in ("thing", "not-wanted")]
    if with_list:
        finish(tmp_path / "wheels", files, {})
    told = []

    def left_out(seen, wheels):
        told.append((seen, wheels))
        return {"not-wanted", "absent"}

    python = make_environment(tmp_path / "wheels", tmp_path / "venv", over_this_python=left_out)
    assert value_of(python, "thing") == "41"
    absent = subprocess.run([python, "-c", "import not_wanted"], capture_output=True, check=False)
    assert absent.returncode != 0
    ((seen, names),) = told
    assert names == {"thing", "not-wanted"} and "pip" in seen
    configuration = (tmp_path / "venv" / "pyvenv.cfg").read_text()
    assert "include-system-site-packages = true" in configuration


def make(target, wheels, *options):
    """`make TARGET WHEELS=FOLDER` in the checkout."""
    return subprocess.run(
        ["make", "--no-print-directory", *options, target, f"WHEELS={wheels}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_says_how_a_missing_folder_is_made(tmp_path):
    done = make("test-fast", f"{tmp_path}/nowhere")
    assert done.returncode != 0
    assert f"tools/wheelhouse.sh {tmp_path}/nowhere makes that folder" in done.stdout


@pytest.mark.parametrize("target", ["test-fast", "lint", "quickstart"])
def test_make_with_wheels_asks_nothing_from_a_network(target, wheels):
    done = make(target, wheels, "--dry-run")
    assert done.returncode == 0, done.stderr
    install, *commands = done.stdout.splitlines()
    assert install == f"python3 tools/install_wheels.py .venv --wheels '{wheels}' --editable ."
    assert commands and all(
        line.startswith(".venv/bin/uv run --no-sync --offline ") for line in commands
    )


@pytest.mark.parametrize("name", ["my wheels", "it's"])
@pytest.mark.parametrize("target", ["test-fast", "gpu-check"])
def test_make_refuses_a_name_that_it_cannot_handle_in_one_line(target, name):
    done = make(target, f"/a/{name}", "--dry-run")
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert f"WHEELS is /a/{name}: make takes no name with a space or a quote in it. Rename" in line


def test_make_passes_a_name_as_it_is(tmp_path):
    done = make("gpu-check", "/a/b&c", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "--wheels '/a/b&c'" in done.stdout


def test_sums_of_a_finished_folder_are_right(wheels):
    sums = dict(line.split("  ")[::-1] for line in (wheels / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == {path.name for path in wheels.iterdir()} - {"SHA256SUMS"}
    assert all(sha256_of(wheels / name) == value for name, value in sums.items())
