"""The Dockerfile's own steps in a plain environment: tiny wheels for packages, and no network."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import packaging
import pytest
from test_dockerfile import of
from tiny_wheels import sha256_of, wheel_of_pip, write_wheel

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).parent / "uv"
TORCH = "2.13.0a0+8145d630e8.nv26.6"
TORCH_MODULE = f"""
__version__ = "{TORCH}"
class version:
    cuda = None
class backends:
    class cudnn:
        version = staticmethod(lambda: None)
"""
NEEDS = ("torch>=2.11", "pillow>=2", "packaging")
PYPROJECT = """
[project]
name = "tst-megatron"
version = "0.1.0"
requires-python = ">=3.12,<3.13"
[dependency-groups]
image = ["uv"]
"""
PROJECT = {
    "tst_megatron/__init__.py": "",
    "tst_megatron/cli/app.py": "def main():\n    print('0.1.0')\n",
    "tst_megatron/megatron/cpu/__init__.py": "",
    "tst_megatron/megatron/cpu/host.py": "def is_needed():\n    return False\n",
    "tst_megatron/megatron/__init__.py": "",
    "tst_megatron/megatron/loop.py": "import torch, pillow\n",
}


def write_project(folder, needs=NEEDS):
    """The project's wheel, with a command and what training imports."""
    info = "tst_megatron-0.1.0.dist-info"
    lines = [f"Requires-Dist: {each}" for each in needs]
    lines += ["Provides-Extra: gpu", "Requires-Dist: transformer-engine; extra == 'gpu'"]
    with zipfile.ZipFile(folder / "tst_megatron-0.1.0-py3-none-any.whl", "w") as wheel:
        head = ["Metadata-Version: 2.1", "Name: tst-megatron", "Version: 0.1.0"]
        for name, text in {
            **PROJECT,
            f"{info}/METADATA": "\n".join([*head, *lines, ""]),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": "[console_scripts]\n"
            "tst-megatron = tst_megatron.cli.app:main\n",
            f"{info}/RECORD": "",
        }.items():
            wheel.writestr(name, text)


def write_uv(folder):
    """A wheel of uv's name whose program is the uv of this environment."""
    path = write_wheel(folder, "uv")
    with zipfile.ZipFile(path, "a") as wheel:
        program = zipfile.ZipInfo("uv-1.0.data/scripts/uv")
        program.external_attr = 0o100755 << 16
        wheel.writestr(program, f'#!/bin/sh\nexec {UV} "$@"\n')
    return path


def package(name, version, wheel):
    """A package of a lock."""
    file = f'{{ url = "https://index/{wheel.name}", hash = "sha256:{sha256_of(wheel)}" }}'
    return (
        f'[[package]]\nname = "{name}"\nversion = "{version}"\n'
        f'source = {{ registry = "https://index" }}\nwheels = [{file}]\n'
    )


def write_lock(folder, wheels):
    """The lock of the project: torch, two packages that the base has too, and uv."""
    packages = [
        package("torch", "2.11.0", write_wheel(wheels, "torch", version="2.11.0")),
        package("pillow", "2.0", write_wheel(wheels, "pillow", version="2.0")),
        package(
            "packaging",
            packaging.__version__,
            write_wheel(wheels, "packaging", version=packaging.__version__),
        ),
        package("uv", "1.0", write_uv(wheels)),
    ]
    needs = ", ".join(f'{{ name = "{name}" }}' for name in ("torch", "pillow", "packaging"))
    (folder / "uv.lock").write_text(
        'version = 1\nrevision = 3\nrequires-python = "==3.12.*"\n'
        + "".join(packages)
        + f'[[package]]\nname = "tst-megatron"\nversion = "0.1.0"\nsource = {{ editable = "." }}\n'
        f"dependencies = [{needs}]\n"
        '[package.dev-dependencies]\nimage = [{ name = "uv" }]\n'
    )


class Builder:
    """Runs instructions of the Dockerfile with its absolute folders moved to one of the test's."""

    def __init__(self, folder):
        self.folder = folder
        self.moved = {
            "/opt/tst_megatron": folder / "opt",
            "/run/build": folder / "build",
            "/run/uv": folder / "build" / "uv",
            "/run/secrets": folder / "secrets",
            "/build": folder / "build",
            "/var/cache/uv": folder / "cache",
            "/tmp": folder / "temporary",
            "/home/tst": folder / "home",
        }

    def here(self, text):
        names = "|".join(map(re.escape, self.moved))
        return re.sub(rf"(?<![\w.])({names})\b", lambda m: str(self.moved[m[0]]), text)

    def run(self, part, *, lock=""):
        """Run the RUN that has a text in it; what it said, and its status."""
        (line,) = [each for each in of("RUN") if part in each]
        command = self.here(re.sub(r"--mount=\S+\s+", "", line))
        path = f"{self.folder / 'opt/venv/bin'}:{self.folder / 'base/bin'}:/usr/bin:/bin"
        variables = {"PATH": path, "HOME": str(self.folder / "home"), "LNAME": "tst"}
        variables |= {"PYTHONNOUSERSITE": "1", "TMPDIR": str(self.folder / "temporary")}
        facts = {"BASE_IMAGE": "base", "REVISION": "abc", "VERSION": "0.1.0", "CREATED": "now"}
        return subprocess.run(
            ["/bin/sh", "-c", command],
            env={**variables, **facts, "LOCK_SHA256": lock, "PIP_CONSTRAINT": "/nothing-there"},
            cwd=self.folder / "build",
            capture_output=True,
            text=True,
            check=False,
        )

    def must(self, part, **arguments):
        done = self.run(part, **arguments)
        assert done.returncode == 0, f"{part}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def site(environment):
    return environment / "lib" / "python3.12" / "site-packages"


def uv(*arguments):
    command = [UV, *arguments, "--offline", "--no-cache", "--no-config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr


def make_base(folder):
    """A base image's Python: pip, NVIDIA's torch, an older pillow and the real packaging."""
    wheels = folder / "base-wheels"
    found = [
        write_wheel(wheels, "torch", version=TORCH, module=TORCH_MODULE),
        write_wheel(wheels, "pillow", version="1.0"),
        wheel_of_pip(),
    ]
    uv("venv", "--python", sys.executable, folder / "base")
    uv("pip", "install", "--no-deps", "--python", folder / "base", *found)
    real = Path(packaging.__file__).parent
    for path in (real, *real.parent.glob("packaging-*.dist-info")):
        shutil.copytree(path, site(folder / "base") / path.name)
    (site(folder / "base") / "rest-1.0.dist-info").mkdir()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The steps up to the check, in the Dockerfile's order and words."""
    folder = tmp_path_factory.mktemp("image")
    builder, wheels = Builder(folder), folder / "wheels"
    for name in ("build", "home", "temporary", "secrets", "opt/tools", "opt/wheel"):
        (folder / name).mkdir(parents=True)
    make_base(folder)
    write_lock(folder / "build", wheels)
    (folder / "build" / "pyproject.toml").write_text(PYPROJECT)
    (folder / "secrets" / "pip.conf").write_text(f"[global]\nno-index = 1\nfind-links = {wheels}\n")
    (folder / "secrets" / "uv.toml").write_text(f'no-index = true\nfind-links = ["{wheels}"]\n')
    for name in ("image_install.sh", "image_requirements.py"):
        copy_tool(builder, name, folder / "build")
    said = builder.must("image_requirements.py lists")
    assert f"kept from the base: torch {TORCH}" in said and "to install: 1 files" in said
    builder.must("uv venv")
    # Here the base is an environment too, so its packages must be named.
    (site(folder / "opt" / "venv") / "base.pth").write_text(str(site(folder / "base")))
    for name in ("dependencies.txt", "build.txt"):
        shutil.copy(folder / "build" / name, folder / "opt")
    builder.must("--requirement /opt/tst_megatron/dependencies.txt")
    write_project(folder / "opt" / "wheel")
    for name in ("image_record.py", "image_requirements.py"):
        copy_tool(builder, name, folder / "opt" / "tools")
    lock = hashlib.sha256((folder / "build" / "uv.lock").read_bytes()).hexdigest()
    builder.must("image_record.py write", lock=lock)
    return builder


def copy_tool(builder, name, folder):
    """A tool, with the folders of the Dockerfile moved as the instructions have them."""
    (folder / name).write_text(builder.here((ROOT / "tools" / name).read_text()))
    (folder / name).chmod(0o755)


def test_record_says_what_the_steps_made(image):
    record = json.loads((image.folder / "opt" / "image.json").read_text())
    assert record["kept"] == {"torch": TORCH} and record["torch_of_base"] == TORCH
    assert record["replaced"] == {"pillow": ["1.0", "2.0"]}
    assert record["versions"] == {
        "packaging": packaging.__version__,
        "pillow": "2.0",
        "torch": TORCH,
        "tst-megatron": "0.1.0",
    }
    assert record["apex"] is False and record["imported_in_base"] == []


def test_base_is_not_changed(image):
    assert (site(image.folder / "base") / "pillow-1.0.dist-info").is_dir()
    installed = {path.name for path in site(image.folder / "opt" / "venv").iterdir()}
    assert {"pillow-2.0.dist-info", "tst_megatron"} <= installed
    assert not [name for name in installed if name.startswith(("torch", "packaging"))]


def test_check_of_the_image_finds_nothing(image):
    done = image.run("image_record.py check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"user {os.getuid()}: 0 problems\n0.1.0\n"


def test_layer_of_an_older_lock_is_found(image, tmp_path):
    ours = site(image.folder / "opt" / "venv")
    (ours / "pillow-2.0.dist-info").rename(tmp_path / "taken")
    done = image.run("image_record.py check")
    (tmp_path / "taken").rename(ours / "pillow-2.0.dist-info")
    assert done.returncode == 1
    assert "error: uv.lock has pillow==2.0, and the image has 1.0: a layer of an" in done.stderr
    assert "error: tst-megatron needs pillow>=2, and the image has 1.0" in done.stderr


def test_torch_that_was_laid_over_the_base_is_found(image):
    ours = site(image.folder / "opt" / "venv")
    (ours / "torch.py").write_text("__version__ = '2.11.0'\n")
    done = image.run("image_record.py check")
    (ours / "torch.py").unlink()
    assert done.returncode == 1
    assert f"error: torch.__version__ was {TORCH} in the base: 2.11.0" in done.stderr


def test_megatron_that_cannot_be_imported_ends_the_build(image):
    module = site(image.folder / "opt" / "venv") / "tst_megatron" / "megatron" / "loop.py"
    text = module.read_text()
    module.write_text("import megatron.training\n")
    done = image.run("image_record.py check")
    module.write_text(text)
    assert done.returncode == 1
    assert "error: Megatron cannot be imported: ModuleNotFoundError: No module" in done.stderr
