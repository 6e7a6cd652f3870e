"""The command on invented machines: verdicts, grades, and how they are shown."""

import json
import re
import subprocess
import sys
from pathlib import Path

import doctor_facts as of
import pytest
from doctor_facts import by_level, healthy, without_gpu, without_shared_memory

from tst_megatron.cli.app import main
from tst_megatron.nodes.doctor.diagnose import findings_of
from tst_megatron.nodes.doctor.facts import Image, Probe
from tst_megatron.nodes.doctor.gpus import default_profile
from tst_megatron.system.machine.nvidia_smi import FIELDS, Answer, parse

ROOT = Path(__file__).resolve().parents[3]
B200 = {"name": "NVIDIA B200", "capability": [10, 0]}


@pytest.mark.parametrize("profile", ["bf16", "tuned", "fp8"])
def test_healthy_node_has_neither_problems_nor_notes(doctor, profile):
    status, out = doctor(healthy(), "--profile", profile)
    assert status == 0
    assert "No problem found, 0 notes" in out
    assert by_level(healthy(), profile, "note") == []


def test_healthy_blackwell_node_may_train_in_mxfp8_and_not_quite_in_fp8():
    facts = of.with_torch(healthy(), gpus=[B200] * 8)
    assert by_level(facts, "mxfp8", "problem") == by_level(facts, "mxfp8", "note") == []
    assert by_level(facts, "fp8", "problem") == []
    (finding,) = by_level(facts, "fp8", "note")
    assert "Hopper, for which profile fp8 is made" in finding.needed


# --- without a GPU --------------------------------------------------------------------------------


def test_machine_without_gpu_may_train_on_the_cpu_and_says_what_for(doctor):
    status, out = doctor(without_gpu())
    assert status == 0
    assert "profile cpu (none was asked for" in out
    assert "on the CPU only small runs make sense" in out


@pytest.mark.parametrize("profile", ["bf16", "tuned", "mxfp8", "fp8"])
def test_machine_without_gpu_cannot_train_with_a_gpu_profile(doctor, profile):
    status, out = doctor(without_gpu(), "--profile", profile)
    assert status == 1
    assert "no NVIDIA driver is loaded" in out
    assert f"needed: transformer-engine[core-cu13,pytorch]==2.20.2, for profile {profile}" in out


def test_profile_is_bf16_where_there_is_a_gpu_even_if_torch_is_broken():
    assert default_profile(healthy()) == "bf16"
    assert default_profile(of.with_probe(healthy(), "torch", Probe(problem="broken"))) == "bf16"
    assert default_profile(without_gpu()) == "cpu"


def test_profile_cpu_is_refused_beside_a_gpu(doctor):
    status, out = doctor(healthy(), "--profile", "cpu")
    assert status == 1
    assert "torch sees 8" in out and "export CUDA_VISIBLE_DEVICES=" in out


def test_hidden_gpus_leave_the_cpu():
    facts = of.with_torch(healthy(), num_gpus=0, gpus=[])
    assert by_level(facts, "cpu", "problem") == []
    assert any("none that this process may use" in each.found for each in findings_of(facts, "cpu"))


def test_broken_transformer_engine_is_a_note_on_the_cpu():
    facts = of.with_probe(without_gpu(), "transformer engine", Probe(problem=of.NO_SUCH_LIBRARY))
    assert by_level(facts, "cpu", "problem") == []
    assert any(of.NO_SUCH_LIBRARY in each.found for each in by_level(facts, "cpu", "note"))


# --- one cause, one problem -----------------------------------------------------------------------


def test_missing_torch_is_one_problem():
    facts = of.without_torch(of.with_probe(healthy(), "megatron", None))
    assert [each.check for each in by_level(facts, "bf16", "problem")] == ["torch"]


def test_broken_torch_is_not_blamed_on_megatron():
    broken = Probe(problem=of.NO_SUCH_LIBRARY)
    facts = of.with_probe(of.with_probe(healthy(), "torch", broken), "megatron", broken)
    assert [each.check for each in by_level(facts, "bf16", "problem")] == ["torch"]


def test_broken_package_names_the_variables_that_may_have_broken_it():
    facts = of.with_probe(healthy(), "torch", Probe(problem=of.NO_SUCH_LIBRARY))
    facts = of.with_machine(facts, environment={"LD_LIBRARY_PATH": "/opt/cuda-12/lib"})
    (finding,) = by_level(facts, "bf16", "problem")
    assert finding.fix.startswith("try without LD_LIBRARY_PATH; else uv pip install")


# --- grades ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["bf16", "cpu"])
def test_unsynchronised_clock_is_a_note_with_its_fix(profile):
    for state, words in ((False, "not synchronised"), (None, "does not say whether")):
        facts = of.with_machine(without_gpu(), is_clock_synchronised=state)
        (finding,) = [each for each in findings_of(facts, profile) if each.check == "clock"]
        assert (finding.level, words in finding.found) == ("note", True)
        assert "chronyd" in finding.fix and "preflight compares" in finding.needed


def test_forward_compatibility_makes_an_old_driver_fit():
    facts = of.with_gpus(healthy(), driver="570.86.15")
    (finding,) = by_level(facts, "bf16", "note")
    assert "570.86.15, made to fit by forward compatibility" in finding.found


def test_driver_of_a_cuda_that_is_not_known_is_left_to_torch():
    facts = of.with_torch(of.with_gpus(healthy(), driver="570.1"), cuda="15.0")
    assert by_level(facts, "bf16", "problem") == []


def test_newer_nccl_is_a_note_and_that_of_an_image_is_fine():
    newer = of.with_torch(healthy(), nccl="2.30.7", nccl_file="/usr/lib/libnccl.so.2")
    (finding,) = by_level(newer, "bf16", "note")
    assert "2.30.7 from /usr/lib/libnccl.so.2, while nvidia-nccl-cu13 is 2.28.9" in finding.found
    image = of.with_packages(newer, copies=of.copies(nvidia_nccl_cu13=None))
    assert by_level(image, "bf16", "note") == []


def test_visible_part_of_the_gpus_is_a_note():
    facts = of.with_torch(healthy(), num_gpus=2, gpus=[of.H100] * 2)
    facts = of.with_machine(facts, environment={"CUDA_VISIBLE_DEVICES": "0,1"})
    (finding,) = by_level(facts, "bf16", "note")
    assert finding.found == "2 of 8: CUDA_VISIBLE_DEVICES=0,1"


def test_work_on_the_gpus_is_no_problem():
    busy = parse(of.HEALTH.replace("33, 4", "91, 71234"), FIELDS)
    assert by_level(of.with_gpus(healthy(), health=busy), "bf16", "problem") == []


def test_gpus_without_nvidia_smi_are_a_note():
    facts = of.with_gpus(healthy(), health=Answer(problem="nvidia-smi: not found"))
    (finding,) = by_level(facts, "bf16", "note")
    assert "not found" in finding.found and "utility" in finding.fix


def test_nvidia_smi_that_does_not_work_without_a_driver_is_a_note():
    absent = of.with_gpus(without_gpu(), health=Answer(problem="nvidia-smi: not found"))
    assert "nvidia-smi" not in {each.check for each in findings_of(absent, "cpu")}
    hangs = of.with_gpus(without_gpu(), health=Answer(problem="nvidia-smi: timed out"))
    (finding,) = [each for each in findings_of(hangs, "cpu") if each.check == "nvidia-smi"]
    assert (finding.level, finding.found) == ("note", "nvidia-smi: timed out")
    assert "no NVIDIA driver" in finding.needed


def test_transformer_engine_of_an_image_is_a_note_and_one_without_version_too():
    for version in ("2.16.0+4220403e", "unknown"):
        facts = of.with_packages(healthy(), copies=of.copies(transformer_engine=version))
        (finding,) = by_level(facts, "bf16", "note")
        assert finding.found == version and "tst-megatron check" in finding.needed


def test_image_built_without_apex_says_what_to_put_behind_the_recipe():
    facts = of.with_packages(healthy(), image=Image(has_apex=False))
    facts = of.with_machine(facts, environment={"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
    (finding,) = by_level(of.with_probe(facts, "wgrad", None), "tuned", "note")
    assert finding.fix == "gradient-accumulation-fusion=false behind the recipe"


def test_missing_hybrid_ep_is_a_note_with_the_other_dispatcher():
    other_branch = Probe(answers={"has_hybrid_ep": False})
    for probe, words in ((None, "not installed"), (other_branch, "without HybridEP")):
        (finding,) = by_level(of.with_probe(healthy(), "deep_ep", probe), "tuned", "note")
        assert words in finding.found and "moe-token-dispatcher-type=alltoall" in finding.fix
    assert by_level(of.with_probe(healthy(), "deep_ep", None), "bf16", "note") == []


def test_apex_on_the_path_is_taken_off_it_and_not_uninstalled():
    facts = of.with_packages(healthy(), copies=of.copies(apex="0.9.10.dev0"))
    facts = of.with_modules(facts, apex="/src/apex/apex/__init__.py")
    facts = of.with_machine(facts, environment={"PYTHONPATH": "/other:/src/apex"})
    (finding,) = by_level(facts, "bf16", "problem")
    assert finding.fix == "take /src/apex off PYTHONPATH"


@pytest.mark.parametrize("profile", ["bf16", "cpu"])
def test_nvidias_apex_is_fine_also_on_the_cpu_where_it_is_hidden(profile, tmp_path):
    for part in ("normalization", "multi_tensor_apply"):
        (tmp_path / "apex" / part).mkdir(parents=True)
    facts = healthy() if profile == "bf16" else without_gpu()
    facts = of.with_modules(facts, apex=str(tmp_path / "apex" / "__init__.py"))
    (finding,) = [each for each in findings_of(facts, profile) if each.check == "Apex"]
    assert finding.level == "ok" and finding.found.endswith("NVIDIA's")


def test_namesake_of_apex_is_a_note_on_the_cpu():
    notes = by_level(of.namesake(without_gpu()), "cpu", "note")
    (finding,) = [each for each in notes if each.check == "Apex"]
    assert "a namesake: another project" in finding.found
    assert finding.fix == "uv pip uninstall --python python apex"


# --- output ---------------------------------------------------------------------------------------


def test_table_is_readable_in_a_log_and_ends_with_the_verdict(doctor):
    _, out = doctor(without_shared_memory(healthy()))
    assert "\x1b" not in out
    lines = out.splitlines()
    assert lines[1].split() == ["level", "check", "found"]
    (at,) = (index for index, line in enumerate(lines) if line.startswith("PROBLEM"))
    assert lines[at].split() == ["PROBLEM", "shared", "memory", "/dev/shm:", "0.06", "GiB", "free"]
    assert lines[at + 1].strip().startswith("needed: 1 GiB free")
    assert lines[at + 2].strip().startswith("fix: start the container")
    assert lines[-1].startswith("1 problem, 0 notes: training with profile bf16 cannot work")


def test_sample_of_the_guide_is_what_it_prints(doctor, monkeypatch):
    document = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    sample = document.partition("```text\nnode-17")[2].partition("```")[0].splitlines()
    monkeypatch.setenv("SLURMD_NODENAME", "node-17")
    _, out = doctor(without_shared_memory(of.namesake(healthy())), "--profile", "tuned")
    printed = {re.sub(r"[\d.]+ s[.]$", "", line.rstrip()) for line in out.splitlines()}
    assert len(sample) > 10
    assert {
        re.sub(r"[\d.]+ s[.]$", "", line) for line in ("node-17" + sample[0], *sample[1:])
    } <= printed


def test_json_has_the_verdict_and_each_finding_in_full(doctor):
    status, out = doctor(without_shared_memory(healthy()), "--json")
    said = json.loads(out)
    assert (status, said["can_train"], said["profile"]) == (1, False, "bf16")
    (finding,) = [each for each in said["findings"] if each["level"] == "problem"]
    assert finding["check"] == "shared memory"
    assert finding["found"] == "/dev/shm: 0.06 GiB free"
    assert finding["needed"] and finding["fix"]
    status, out = doctor(healthy(), "--json")
    assert (status, json.loads(out)["can_train"]) == (0, True)


def test_brackets_in_an_error_are_shown_as_they_are(doctor):
    facts = of.with_probe(healthy(), "torch", Probe(problem="OSError: [Errno 5] [red]bad"))
    assert "OSError: [Errno 5] [red]bad" in doctor(facts)[1]


def test_profile_that_does_not_exist_is_bad_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tst-megatron", "doctor", "--profile", "fast"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "--profile fast is none of bf16, tuned, mxfp8, fp8, cpu" in capsys.readouterr().err


def test_command_imports_neither_torch_nor_numpy_nor_megatron():
    code = (
        "import sys, tst_megatron.cli.app, tst_megatron.nodes.doctor.gather, "
        "tst_megatron.nodes.doctor.show, tst_megatron.nodes.doctor.diagnose; "
        "print([name for name in ('torch', 'numpy', 'megatron') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_packaging_is_named_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "packaging", None)
    monkeypatch.setattr(sys, "argv", ["tst-megatron", "doctor"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert f"Fix: uv pip install --python {sys.executable} packaging" in capsys.readouterr().err
