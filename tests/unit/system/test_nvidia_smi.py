"""Answers as ``nvidia-smi`` gives them on nodes of eight GPUs."""

import pytest

from tst_megatron.system.machine.nvidia_smi import (
    FIELDS,
    PROCESS_FIELDS,
    ask,
    count_problems,
    gpu_problems,
    parse,
    process_problems,
)

HEALTHY = "".join(f"{gpu}, 0, No, No, Completed, {30 + gpu}, 4\n" for gpu in range(8))


def problems(text):
    return gpu_problems(parse(text, FIELDS))


def with_gpu_3(line):
    return HEALTHY.replace("3, 0, No, No, Completed, 33, 4\n", line + "\n")


def test_healthy_node_has_no_problem():
    answer = parse(HEALTHY, FIELDS)
    assert (len(answer.rows), answer.problem) == (8, None)
    assert gpu_problems(answer) == []
    assert count_problems(8, 8) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("3, 2, No, No, Completed, 33, 4", "2 uncorrected ECC errors"),
        ("3, 0, Yes, No, Completed, 33, 4", "waits to be remapped"),
        ("3, 0, 1, 0, Completed, 33, 4", "waits to be remapped"),
        ("3, 0, No, Yes, Completed, 33, 4", "could not be remapped"),
        ("3, 0, No, No, In Progress, 33, 4", "NVLink fabric is In Progress"),
        ("3, 0, No, No, Completed, 91, 4", "91 degrees"),
        ("3, 0, No, No, Completed, 33, 71234", "71234 MiB"),
        ("3, [Unknown Error], No, No, Completed, 33, 4", "[Unknown Error]"),
        ("3, 0, [GPU requires reset], No, Completed, 33, 4", "[GPU requires reset]"),
    ],
)
def test_each_fault_is_named_with_its_gpu(line, words):
    (problem,) = problems(with_gpu_3(line))
    assert problem.startswith("GPU 3: ") and words in problem


def test_unknown_fields_are_no_problem():
    assert problems(with_gpu_3("3, [N/A], [N/A], N/A, [Not Supported], [N/A], 4")) == []


def test_line_that_is_no_gpu_is_a_problem():
    lost = "Unable to determine the device handle for GPU3: 0000:5D:00.0: Unknown Error"
    (problem,) = problems(with_gpu_3(lost))
    assert lost in problem


def test_missing_gpu_is_counted():
    (problem,) = count_problems(7, 8)
    assert "7 GPUs" in problem and "8 ranks" in problem


def test_strange_process_is_named_even_with_a_comma():
    text = "4711, /opt/a, b/python3, 70112\n4712, [Not Found], [N/A]\n"
    first, second = process_problems(parse(text, PROCESS_FIELDS))
    assert "/opt/a, b/python3 (process 4711, 70112 MiB)" in first
    assert "process 4712" in second
    assert process_problems(parse("", PROCESS_FIELDS)) == []


@pytest.fixture
def fake(tmp_path, monkeypatch):
    def put(script):
        command = tmp_path / "nvidia-smi"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return put


def test_command_is_asked_for_every_field(fake):
    fake(
        '[ "$*" = "--query-gpu='
        + ",".join(FIELDS)
        + ' --format=csv,noheader,nounits" ] || exit 9\n'
        f"printf '{HEALTHY.splitlines()[0]}\\n'"
    )
    answer = ask("gpu", FIELDS)
    assert answer.problem is None and answer.rows == (tuple("0|0|No|No|Completed|30|4".split("|")),)


def test_absent_failing_and_hanging_commands_are_problems(fake, monkeypatch, tmp_path):
    fake("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert "status 18: Failed to initialize NVML" in ask("gpu", FIELDS).problem
    fake("exec sleep 20")
    monkeypatch.setattr("tst_megatron.system.machine.nvidia_smi.SECONDS", 0.2)
    assert "timed out" in ask("gpu", FIELDS).problem
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert ask("gpu", FIELDS).problem == "nvidia-smi: not found"
    assert gpu_problems(ask("gpu", FIELDS)) == ["nvidia-smi: not found"]
