"""What the readers of small records take for damage."""

import os

import pytest

from tst_megatron.system.records import Damaged, read_bytes, read_json
from tst_megatron.training.run.state import read_state


def test_pipe_is_damage_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "state.json")
    with pytest.raises(Damaged, match="is no file"):
        read_bytes(tmp_path / "state.json")


def test_boolean_is_no_number(tmp_path):
    (tmp_path / "record.json").write_text('{"step": true}')
    with pytest.raises(Damaged, match="says no 'step' that fits"):
        read_json(tmp_path / "record.json", {"step": int})


def test_status_that_no_run_has_is_damage(tmp_path):
    (tmp_path / "state.json").write_text(
        '{"status": "great", "reason": "", "step": 1, "exit_status": 0}'
    )
    with pytest.raises(Damaged, match="says the status 'great', which is none"):
        read_state(tmp_path / "state.json")
