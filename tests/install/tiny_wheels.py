"""Wheels and sources of a few lines, built without a network: what tests fetch and install."""

import ensurepip
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

BACKEND = """
import sys
sys.path.insert(0, {here!r})
from tiny_wheels import write_wheel

def build_wheel(folder, config_settings=None, metadata_directory=None):
    from pathlib import Path
    return write_wheel(Path(folder), {name!r}, module="VALUE = 'built'").name

def build_editable(folder, config_settings=None, metadata_directory=None):
    from pathlib import Path
    return write_wheel(Path(folder), {name!r}, module="VALUE = 'editable'").name
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[tool.uv]
dependency-metadata = [{ name = "needs-cuda" }]
"""


def write_wheel(folder, name, *, version="1.0", tag="py3-none-any", module="VALUE = 41"):
    """A wheel of one module, whose name is the package's."""
    package = name.replace("-", "_")
    path = Path(folder) / f"{package}-{version}-{tag}.whl"
    info = f"{package}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    tags = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, text in [
            (f"{package}.py", f"{module}\n"),
            (f"{info}/METADATA", metadata),
            (f"{info}/WHEEL", tags),
            (f"{info}/RECORD", ""),
        ]:
            # One time for all files: the same wheel has the same sum.
            wheel.writestr(zipfile.ZipInfo(inside), text)
    return path


def sources(name):
    """Path to text of a project that needs nothing to be built."""
    backend = BACKEND.format(here=str(Path(__file__).parent), name=name)
    return {"pyproject.toml": PYPROJECT, "backend.py": backend}


def write_source(folder, name, *, version="1.0"):
    """A source package of which there is no wheel."""
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}.tar.gz"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with tarfile.open(path, "w:gz") as archive:
        for inside, text in {**sources(name), "PKG-INFO": metadata}.items():
            entry = tarfile.TarInfo(f"{stem}/{inside}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def wheel_of_pip():
    """The pip that comes with Python."""
    (wheel,) = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    return wheel


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
