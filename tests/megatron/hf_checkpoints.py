"""The checkpoints that the tests of tst_megatron.hf share: saved once for all of them."""

import functools
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from tst_megatron.checkpoint.reader.process import in_one_process
from tst_megatron.data.tokenizer.train import train_sentencepiece

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("save_checkpoints.py")


@functools.cache
def save_once(session_folder: Path, script: Path = SCRIPT) -> Path:
    """One folder of checkpoints per parallel layout that a script saves, as two ranks."""
    folder = session_folder / "saved"
    folder.mkdir()
    texts = [Path(module.__file__ or "").read_text() for module in (json, os, subprocess)]
    train_sentencepiece(texts, folder / "tokenizer.model", vocab_size=1000)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        logs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(logs)
    return folder


def with_arguments(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let every checkpoint say that it was saved with other arguments."""
    in_one_process()
    from tst_megatron.megatron.distributed_checkpoint import model

    original = model.read_saved_state

    def read(folder: Path) -> dict[str, Any]:
        state = original(folder)
        return {**state, "args": Namespace(**{**vars(state["args"]), **changes})}

    monkeypatch.setattr(model, "read_saved_state", read)
