"""The folder of tools/wheelhouse.sh: what goes into it, and what cannot."""

import os
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.tags import Tag, sys_tags
from packaging.utils import parse_wheel_filename
from tiny_wheels import sha256_of, sources, wheel_of_pip, write_source, write_wheel

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import fetch_wheels
import wheelhouse
from fetch_wheels import Package
from wheelhouse import (
    collect,
    exported,
    finish,
    glibc_of,
    of_platform,
    recorded_sums,
)

LINUX = [Tag("cp312", "cp312", "manylinux_2_28_x86_64"), Tag("py3", "none", "any")]


@pytest.fixture
def uv(monkeypatch):
    """The uv that runs these tests, or one that is at hand."""
    usual = [os.environ.get("UV"), shutil.which("uv"), str(ROOT / ".uv" / "bin" / "uv")]
    found = [path for path in usual if path and Path(path).exists()]
    if not found:
        pytest.skip("no uv: run the tests by make")
    monkeypatch.setenv("UV", found[0])


@pytest.fixture(scope="module")
def pip(tmp_path_factory):
    """Where pip can be imported: uv's environments have none."""
    folder = tmp_path_factory.mktemp("pip")
    shutil.unpack_archive(wheel_of_pip(), folder, "zip")
    return folder


@pytest.fixture
def index(tmp_path, monkeypatch, pip):
    """A folder that pip takes for the package index, and a project of a few lines."""
    monkeypatch.setenv("PYTHONPATH", str(pip))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    project = tmp_path / "project"
    project.mkdir()
    for name, text in sources("the-project").items():
        (project / name).write_text(text)
    monkeypatch.setattr(wheelhouse, "ROOT", project)
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def package_of(path, sha256=None):
    name, version = path.name.removesuffix(".tar.gz").split("-")[:2]
    size = path.stat().st_size
    return Package(name.replace("_", "-"), version, path.name, sha256 or sha256_of(path), size)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def locked(name, *filenames, marker=None, source=None):
    files = [
        {"url": f"https://host/ab/{each}", "hashes": {"sha256": f"sum of {each}"}, "size": 3}
        for each in [*filenames, *([source] if source else [])]
    ]
    entry = {"name": name, "version": "1.0", "wheels": files[: len(filenames)]}
    entry |= {"sdist": files[-1]} if source else {}
    return entry | ({"marker": marker} if marker else {})


def walk(parts, extras):
    """Name to entry, from the definition: everything in uv.lock that can be reached from here."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    by_name = {entry["name"]: entry for entry in lock["package"]}
    assert len(by_name) == len(lock["package"]), "a package with two versions needs another walk"
    ours = by_name["tst-megatron"]
    waiting = list(ours["dependencies"])
    for part in parts:
        waiting += ours["dev-dependencies"][part]
    for extra in extras:
        waiting += ours["optional-dependencies"][extra]
    seen, found = set(), {}
    while waiting:
        wanted = waiting.pop()
        key = (wanted["name"], *wanted.get("extra", []))
        if key in seen or not Marker(wanted.get("marker", "python_version > '3'")).evaluate():
            continue
        seen.add(key)
        entry = by_name[wanted["name"]]
        waiting += entry.get("dependencies", [])
        for extra in wanted.get("extra", []):
            waiting += entry.get("optional-dependencies", {}).get(extra, [])
        found[entry["name"]] = entry
    found.pop("tst-megatron", None)
    return found


@pytest.mark.parametrize("with_dev", [True, False])
@pytest.mark.parametrize("with_gpu", [True, False])
def test_files_are_those_of_the_lock_for_this_platform(uv, with_dev, with_gpu):
    document = exported(with_dev=with_dev, with_gpu=with_gpu)
    found = of_platform(document["packages"], list(sys_tags()))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].keys() - (set() if with_gpu else {"gpu"})
    wanted = walk(["wheelhouse", *(["dev"] if with_dev else [])], extras)
    assert {each.name: each.version for each in found} == {
        name: entry["version"] for name, entry in wanted.items()
    }
    runs_here = set(sys_tags())
    for each in found:
        files = [*wanted[each.name].get("wheels", []), wanted[each.name].get("sdist", {"url": ""})]
        (file,) = (file for file in files if file["url"].endswith(f"/{each.filename}"))
        assert file["hash"] == f"sha256:{each.sha256}" and file["size"] == each.num_bytes
        assert not each.is_wheel or runs_here & parse_wheel_filename(each.filename)[3]
    sources = {each.name for each in found if not each.is_wheel}
    assert ("transformer-engine-torch" in sources) == with_gpu
    assert ("pytest" in wanted, {"pip", "uv", "hatchling"} <= wanted.keys()) == (with_dev, True)


def test_counts_and_sizes_that_the_guide_states_are_those_of_the_lock(uv):
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("the guide's numbers are for Linux on x86-64")

    def size_of(with_dev, with_gpu):
        document = exported(with_dev=with_dev, with_gpu=with_gpu)
        found = of_platform(document["packages"], list(sys_tags()))
        # The project's own wheel is one more.
        return len(found) + 1, sum(each.num_bytes for each in found) / 1e9

    (count, total), (count_users, total_users) = size_of(True, False), size_of(False, False)
    count_gpu, total_gpu = size_of(True, True)
    guide = " ".join((ROOT / "docs" / "offline.md").read_text().split())
    assert f"The folder has {count} wheels and {total:.2f} GB. " in guide
    assert f"Without `dev` it has {count_users} wheels and {total_users:.2f} GB; " in guide
    more, more_total = count_gpu - count, total_gpu - total
    assert f"`--gpu` adds {more} wheels and {more_total:.2f} GB. " in guide


def test_machine_without_the_locked_python_is_told_and_none_is_downloaded(uv, tmp_path):
    tools = tmp_path / "checkout" / "tools"
    tools.mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "wheelhouse.sh", tools)
    for name in ("pyproject.toml", "uv.lock", ".python-version"):
        shutil.copy(ROOT / name, tools.parent)
    path = tmp_path / "bin"
    path.mkdir()
    for name in ("bash", "env", "dirname"):
        (path / name).symlink_to(shutil.which(name))
    (path / "uv").symlink_to(Path(os.environ["UV"]).resolve())
    done = subprocess.run(
        ["bash", str(tools / "wheelhouse.sh"), str(tmp_path / "wheels")],
        env={"PATH": str(path), "HOME": str(tmp_path), "UV_OFFLINE": "1"},
        # uv takes the Python of an environment around it.
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("tools/wheelhouse.sh: no Python 3.12 here, and none is down")
    assert "python3.12 to PATH" in done.stderr
    assert not (tmp_path / "wheels").exists()


def test_uv_that_cannot_read_the_lock_is_quoted(tmp_path, monkeypatch):
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho 'no uv.lock here' >&2\nexit 2\n")
    uv.chmod(0o755)
    monkeypatch.setenv("UV", str(uv))
    with pytest.raises(RuntimeError, match=r"uv cannot read uv\.lock:\nno uv\.lock here"):
        exported(with_dev=True, with_gpu=False)


def test_wheel_of_the_best_tag_is_taken_and_a_source_where_there_is_none():
    any_, best = "a-1.0-py3-none-any.whl", "a-1.0-cp312-cp312-manylinux_2_28_x86_64.whl"
    other = "b-1.0-cp312-cp312-win_amd64.whl"
    found = of_platform(
        [locked("b", other, source="b-1.0.tar.gz"), locked("a", any_, best, source="a.zip")], LINUX
    )
    assert found == [
        Package("a", "1.0", best, f"sum of {best}", 3),
        Package("b", "1.0", "b-1.0.tar.gz", "sum of b-1.0.tar.gz", 3),
    ]


def test_package_of_another_platform_is_left_out():
    packages = [locked("a", "a-1.0-py3-none-any.whl", marker="sys_platform == 'nothing'")]
    assert of_platform(packages, LINUX) == []


def test_packages_without_a_file_for_this_platform_are_all_named():
    packages = [locked("a", "a-1.0-cp312-cp312-win_amd64.whl"), locked("b")]
    with pytest.raises(ValueError, match=r"^a 1\.0, b 1\.0: uv\.lock has no file for Python 3"):
        of_platform(packages, LINUX)


def test_folder_has_every_wheel_with_its_sum_and_the_next_time_fetches_what_is_damaged_alone(
    index, tmp_path, capsys
):
    there = [write_wheel(index, "thing"), write_wheel(index, "other", version="2.0")]
    packages = [*map(package_of, there), package_of(write_source(index, "old-style"))]
    folder = tmp_path / "wheels"
    collect(packages, folder)
    wheels = [f"{name}-py3-none-any.whl" for name in ("old_style-1.0", "other-2.0", "thing-1.0")]
    wheels.append("the_project-1.0-py3-none-any.whl")
    support = ["README", "SHA256SUMS", "install.py", "platform.json", "requirements.txt"]
    assert names_in(folder) == sorted([*wheels, *support])
    requirements = (folder / "requirements.txt").read_text()
    for name in wheels:
        assert f"--hash=sha256:{sha256_of(folder / name)}" in requirements
    assert "old-style==1.0" in requirements and "the-project==1.0" in requirements
    assert len((folder / "SHA256SUMS").read_text().splitlines()) == len(wheels) + 4
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    subprocess.run(check, cwd=folder, check=True)
    said = capsys.readouterr().out
    assert "0 of 2 locked wheels are there" in said
    assert "[2/2] " in said and "4 wheels, 0.00 GB" in said

    before = sha256_of(folder / "SHA256SUMS")
    (index / "thing-1.0-py3-none-any.whl").unlink()
    (index / "old_style-1.0.tar.gz").unlink()
    (folder / "other-2.0-py3-none-any.whl").write_text("half of it")
    (folder / ".fetching-of-a-killed-process").mkdir()
    collect(packages, folder)
    assert "1 of 2 locked wheels are there" in capsys.readouterr().out
    assert sha256_of(folder / "SHA256SUMS") == before
    subprocess.run(check, cwd=folder, check=True)
    assert names_in(folder) == sorted([*wheels, *support])


def test_wheels_of_an_older_lock_go_and_those_that_somebody_built_stay(index, tmp_path):
    old, built = write_wheel(tmp_path / "wheels", "thing"), write_wheel(tmp_path, "needs-cuda")
    built = built.rename(old.with_name(built.name))
    finish(old.parent, [old, built], {})
    new = write_wheel(old.parent, "thing", version="2.0")
    finish(old.parent, [new], recorded_sums(old.parent))
    assert (old.exists(), new.exists(), built.exists()) == (False, True, True)
    assert "needs-cuda" not in (old.parent / "requirements.txt").read_text()


def test_folder_without_a_package_that_needs_cuda_is_not_finished_until_its_wheel_is_there(
    index, tmp_path, monkeypatch
):
    """An environment with half of Transformer Engine would look like one that has it."""
    folder = tmp_path / "wheels"
    monkeypatch.setattr(wheelhouse, "build", lambda _, folder: write_wheel(folder, "the-project"))
    packages = [package_of(write_source(index, "needs-cuda")), package_of(write_wheel(index, "a"))]
    with pytest.raises(RuntimeError, match="^needs-cuda==1.0: locked as a source whose") as told:
        collect(packages, folder)
    assert f"pip wheel needs-cuda==1.0 --no-deps --no-build-isolation --wheel-dir {folder}" in str(
        told.value
    )
    assert names_in(folder) == ["a-1.0-py3-none-any.whl"]
    write_wheel(folder, "needs-cuda")
    collect(packages, folder)
    assert "needs-cuda==1.0" in (folder / "requirements.txt").read_text()


def test_wheel_that_somebody_built_for_another_platform_is_not_taken(index, tmp_path, monkeypatch):
    folder = tmp_path / "wheels"
    monkeypatch.setattr(wheelhouse, "build", lambda _, folder: write_wheel(folder, "the-project"))
    package = package_of(write_source(index, "needs-cuda"))
    other = write_wheel(folder, "needs-cuda", tag="cp312-cp312-linux_riscv64")
    with pytest.raises(RuntimeError, match="^needs-cuda==1.0: locked as a source whose") as told:
        collect([package], folder)
    assert f"{other.name} is for another platform" in str(told.value)
    assert not (folder / "requirements.txt").exists()
    here = write_wheel(folder, "needs-cuda", tag=f"{next(iter(sys_tags()))}")
    collect([package], folder)
    sums = (folder / "SHA256SUMS").read_text()
    assert here.name in sums and other.name not in sums


def test_wrong_files_are_all_refused_and_the_others_stay(index, tmp_path):
    folder = tmp_path / "wheels"
    wrong = [package_of(write_wheel(index, name), "0" * 64) for name in ("bad", "worse")]
    right = package_of(write_wheel(index, "thing"))
    with pytest.raises(RuntimeError, match="start again to go on") as refused:
        collect([*wrong, right], folder)
    for name in ("bad", "worse"):
        assert f"{name}-1.0-py3-none-any.whl: the index has another file than uv.lock says" in str(
            refused.value
        )
    assert "Expected sha256 0000" in str(refused.value)
    assert names_in(folder) == [right.filename]


def test_wrong_source_is_refused(index, tmp_path):
    package = package_of(write_source(index, "old-style"), "0" * 64)
    with pytest.raises(ValueError, match="the index has another file than uv.lock says"):
        collect([package], tmp_path / "wheels")
    assert names_in(tmp_path / "wheels") == []


def test_machine_without_a_network_is_told_and_nothing_more_is_tried(index, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setattr(fetch_wheels, "AT_ONCE", 1)
    packages = [package_of(write_wheel(tmp_path, f"thing{number}")) for number in range(6)]
    with pytest.raises(RuntimeError, match="no connection to the package index. Is there") as told:
        collect(packages, tmp_path / "wheels")
    assert str(told.value).count("no connection") < len(packages)
    assert names_in(tmp_path / "wheels") == []


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: something else", "pip failed"),
    ],
)
def test_failure_of_pip_is_said_in_words(index, tmp_path, monkeypatch, said, meant):
    (tmp_path / "stand-in" / "pip").mkdir(parents=True)
    (tmp_path / "stand-in" / "pip" / "__init__.py").touch()
    (tmp_path / "stand-in" / "pip" / "__main__.py").write_text(f"raise SystemExit({said!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stand-in"))
    with pytest.raises(RuntimeError, match=meant) as failure:
        collect([package_of(write_wheel(index, "thing"))], tmp_path / "wheels")
    assert said in str(failure.value)


def test_disk_that_is_too_small_is_said_before_anything_is_fetched(index, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=4_000_000_000)
    monkeypatch.setattr(fetch_wheels.shutil, "disk_usage", lambda _: usage)
    big = [Package(name, "1.0", f"{name}.whl", "0", 10**9) for name in "abc"]
    with pytest.raises(RuntimeError, match=r"6\.0 GB are needed while .*4\.0 GB are free\. Free"):
        collect(big, tmp_path / "wheels")


def test_status_is_1_and_the_message_one_line_of_ours(uv, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["wheelhouse.py", str(tmp_path / "file" / "wheels")])
    assert wheelhouse.main() == 1
    assert capsys.readouterr().err.startswith("tools/wheelhouse.sh: [Errno 20] Not a directory")


def test_list_names_files_and_makes_no_folder(uv, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "wheels"
    monkeypatch.setattr(sys, "argv", ["wheelhouse.py", str(folder), "--list", "--no-dev"])
    assert wheelhouse.main() == 0
    assert any(line.startswith("torch-") for line in capsys.readouterr().out.splitlines())
    assert not folder.exists()


def test_glibc_is_the_newest_that_some_wheel_needs():
    assert glibc_of(["a-1.0-py3-none-any.whl"]) == "0.0"
    names = [
        "a-1.0-cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64.manylinux_2_28_x86_64.whl",
        "b-1.0-cp312-cp312-manylinux_2_27_x86_64.whl",
        "c-1.0-cp312-cp312-manylinux2010_x86_64.whl",
    ]
    assert glibc_of(names[2:]) == "2.12"
    assert glibc_of(names[::2]) == "2.17", "the oldest tag of a wheel counts"
    assert glibc_of(names) == "2.27"


def test_scripts_have_no_shell_faults():
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck (apt-get install shellcheck)")
    scripts = sorted(map(str, (ROOT / "tools").glob("*.sh")))
    assert {Path(each).name for each in scripts} >= {"wheelhouse.sh", "wheelhouse_check.sh"}
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
