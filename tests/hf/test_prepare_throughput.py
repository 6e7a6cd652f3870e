"""A worker of `data prepare` encodes nearly as fast as the library that it calls."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tst_megatron.data.tokenizer.fast import fast_tokenizer
from tst_megatron.data.tokenizer.load import load_tokenizer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from prepare_ways import python_sources, train_bpe

GATE = 0.8
"""Of plain encoding, by the time of the cores: other work on the machine slows one or the other,
and this text is short. docs/data-preparation.md has what was measured."""


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Three rounds of the tool behind `make measure-prepare`, on less text."""
    folder = tmp_path_factory.mktemp("throughput")
    command = [sys.executable, str(ROOT / "tools" / "measure_prepare.py"), "--megabytes", "6"]
    command += ["--rounds", "3", "--vocab-size", "8000", "--no-sentencepiece"]
    command += ["--only", "data prepare, 1 worker"]
    done = subprocess.run(
        [*command, "--output", str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((folder / "prepare.json").read_text())
    assert (folder / "prepare.md").read_text().strip() in done.stdout
    assert document["device"]["name"].startswith("CPU, ")
    (only,) = document["cases"]
    return {way["name"]: way for way in only["ways"]}


def test_worker_is_nearly_as_fast_as_plain_encoding(case):
    way = case["data prepare, 1 worker"]
    assert len(way["rounds"]) == 3
    assert way["ratio_per_cpu_second"]["median"] >= GATE


def test_fast_encoder_is_several_times_faster(tmp_path):
    """Encoding alone: loading takes longer than it on a text of a test's size."""
    pytest.importorskip("gigatoken")
    documents = python_sources(tmp_path, 6_000_000)
    plain = load_tokenizer(train_bpe(documents, tmp_path / "bpe", 8000))
    fast = fast_tokenizer(plain, documents[:8])
    took = {"plain": [], "fast": []}
    for _ in range(3):
        for name, tokenizer in (("plain", plain), ("fast", fast)):
            begun = time.process_time()
            num_tokens = sum(len(ids) for ids in tokenizer.encode(documents))
            took[name].append(time.process_time() - begun)
            assert num_tokens > 1_000_000
    assert min(took["plain"]) >= 5 * min(took["fast"]), took
