"""The command itself, in environments that lack what it looks for."""

import json
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from tst_megatron.nodes.doctor import gather, packages, probe

ROOT = Path(__file__).resolve().parents[3]
START = (
    "import sys; sys.path.extend(sys.argv.pop(1).split(':')); from tst_megatron.cli.app import main"
)


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """This environment's packages, all but torch."""
    site = tmp_path_factory.mktemp("site")
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith(("torch-", "torch_")) and path.name != "torch":
            (site / path.name).symlink_to(path)
    return site


def doctor(*options, folders, environment=None):
    """Run the command with these folders as Python's path, apart from the standard library."""
    path = ":".join(map(str, (*folders, ROOT)))
    # Neither the environment's own packages nor variables that change the path.
    command = [sys.executable, "-I", "-S", "-c", f"{START}; main()", path, "doctor", *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_missing_torch_is_named_with_its_fix_and_status_1(without_torch):
    done = doctor("--json", folders=[without_torch])
    assert (done.returncode, done.stderr) == (1, "")
    problems = [each for each in json.loads(done.stdout)["findings"] if each["level"] == "problem"]
    (torch,) = [each for each in problems if each["check"] == "torch"]
    assert (torch["found"], torch["needed"]) == ("not installed", "torch>=2.11")
    assert torch["fix"].startswith(f"uv pip install --python {sys.executable} 'torch>=2.11'")


def test_namesake_of_apex_and_gpus_without_torch_are_named(without_torch, tmp_path):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "apex-0.9.10.dev0.dist-info").mkdir()
    (tmp_path / "apex-0.9.10.dev0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: apex\nVersion: 0.9.10.dev0\n"
    )
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, 3, No, No, Completed, 30, 4'\n")
    tool.chmod(0o755)
    done = doctor(
        folders=[tmp_path, without_torch],
        environment={"PATH": f"{tmp_path}:{os.environ['PATH']}", "NCCL_SOCKET_IFNAME": "absent9"},
    )
    assert done.returncode == 1
    for words in (
        "profile bf16 (none was asked for",
        f"0.9.10.dev0 in {tmp_path}/apex, a namesake: another project, not NVIDIA's",
        f"fix: uv pip uninstall --python {sys.executable} apex",
        "GPU 0: 3 uncorrected ECC errors",
        "NCCL_SOCKET_IFNAME",
        "absent9, and there are lo",
        "needed: transformer-engine[core-cu13,pytorch]==2.20.2, for profile bf16",
    ):
        assert words in done.stdout


def test_broken_torch_is_a_finding(without_torch, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libnccl.so.2: no such file')")
    (tmp_path / "torch-2.11.0.dist-info").mkdir()
    (tmp_path / "torch-2.11.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0\n"
    )
    done = doctor(folders=[tmp_path, without_torch])
    assert done.returncode == 1
    assert "2.11.0: OSError: libnccl.so.2: no such file" in done.stdout
    assert "--reinstall-package torch 'torch==2.11.0'" in done.stdout


def test_image_is_compared_with_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(gather, "ask", lambda *_, **__: probe.Probe())
    file = tmp_path / "image.json"
    built = {"numpy": version("numpy"), "Megatron_Core": version("megatron-core")}
    for versions, level in ((built, "ok"), ({**built, "numpy": "1.0"}, "problem")):
        file.write_text(json.dumps({"versions": versions, "apex": False}))
        facts = gather.gather(folder=None, image=file)
        (finding,) = packages.image_findings(facts.packages)
        assert finding.level == level
    assert finding.found == f"numpy was 1.0 and is {version('numpy')}"


def test_this_environment_has_what_the_project_requires():
    """The versions in uv.lock, torch itself and Megatron's extension among them."""
    done = doctor("--json", folders=[sysconfig.get_paths()["purelib"]])
    findings = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    for check in ("Python", "packages", "torch", "megatron-core", "gloo"):
        assert findings[check]["level"] == "ok", findings[check]
