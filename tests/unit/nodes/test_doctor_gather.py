"""What is collected from the real machine, and what broken packages and tools give."""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tst_megatron.nodes.doctor import gather, gather_machine, probe
from tst_megatron.nodes.doctor.facts import Image
from tst_megatron.nodes.doctor.packages import metadata_findings
from tst_megatron.nodes.doctor.probe import ask
from tst_megatron.system.machine import nvidia_smi


def put(folder, **files):
    """Modules by their dotted names with their text."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A folder in front of all others on Python's path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


# --- probes ---------------------------------------------------------------------------------------

WGRAD = "fused_weight_gradient_mlp_cuda"
CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "raise OSError('libcudart.so.13: no such file')",
            "OSError: libcudart.so.13: no such file",
        ),
        ("import absent_package", "ModuleNotFoundError: No module named 'absent_package'"),
        ("raise ImportError('first\\n  second')", "ImportError: first second"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 +", "SyntaxError: invalid syntax (deep_ep.py, line 1)"),
        (CRASH, "the process was ended by SIGSEGV"),
        ("import os; os._exit(7)", "the process ended with status 7: no word"),
        ("raise RuntimeError('x' * 900)", f"RuntimeError: {'x' * 386}..."),
    ],
)
def test_broken_package_is_an_answer_of_one_line(path, text, problem):
    put(path, deep_ep=text)
    assert ask("deep_ep").problem == problem


def test_package_that_hangs_is_an_answer(path):
    put(path, deep_ep="import time; time.sleep(60)")
    start = time.monotonic()
    assert ask("deep_ep", seconds=1).problem == "hung for 1 s"
    assert time.monotonic() - start < 20


def test_process_that_a_package_left_behind_is_not_waited_for(path):
    put(path, deep_ep="import subprocess; subprocess.Popen(['sleep', '15'])\nHybridEPBuffer = 1")
    start = time.monotonic()
    assert ask("deep_ep").answers == {"has_hybrid_ep": True}
    assert time.monotonic() - start < 10


def test_package_may_print_and_crash_at_its_end(path):
    put(path, deep_ep=f"print('hello')\nimport atexit\natexit.register(lambda: exec({CRASH!r}))")
    answer = ask("deep_ep")
    assert (answer.answers, answer.problem) == ({"has_hybrid_ep": False}, None)


def test_modules_are_found_without_being_imported(path):
    put(path, apex__other="", deep_ep="raise SystemExit('imported')")
    (path / "apex" / "__init__.py").write_text("raise SystemExit('imported')")
    answers = ask("modules").answers
    assert answers["apex"] == str(path / "apex" / "__init__.py")
    assert answers["deep_ep"] == str(path / "deep_ep.py")
    assert "transformers" in answers and WGRAD not in answers


def test_extension_of_megatron_for_another_python_is_named(path):
    put(path, megatron__core__datasets__other="")
    for folder in ("megatron", "megatron/core"):
        (path / folder / "__init__.py").touch()
    (path / "megatron/core/datasets/helpers_cpp.cpython-310-x86_64-linux-gnu.so").touch()
    assert "there is helpers_cpp.cpython-310-x86_64-linux-gnu.so" in ask("helpers").problem


def test_extension_that_is_no_library_is_named(path):
    put(path, megatron__core__datasets__other="")
    for folder in ("megatron", "megatron/core"):
        (path / folder / "__init__.py").touch()
    suffix = probe.importlib.machinery.EXTENSION_SUFFIXES[0]
    (path / f"megatron/core/datasets/helpers_cpp{suffix}").write_text("no library")
    assert "ImportError" in ask("helpers").problem


# --- packages -------------------------------------------------------------------------------------


def test_requirements_are_those_of_the_checkout(tmp_path):
    project = tmp_path / "pyproject.toml"
    project.write_text(
        '[project]\nname = "tst-megatron"\nrequires-python = ">=3.12"\n'
        'dependencies = ["a>=1", "b; python_version < \'3\'", "c>2; python_version > \'3\'"]\n'
        '[project.optional-dependencies]\ndata = ["d[x]==1"]\n'
    )
    assert gather._required(project) == (">=3.12", {"": ("a>=1", "c>2"), "data": ("d[x]==1",)})


def test_requirements_of_an_installed_package_are_those_of_its_metadata(path):
    folder = path / "tst_megatron-9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: tst-megatron\nVersion: 9\nRequires-Python: >=3.12\n"
        "Requires-Dist: torch>=2.11\nRequires-Dist: zstandard; extra == 'data'\n"
        "Provides-Extra: data\n"
    )
    assert gather._required(path / "pyproject.toml") == (
        ">=3.12",
        {"": ("torch>=2.11",), "data": ("zstandard",)},
    )


def test_copies_are_in_the_order_of_the_path_and_editable_ones_are_at_their_source(path):
    for folder, text in (("Tst_Megatron-1.dist-info", "9.1"), ("broken-2.dist-info", "")):
        (path / folder).mkdir()
        name = "Tst_Megatron" if text else "broken"
        version = f"Version: {text}\n" if text else ""
        (path / folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\n{version}")
    (path / "nameless-1.dist-info").mkdir()
    (path / "Tst_Megatron-1.dist-info" / "direct_url.json").write_text(
        json.dumps({"url": "file:///src/with%20space", "dir_info": {"editable": True}})
    )
    named, _ = gather._named(gather.importlib.metadata.distributions())
    copies, damaged = gather._copies(named)
    assert damaged == []
    assert (copies["tst-megatron"][0].version, copies["tst-megatron"][0].folder) == (
        *("9.1", "/src/with space"),
    )
    assert copies["broken"][0].version is None
    assert "nameless" not in copies and "torch" in copies


def metadata(folder, name, *lines):
    """Metadata of a distribution of version 1."""
    place = folder / f"{name.replace('-', '_')}-1.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("\n".join([f"Name: {name}", "Version: 1", *lines, ""]))
    return place


def test_old_requirement_of_a_package_that_nobody_needs_is_no_matter(path):
    metadata(path, "legacy", "Requires-Dist: PyYAML (>=5.1.*)")
    assert gather._packages(path / "image.json").damaged == ()


def test_old_requirement_of_a_package_that_is_needed_is_a_note(path):
    metadata(path, "numpy", "Requires-Dist: PyYAML (>=5.1.*)")
    packages = gather._packages(path / "image.json")
    (finding,) = metadata_findings(packages)
    assert finding.level == "note"
    assert "numpy: " in finding.found and "PyYAML (>=5.1.*)" in finding.found
    assert packages.requires["numpy"] == () and packages.requires["torch"]


@pytest.mark.parametrize("text", ["{", "[]", '{"dir_info": {"editable": true}}'])
def test_damaged_origin_of_a_package_is_a_note_and_its_copy_counts(path, text):
    (metadata(path, "numpy") / "direct_url.json").write_text(text)
    packages = gather._packages(path / "image.json")
    assert packages.copies["numpy"][0].folder == str(path)
    (finding,) = metadata_findings(packages)
    assert finding.found.startswith(f"numpy in {path}: direct_url.json: ")


def test_metadata_that_are_no_text_are_a_note(path):
    (metadata(path, "strange") / "METADATA").write_bytes(b"Name: \xff\n")
    (finding,) = metadata_findings(gather._packages(path / "image.json"))
    assert f"{path}/strange-1.dist-info: " in finding.found


@pytest.mark.parametrize(
    "text", ["[tool.x]\n", '[project]\nname = "other"\n', "project = 1\n", "<<<<\n"]
)
def test_project_file_of_another_package_is_left_alone(path, text):
    metadata(path, "tst-megatron", "Requires-Python: >=3", "Requires-Dist: torch")
    (path / "pyproject.toml").write_text(text)
    assert gather._required(path / "pyproject.toml") == (">=3", {"": ("torch",)})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'versions'"),
        ('{"versions": []}', "AttributeError"),
    ],
)
def test_damaged_file_of_an_image_is_a_problem(tmp_path, text, problem):
    file = tmp_path / "image.json"
    file.write_text(text)
    assert problem in gather.read_image(file).problem


def test_file_of_an_image_is_read_and_may_be_missing(tmp_path):
    file = tmp_path / "image.json"
    assert gather.read_image(file) is None
    file.write_text(json.dumps({"versions": {"torch": "2.13.0a0+81"}, "apex": False, "base": "x"}))
    assert gather.read_image(file) == Image(versions={"torch": "2.13.0a0+81"}, has_apex=False)


# --- machine --------------------------------------------------------------------------------------


def test_facts_of_this_machine_are_of_this_process(tmp_path):
    facts = gather_machine.machine(tmp_path / "runs" / "new", Path(__file__))
    assert [disk.name for disk in facts.disks][0] == "run folder"
    assert all(disk.free_gib and not disk.problem for disk in facts.disks[:2])
    assert "lo" in facts.interfaces
    assert facts.limits.keys() == {"nofile", "nproc", "memlock", "core", "as"}
    assert abs(facts.now - time.time()) < 60
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_to_is_a_problem(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(gather_machine.node, "probe_seconds", refuse)
    assert gather_machine._disk("run folder", tmp_path).problem == "Permission denied"


def test_folder_that_cannot_be_made_names_where_it_would_be():
    disk = gather_machine._disk("run folder", Path("/proc/absent/run"))
    assert disk.problem.startswith("not there, and in /proc no file can be written: ")


@pytest.mark.parametrize(
    ("said", "files", "most"),
    [
        ("0::/\n", {"pids.max": "300"}, 300),
        ("0::/a/b\n", {"pids.max": "max", "a/pids.max": "90", "a/b/pids.max": "200"}, 90),
        ("0::/host/scope\n", {"pids.max": "77"}, 77),
        ("5:cpu:/x\n3:pids:/a\n0::/z\n", {"pids/a/pids.max": "40", "z/pids.max": "50"}, 40),
        ("0::/a\n", {"a/pids.max": "max"}, None),
        ("", {}, None),
    ],
)
def test_container_allows_what_all_its_groups_allow(tmp_path, said, files, most):
    (tmp_path / "self").write_text(said)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    assert gather_machine._most_tasks(tmp_path / "self", tmp_path / "groups") == most
    assert gather_machine._most_tasks(tmp_path / "absent", tmp_path / "absent") is None


@pytest.mark.parametrize(("status", "may_lock"), [(0, True), (-1, False)])
def test_locking_memory_is_tried_for_a_capability_may_be_of_a_user_namespace(
    monkeypatch, status, may_lock
):
    asked = []

    class Library:
        def mlock(self, _, size):
            asked.append(size.value)
            return status

        def munlock(self, *_):
            return 0

    monkeypatch.setattr(gather_machine, "_has_capability", lambda _: True)
    monkeypatch.setattr(gather_machine.ctypes, "CDLL", lambda _: Library())
    assert gather_machine._may_lock_beyond(65536) is may_lock
    assert asked[0] > 65536
    # What would fill the machine is not tried.
    assert gather_machine._may_lock_beyond(2**40) is True
    assert len(asked) == 1


def test_file_in_place_of_a_folder_is_a_problem(tmp_path):
    (tmp_path / "runs").write_text("")
    assert gather_machine._disk("run folder", tmp_path / "runs").problem == "Not a directory"


def test_machine_without_a_temporary_folder_is_a_problem(monkeypatch):
    def refuse():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(gather_machine.tempfile, "gettempdir", refuse)
    (disk,) = gather_machine._disks(None)
    assert "No usable temporary directory" in disk.problem


def test_caches_are_where_the_variables_say(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    paths = {disk.name: disk.path for disk in gather_machine._disks(None)}
    assert paths["Triton's cache"] == str(tmp_path / "triton")
    assert paths["cache of torch.compile"] == str(tmp_path / "inductor")


def test_clock_is_read_and_left_alone(monkeypatch):
    assert gather_machine._is_clock_synchronised() in (True, False, None)

    class Library:
        def __init__(self, status, state):
            self.status, self.state = status, state

        def adjtimex(self, answer):
            assert answer.raw == bytes(gather_machine.TIMEX_BYTES), "modes of 0 change nothing"
            gather_machine.struct.pack_into("i", answer, 40, self.status)
            return self.state

    for status, state, wanted in ((0x40, 5, False), (0x2001, 0, True), (0, -1, None)):
        monkeypatch.setattr(gather_machine.ctypes, "CDLL", lambda _, s=(status, state): Library(*s))
        assert gather_machine._is_clock_synchronised() is wanted


def test_user_without_a_name_is_none(monkeypatch):
    def refuse(_):
        raise KeyError("getpwuid(): uid not found: 70000")

    names = ("LOGNAME", "USER", "LNAME", "USERNAME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", refuse)
    assert gather_machine._user() is None
    for name in names:
        monkeypatch.setenv(name, "someone")
        assert gather_machine._user() == "someone"
        monkeypatch.delenv(name)


def test_nvidia_smi_that_is_on_the_path_is_asked(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, 3, No, No, Completed, 30, 4'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    problems = nvidia_smi.gpu_problems(gather._gpus().health, is_idle=False)
    assert problems == ["GPU 0: 3 uncorrected ECC errors since its last reset. Reset it"]


def test_nvidia_smi_that_prints_strange_bytes_is_a_problem(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'GPU \\377 is lost\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gather._gpus().health.problem == "nvidia-smi: GPU \ufffd is lost"


def test_nvidia_smi_that_hangs_without_a_driver_is_not_waited_for(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 20\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(gather, "SECONDS_WITHOUT_DRIVER", 0.2)
    monkeypatch.setattr(gather.node, "driver_version", lambda: None)
    assert "timed out" in gather._gpus().health.problem


# --- all of it ------------------------------------------------------------------------------------


def test_questions_follow_what_is_there(monkeypatch, tmp_path):
    asked = []

    def answer(name, *, seconds):
        asked.append(name)
        modules = {"torch": "t", "megatron.core": "m"} if name == "modules" else {}
        return probe.Probe(answers=modules)

    monkeypatch.setattr(gather, "ask", answer)
    facts = gather.gather(folder=None, image=tmp_path / "image.json")
    assert sorted(asked) == ["helpers", "modules", "torch"]
    assert facts.probes.keys() == {"modules", "torch", "helpers"}
    assert facts.packages.image is None
    gather.gather(folder=None, with_imports=True, image=tmp_path / "image.json")
    assert asked.count("megatron") == 1


def test_answers_belong_to_their_questions(monkeypatch, tmp_path):
    def answer(name, *, seconds):
        time.sleep(0.05 if name == "torch" else 0)
        modules = {"torch": "t", "megatron.core": "m"} if name == "modules" else {"name": name}
        return probe.Probe(answers=modules)

    monkeypatch.setattr(gather, "ask", answer)
    facts = gather.gather(folder=None, image=tmp_path / "image.json")
    assert {name: facts.probes[name].answers["name"] for name in ("torch", "helpers")} == {
        "torch": "torch",
        "helpers": "helpers",
    }


def test_path_of_the_process_that_asks_is_that_of_the_one_that_answers(path):
    put(path, deep_ep="import sys; raise ImportError(sys.path[0])")
    assert ask("deep_ep").problem == f"ImportError: {path}"
    assert sys.path[0] == str(path)


def test_every_gpu_computes_a_sum(monkeypatch):
    from tst_megatron.megatron.cpu import device

    def ones(size, *, device):
        if device == "cuda:2":
            raise RuntimeError("CUDA error: uncorrectable ECC error\nmore")
        return real(size)

    real = device.torch.ones
    seen = SimpleNamespace(name="H100", major=9, minor=0)
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device.torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(device.torch.cuda, "get_device_properties", lambda _: seen)
    monkeypatch.setattr(device.torch, "ones", ones)
    monkeypatch.setattr(device, "_nccl_version", lambda: "2.28.9")
    monkeypatch.setattr(device, "_start_gloo", lambda: None)
    said = device.seen_by_torch()
    assert said["sum_problems"] == [None, None, "CUDA error: uncorrectable ECC error"]
    assert (said["num_gpus"], len(said["gpus"])) == (3, 2)
