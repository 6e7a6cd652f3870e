"""``tst-megatron checkpoint verify``: a line per checkpoint, and a status that says the same."""

import sys

import click
import pytest
import torch
from test_checkpoints import COMMON, SHARD, copy_of, saved, truncate  # noqa: F401

from tst_megatron.cli.app import main


@pytest.fixture
def run(saved, tmp_path):  # noqa: F811
    folder = tmp_path / "run"
    for step in (4, 8):
        copy_of(saved, step, folder / "checkpoints")
    return folder


@pytest.fixture
def verify(monkeypatch, capsys):
    def command(*arguments):
        words = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["tst-megatron", "checkpoint", "verify", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out, click.unstyle(printed.err)

    return command


def change_one_byte(path):
    data = bytearray(path.read_bytes())
    data[data.find(torch.arange(5000.0).numpy().tobytes()[400:480])] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("part", ["", "checkpoints", "checkpoints/iter_0000008"])
def test_whole_checkpoints_have_a_line_each_and_status_0(verify, run, part):
    status, out, _ = verify(run / part)
    lines = [line for line in out.splitlines() if not line.startswith("  not proven: ")]
    every = ["iter_0000004: whole", "iter_0000008: whole"]
    assert (status, lines) == (0, every[-1:] if "iter" in part else every)


def test_one_iter_folder_may_be_named_from_inside(verify, run, monkeypatch):
    monkeypatch.chdir(run / "checkpoints" / "iter_0000008")
    assert verify(".", "--quick")[:2] == (0, "iter_0000008: whole\n")


def test_damaged_one_is_named_with_each_problem_and_status_2(verify, run):
    checkpoint = run / "checkpoints" / "iter_0000008"
    (checkpoint / "metadata.json").unlink()
    truncate(checkpoint / SHARD, 10)
    status, out, _ = verify(run)
    assert status == 2
    first, second = [line for line in out.splitlines() if line.startswith("iter_")]
    assert first == "iter_0000004: whole"
    assert second.startswith("iter_0000008: damaged: metadata.json is missing; ")
    assert f"; {SHARD} has 10 bytes of " in second


def test_only_reading_finds_a_changed_byte(verify, run):
    change_one_byte(run / "checkpoints" / "iter_0000004" / SHARD)
    assert verify(run, "--quick")[0] == 0
    status, out, _ = verify(run)
    assert status == 2
    assert f"iter_0000004: damaged: {SHARD}: weight is damaged" in out


@pytest.mark.parametrize("part", ["nowhere", ""])
def test_folder_without_a_checkpoint_is_bad_input_in_words(verify, tmp_path, part):
    status, out, error = verify(tmp_path / part)
    assert (status, out) == (2, "")
    assert "no checkpoint there (no iter_NNNNNNN folder). Give a run folder" in error
