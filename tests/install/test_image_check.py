"""image-check on machines that cannot run it, with programs that only pretend; nothing is built."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "image_check.sh"
PROGRAMS = ("awk", "bash", "cat", "chmod", "df", "dirname", "grep", "mkdir", "mktemp", "rm", "sed")
PROGRAMS += ("sort", "tail", "tr")
# Looked for before anything starts.
NEEDED = ("buildah", "debootstrap", "git", "ip", "unshare", "uv", "python3.12")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="image-check needs root")


@pytest.fixture
def machine(tmp_path):
    """A machine with few programs: those of the fixture's folder."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).symlink_to(shutil.which(name))
    for name in NEEDED:
        pretend(programs, name, "exit 0")
    pretend(programs, "df", "echo Avail; echo 99G")
    (tmp_path / "tmp").mkdir()
    return tmp_path


def pretend(programs, name, line):
    (programs / name).unlink(missing_ok=True)
    (programs / name).write_text(f"#!{programs}/bash\n{line}\n")
    (programs / name).chmod(0o755)


def check(machine):
    environment = {"PATH": str(machine / "bin"), "TMPDIR": str(machine / "tmp")}
    command = [machine / "bin" / "bash", SCRIPT]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_user_other_than_root_is_told_why_root():
    script = SCRIPT.read_text()
    command, environment = ["bash", "-s"], {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, input=script, env=environment, cwd="/", user=65532, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "error: image-check needs root: it makes a base image with debootstrap\n"


def test_programs_that_are_missing_are_all_named(machine):
    for name in ("buildah", "debootstrap"):
        (machine / "bin" / name).unlink()
    done = check(machine)
    assert done.returncode == 1
    assert done.stderr.startswith("error: not installed: buildah debootstrap. apt-get install ")


def test_machine_without_python_3_12_is_told_so(machine):
    (machine / "bin" / "python3.12").unlink()
    assert "error: no python3.12 on PATH: the base gets a copy of it" in check(machine).stderr


def test_full_disk_is_found_before_it_is_full(machine):
    pretend(machine / "bin", "df", "echo Avail; echo 12G")
    done = check(machine)
    assert done.returncode == 1
    assert f"{machine / 'tmp'} has 12 GB free, and the build takes 35: set TMPDIR" in done.stderr


def test_failure_ends_with_its_status_and_leaves_nothing(machine):
    pretend(machine / "bin", "buildah", "echo no storage >&2; exit 7")
    done = check(machine)
    assert done.returncode == 7
    assert "no storage" in done.stderr and "image-check: failed with status 7" in done.stderr
    assert list((machine / "tmp").iterdir()) == []
