"""Apex's extension for the image, with a compiler that compiles nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import image_apex
import image_record


def git(folder, *arguments):
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def apex(tmp_path):
    """A repository with the sources' names, and a commit after the one that is wanted."""
    repository = tmp_path / "apex"
    for name in image_apex.SOURCES:
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("// old")
    git(tmp_path, "init", "--quiet", "apex")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "old")
    wanted = git(repository, "rev-parse", "HEAD")
    (repository / image_apex.SOURCES[0]).write_text("// new")
    git(repository, "commit", "--quiet", "-am", "new")
    return repository, wanted


def test_one_commit_of_apex_is_fetched(apex, tmp_path):
    repository, wanted = apex
    (tmp_path / "source").mkdir()
    image_apex.fetch(wanted, tmp_path / "source", repository=str(repository))
    assert (tmp_path / "source" / image_apex.SOURCES[0]).read_text() == "// old"


def test_commit_that_does_not_exist_ends_the_build(apex, tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(subprocess.CalledProcessError):
        image_apex.fetch("0" * 40, tmp_path / "source", repository=str(apex[0]))


def test_one_extension_is_compiled_and_no_package_of_apex(apex, tmp_path, monkeypatch):
    from torch.utils import cpp_extension

    asked = {}

    def load(**arguments):
        asked.update(arguments)
        (Path(arguments["build_directory"]) / f"{arguments['name']}.so").touch()

    monkeypatch.setattr(cpp_extension, "load", load)
    (tmp_path / "site").mkdir()
    library = image_apex.compile_extension(apex[0], tmp_path / "site")
    assert [path.name for path in (tmp_path / "site").iterdir()] == [f"{image_record.APEX}.so"]
    assert library.stat().st_mode & 0o777 == 0o755
    assert all(Path(source).exists() for source in asked["sources"]) and len(asked["sources"]) == 3
    assert asked["name"] == image_record.APEX and asked["with_cuda"] is True


def test_base_without_torch_and_a_compiler_is_refused_with_all_that_it_lacks(monkeypatch, capsys):
    monkeypatch.setattr(image_apex.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(image_apex.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["x", "0" * 40, "folder"])
    assert image_apex.main() == 1
    message = capsys.readouterr().err
    assert message.startswith("error: BUILD_APEX=1: the base image has no torch, git, ninja, nvcc.")
    assert "take NVIDIA's base, or leave BUILD_APEX out" in message


def test_nvcc_is_found_in_the_folder_of_cuda(monkeypatch):
    monkeypatch.setenv("CUDA_HOME", "/cuda")
    there = {"git", "ninja", "/cuda/bin/nvcc"}
    monkeypatch.setattr(image_apex.shutil, "which", lambda name: name in there or None)
    assert image_apex.missing() == []
    there.clear()
    assert image_apex.missing() == ["git", "ninja", "nvcc"]
