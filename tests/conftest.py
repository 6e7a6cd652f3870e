"""What all tests share."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import machine  # noqa: F401 - before anything that starts threads


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A prepared folder: part of the standard library's sources, 512 pieces."""
    from tst_megatron.data.prepare.prepare import prepare
    from tst_megatron.data.text.standard_library import write_standard_library_corpus
    from tst_megatron.data.tokenizer.train import train_sentencepiece

    folder = tmp_path_factory.mktemp("text")
    corpus = folder / "corpus.jsonl"
    write_standard_library_corpus(corpus)
    documents = corpus.read_text().splitlines()[:120]
    corpus.write_text("\n".join(documents) + "\n")
    texts = (json.loads(document)["text"] for document in documents)
    train_sentencepiece(texts, folder / "tokenizer.model", vocab_size=512)
    prepare([corpus], folder / "tokenizer.model", folder / "text", held_out_fraction=0.1, workers=1)
    return folder / "text"


@pytest.fixture
def outside_a_job(monkeypatch):
    """Without what a job's start puts into the environment, and a model that is built."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS")
    for name in (*ranks, "NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"):
        monkeypatch.setenv(name, "")  # So that what the test puts there is taken away again.
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_rank(monkeypatch):
    """A rank blocks the stop signals for the rest of its life, and the tests' process is none."""
    from tst_megatron.system.processes import signals

    monkeypatch.setattr(signals, "listen", lambda: None)
