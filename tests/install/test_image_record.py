"""What an image is said to have, and what its check finds: this environment as if it were one."""

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import image_record
from image_requirements import installed

FACTS = {
    "base_image": "registry/base:1@sha256:12",
    "revision": "abc",
    "version": "0.1.0",
    "created": "2026-11-26T00:00:00Z",
    "lock_sha256": "",
}
LOCK = b"a lock"
TORCH = "2.13.0a0+8145d630e8.nv26.06"
LIBRARIES = {"cuda": "13.3", "cudnn": 92300, "nccl": "2.30.7"}


def answer(code):
    """What torch would say, which takes seconds to import."""
    if image_record.APEX in code:
        error = f"Traceback\nModuleNotFoundError: No module named '{image_record.APEX}'\n"
        return subprocess.CompletedProcess([], 1, "", error)
    said = json.dumps(LIBRARIES) if code == image_record.LIBRARIES else TORCH
    return subprocess.CompletedProcess([], 0, f"a warning\n{said}\n", "")


@pytest.fixture(autouse=True)
def torch_that_answers(monkeypatch):
    monkeypatch.setattr(image_record, "run_python", answer)


@pytest.fixture(scope="module")
def here():
    """This environment as if all of it were the base."""
    return {"torch": TORCH, "distributions": installed(), "imported": ["torchvision"]}


@pytest.fixture
def record(here):
    return image_record.record_of(here, LOCK, FACTS)


def write(monkeypatch, tmp_path, here, *arguments):
    (tmp_path / "base.json").write_text(json.dumps(here))
    (tmp_path / "uv.lock").write_bytes(LOCK)
    files = [f"--base={tmp_path / 'base.json'}", f"--lock={tmp_path / 'uv.lock'}"]
    command = ["x", "write", str(tmp_path / "image.json"), *files, *arguments]
    monkeypatch.setattr(sys, "argv", command)
    return image_record.main()


def test_record_has_the_version_of_everything_that_the_project_needs(record):
    there = installed()
    wanted = {"torch", "megatron-core", "numpy", "transformers", "tst-megatron", "lm-eval"}
    assert wanted <= record["versions"].keys()
    assert "pytest" not in record["versions"], "no tool of development"
    assert all(there[name] == version for name, version in record["versions"].items())
    assert record["kept"] == {name: there[name] for name in ("numpy", "torch", "triton")}
    assert record["replaced"] == {}


def test_record_names_what_it_was_built_from(record):
    assert record["lock_sha256"] == hashlib.sha256(LOCK).hexdigest()
    assert {name: record[name] for name in FACTS if name != "lock_sha256"} == {
        name: value for name, value in FACTS.items() if name != "lock_sha256"
    }
    assert record["libraries"] == LIBRARIES


def test_torch_is_asked_for_its_libraries(capsys):
    import torch

    exec(image_record.LIBRARIES)
    assert json.loads(capsys.readouterr().out)["cuda"] == torch.version.cuda


def test_package_of_the_base_in_another_version_is_said_to_be_replaced(here):
    older = {**here["distributions"], "pillow": "1.0"}
    found = image_record.record_of({**here, "distributions": older}, LOCK, FACTS)
    assert found["replaced"] == {"pillow": ["1.0", installed()["pillow"]]}


def test_record_without_apex_says_what_profiles_need(record):
    assert record["apex"] is False
    assert "need gradient-accumulation-fusion=false" in record["profile_note"]
    assert "No module named 'fused_weight_gradient_mlp_cuda'" in record["profile_note"]


def test_record_with_apex_says_that_profiles_may_use_it(monkeypatch):
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(image_record, "run_python", lambda code: done)
    assert image_record.has_apex() == (True, image_record.WITH_APEX)


def test_record_is_written_whole(monkeypatch, tmp_path, here, capsys):
    assert write(monkeypatch, tmp_path, here, "--revision=abc") == 0
    assert json.loads((tmp_path / "image.json").read_text())["revision"] == "abc"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "base.json",
        "image.json",
        "uv.lock",
    ]
    assert "apex: False" in capsys.readouterr().out


def test_hash_of_another_lock_is_refused_and_nothing_written(monkeypatch, tmp_path, here, capsys):
    assert write(monkeypatch, tmp_path, here, "--lock-sha256=12") == 1
    message = capsys.readouterr().err
    assert message.startswith("error: LOCK_SHA256 is 12, and uv.lock has ")
    assert "Leave it out, or take it from tools/image_build.sh" in message
    assert not (tmp_path / "image.json").exists()


def test_image_in_order_has_no_problem(record, tmp_path, monkeypatch):
    monkeypatch.setattr(image_record, "modules_of", lambda requirements: ["yaml"])
    imported = {**record, "imported_in_base": ["json"]}
    locked = f"numpy=={installed()['numpy']} \\\n    --hash=sha256:1\n"
    assert image_record.problems_of(imported, locked, {"HOME": str(tmp_path)}) == []
    overlay = {"sympy": ["99", "1.0"]}
    broken = {**record, "imported_in_base": ["gone_from_the_base"], "replaced": overlay}
    problems = image_record.problems_of(broken, "numpy==1.0\n", {"HOME": str(tmp_path)})
    assert [each.partition(",")[0].partition(":")[0] for each in problems] == [
        "uv.lock has numpy==1.0",
        "torch of the base needs sympy>=1.13.3",
        "gone_from_the_base cannot be imported",
    ]


def test_torch_that_changed_is_named_with_both_versions(record):
    replaced = {**record, "kept": {"torch": "2.13.0a0"}, "torch_of_base": "2.13.0a0+12"}
    first, second = image_record.changed(replaced)
    assert first == f"torch was 2.13.0a0 in the base image and is {installed()['torch']} now"
    assert second == f"torch.__version__ was 2.13.0a0+12 in the base: {TORCH}"


def test_kept_package_that_is_gone_is_named(record):
    gone = {**record, "kept": {"transformer-engine": "2.16.0"}}
    assert image_record.changed(gone) == [
        "transformer-engine was 2.16.0 in the base image and is gone now"
    ]


def test_torch_that_cannot_be_imported_any_more_is_named_with_the_reason(record, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "OSError: libcudart.so.13")
    monkeypatch.setattr(image_record, "run_python", lambda code: failed)
    found = image_record.changed({**record, "kept": {}})
    assert found == [f"torch.__version__ was {TORCH} in the base: OSError: libcudart.so.13"]


def test_base_without_torch_has_nothing_to_compare(record):
    assert image_record.changed({**record, "kept": {}, "torch_of_base": None}) == []


def packages(monkeypatch, **needs):
    """Packages that are there, as NAME=(VERSION, NEEDS...)."""
    monkeypatch.setattr(image_record, "installed", lambda: {n: v[0] for n, v in needs.items()})
    lines = {name: list(values[1:]) for name, values in needs.items()}
    monkeypatch.setattr(image_record.importlib.metadata, "requires", lambda name: lines[name])


def test_pre_release_of_the_base_is_enough(monkeypatch):
    packages(monkeypatch, ours=("1", "torch>=2.11"), torch=("2.13.0a0+8145d630e8.nv26.6",))
    versions, problems = image_record.closure(Requirement("ours"), kept=())
    assert problems == [] and versions["torch"] == "2.13.0a0+8145d630e8.nv26.6"


def test_needs_that_are_missing_or_too_old_are_all_named(monkeypatch):
    packages(monkeypatch, ours=("1", "a>=2", "c"), a=("1.5", "b; extra == 'x'", "d<1"), d=("1",))
    _, problems = image_record.closure(Requirement("ours"), kept=())
    assert problems == [
        "a needs d<1, and the image has 1",
        "ours needs a>=2, and the image has 1.5",
        "ours needs c, and the image has none",
    ]


def test_extras_are_followed_and_needs_of_kept_packages_are_not(monkeypatch):
    packages(
        monkeypatch, ours=("1", "a[x]", "torch"), a=("1", "b; extra == 'x'"), torch=("2", "gone")
    )
    versions, problems = image_record.closure(Requirement("ours"), kept={"torch"})
    assert problems == ['a needs b; extra == "x", and the image has none']
    assert versions == {"ours": "1", "a": "1", "torch": "2"}


def test_needs_that_no_installer_reads_any_more_are_passed_over(monkeypatch):
    packages(monkeypatch, old=("1", "PyYAML (>=5.1.*)", "a"), a=("1",))
    assert [each.name for each in image_record.needs(Requirement("old"))] == ["a"]


def test_version_of_another_lock_is_named_with_both_versions(monkeypatch):
    packages(monkeypatch, a=("1.0",), b=("2.0",))
    locked = "".join(
        f"{line} \\\n    --hash=sha256:1 \\\n    --hash=sha256:2\n"
        for line in ("a==1.1", "b==2.0", "c==3", "d==4 ; sys_platform == 'win32'")
    )
    first, second = image_record.not_as_locked(f"# a comment\n{locked}")
    assert first == (
        "uv.lock has a==1.1, and the image has 1.0: a layer of an older build was used. "
        "Build again with --no-cache"
    )
    assert second.startswith("uv.lock has c==3, and the image has none: ")


def test_need_of_a_kept_package_that_the_overlay_breaks_is_named(monkeypatch):
    packages(
        monkeypatch,
        torch=("2", "onnx", "a<2", "never-met"),
        onnx=("1", "protobuf<6"),
        protobuf=("6.1",),
        a=("3",),
    )
    replaced = {"protobuf": ["5.1", "6.1"], "a": ["2.5", "3"]}
    (problem,) = image_record.broken_by_ours({"torch"}, replaced)
    assert problem == (
        "onnx of the base needs protobuf<6: the base has 5.1, and uv.lock lays 6.1 over it. Add "
        "protobuf to KEPT in tools/image_requirements.py, or lock a version that fits"
    ), "a<2 was not met in the base either"
    assert image_record.broken_by_ours({"torch"}, {}) == []


def megatron_that_fails(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nOSError: libcuda.so.1")
    monkeypatch.setattr(image_record, "run_python", lambda code: failed)


def test_megatron_that_cannot_be_imported_is_a_problem(record, monkeypatch, capsys):
    megatron_that_fails(monkeypatch)
    problem = "Megatron cannot be imported: OSError: libcuda.so.1"
    assert image_record.without_megatron(record) == [problem]
    with_engine = {**record, "kept": {"transformer-engine": "2.16"}}
    worked = {**with_engine, "imported_in_base": ["transformer_engine.pytorch"]}
    assert image_record.without_megatron(worked) == [problem]
    assert capsys.readouterr().out == ""


def test_machine_whose_base_cannot_import_transformer_engine_may_build(record, monkeypatch, capsys):
    megatron_that_fails(monkeypatch)
    with_engine = {**record, "kept": {"transformer-engine": "2.16"}}
    assert image_record.without_megatron(with_engine) == []
    assert capsys.readouterr().out.startswith("note: Megatron cannot be imported: OSError: lib")


def test_megatron_is_imported_as_training_does_it():
    names = {line.split()[1] for line in image_record.MEGATRON.splitlines() if "import" in line}
    assert names == {"tst_megatron.megatron.cpu", "tst_megatron.megatron.loop"}
    compile(image_record.MEGATRON, "x", "exec")


def test_extras_of_the_image_are_all_but_that_of_the_base():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert image_record.ours().extras == project["optional-dependencies"].keys() - {"gpu"}


def test_every_module_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("raise OSError('libcuda.so.1')")
    (tmp_path / "ends_it.py").write_text("import os; os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert image_record.not_importable(["json", "broken_one", "yaml", "ends_it", "not_there"]) == [
        "broken_one cannot be imported: OSError: libcuda.so.1",
        "ends_it cannot be imported: exit status 7",
        "not_there cannot be imported: ModuleNotFoundError: No module named 'not_there'",
    ]


def test_modules_are_those_under_which_packages_are_imported():
    wanted = [Requirement(name) for name in ("pyyaml", "nvidia-modelopt", "protobuf")]
    assert {"yaml", "modelopt", "google"} <= set(image_record.modules_of(wanted))


def test_package_without_a_name_has_no_module_and_no_version(monkeypatch, tmp_path):
    (tmp_path / "broken-1.0.dist-info").mkdir()
    (tmp_path / "broken-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\n")
    (tmp_path / "broken-1.0.dist-info" / "RECORD").write_text("broken.py,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "packaging" in installed() and None not in installed()
    assert image_record.modules_of([Requirement("pyyaml")]) == ["yaml"]


def test_home_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    (problem,) = image_record.not_writable({"HOME": str(tmp_path / "file")})
    assert f"cannot write to {tmp_path / 'file'} (HOME)" in problem
    assert image_record.not_writable({"HOME": str(tmp_path)}) == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is left behind"


def test_user_without_a_name_is_told_what_gives_one(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(image_record.os, "getuid", lambda: 12345)
    assert image_record.nameless() == [
        "user 12345 has no name: set LNAME, which the Dockerfile does"
    ]
    monkeypatch.setenv("LNAME", "tst")
    assert image_record.nameless() == []


def test_problems_are_told_at_once_and_end_with_status_1(monkeypatch, tmp_path, capsys):
    (tmp_path / "image.json").write_text("{}")
    (tmp_path / "dependencies.txt").write_text("")
    monkeypatch.setattr(image_record, "problems_of", lambda *given: ["one", "two"])
    monkeypatch.setattr(sys, "argv", ["x", "check", str(tmp_path / "image.json")])
    assert image_record.main() == 1
    assert capsys.readouterr().err == "error: one\nerror: two\n"
