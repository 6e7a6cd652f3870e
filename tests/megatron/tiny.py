"""The small text, recipe and runs that the tests on real Megatron share."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml
from processes import start_server

from tst_megatron.training.run import launch

VOCABULARY = 512

TINY = {
    "num-layers": 2,
    "hidden-size": 64,
    "num-attention-heads": 4,
    "group-query-attention": True,
    "num-query-groups": 2,
    "kv-channels": 16,
    "qk-layernorm": True,
    "ffn-hidden-size": 128,
    "swiglu": True,
    "disable-bias-linear": True,
    "normalization": "RMSNorm",
    "norm-epsilon": 1e-6,
    "position-embedding-type": "rope",
    "rotary-base": 1000000,
    "untie-embeddings-and-output-weights": True,
    "vocab-size": VOCABULARY,
    "hidden-dropout": 0.0,
    "attention-dropout": 0.0,
    "num-experts": 4,
    "moe-router-topk": 2,
    "moe-ffn-hidden-size": 64,
    "moe-router-load-balancing-type": "aux_loss",
    "moe-aux-loss-coeff": 0.01,
    "moe-router-dtype": "fp32",
    "moe-token-dispatcher-type": "alltoall",
    "use-distributed-optimizer": True,
    "seq-length": 32,
    "micro-batch-size": 2,
    "global-batch-size": 8,
    "train-iters": 20,
    "lr": 1e-2,
    "min-lr": 1e-4,
    "lr-decay-style": "WSD",
    "lr-wsd-decay-style": "linear",
    "lr-wsd-decay-iters": 5,
    "lr-warmup-iters": 2,
    "adam-beta2": 0.95,
    "weight-decay": 0.1,
    "clip-grad": 1.0,
    "eval-interval": 10,
    "eval-iters": 1,
    "save-interval": 100,
    "log-interval": 1,
    "num-workers": 0,
}
"""A Qwen3-MoE small enough for a step in 50 ms, with every part that the quickstart's has."""


def write_recipe(path: Path, data: Path, tst: dict, **changes) -> Path:
    """Write a recipe: ``TINY`` with changes (keys with underscores for dashes)."""
    keys = {name.replace("_", "-"): value for name, value in changes.items()}
    recipe = {**TINY, **keys, "profile": "cpu", "data": {str(data): 1.0}, "tst": tst}
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(*arguments: str, log: Path, **options) -> subprocess.Popen:
    """Start ``tst-megatron`` with its output in a file."""
    command = [sys.executable, "-m", "tst_megatron", *arguments]
    with log.open("w") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment(), **options
        )


def children(process: int) -> list[int]:
    """The processes that a process has started and that have not ended."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in found.split()]


def train(recipe: Path, folder: Path, *overrides: str, status: int = 0) -> None:
    """Train as one rank, which must end with a status."""
    arguments = ("train", str(recipe), *overrides, "--run-folder", str(folder))
    log = folder.with_suffix(".log")
    wait(start_ranks(*arguments, num_ranks=1, log=log), log, status)


def train_with_faults(recipe: Path, folder: Path, status: int, **faults) -> None:
    """Train as one rank under ``with_fault.py``, which must end with a status."""
    arguments = ("train", str(recipe), "--run-folder", str(folder))
    log = folder.with_suffix(".log")
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    wanted = json.dumps({name.replace("_", "-"): value for name, value in faults.items()})
    command = [sys.executable, str(Path(__file__).parent / "with_fault.py"), *arguments]
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(FAULTS=wanted, **alone, **address),
        )
    wait([process], log, status)


def start_ranks(*arguments: str, num_ranks: int, log: Path, **options) -> list[subprocess.Popen]:
    """Start ``tst-megatron`` as srun does, one process per rank and no launcher above them.

    ``options`` are those of ``subprocess.Popen``.
    """
    job = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, "-m", "tst_megatron", *arguments]
    with log.open("w") as file:
        return [
            subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **job),
                **options,
            )
            for rank in range(num_ranks)
        ]


class Rank:
    """A forked rank, with what the tests use of ``subprocess.Popen``."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)


def fork_ranks(
    *arguments: str,
    num_ranks: int,
    log: Path,
    tokens: Path | None = None,
    trusts_weights: bool = False,
) -> list[Rank]:
    """Start ``tst-megatron`` as ``start_ranks`` does, without importing Megatron again.

    Each rank leads a process group of its own, to which its workers belong. ``tokens`` is where the
    ranks note what they read, and with what settings they step (``recording.py``). Ranks that trust
    imported weights do not look for missing ones, which takes a process that imports Megatron
    again.
    """
    main = functools.partial(_tst_megatron, tokens, trusts_weights)
    return _fork(main, arguments, num_ranks, log)


def fork_stock_ranks(*arguments: str, num_ranks: int, log: Path) -> list[Rank]:
    """Start ``stock_arm.py`` likewise: our modules are imported there, and none of them is used."""
    return _fork(_stock_arm, arguments, num_ranks, log)


def _fork(
    main: Callable[[], None], arguments: tuple[str, ...], num_ranks: int, log: Path
) -> list[Rank]:
    start_server("preloaded")
    context = multiprocessing.get_context("forkserver")
    job = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    log.write_text("")
    processes = [
        context.Process(
            target=_be_a_rank,
            args=(main, arguments, {**job, "RANK": str(rank), "LOCAL_RANK": str(rank)}, str(log)),
        )
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    return [Rank(process) for process in processes]


def _be_a_rank(
    main: Callable[[], None], arguments: tuple[str, ...], job: dict[str, str], log: str
) -> None:
    os.setpgid(0, 0)
    assert "preloaded" in sys.modules
    # What a rank that nothing has forked would use, for its loader workers.
    multiprocessing.set_start_method("fork", force=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(job)
    sys.argv = ["tst-megatron", *arguments]
    main()


def _tst_megatron(tokens: Path | None, trusts_weights: bool) -> None:
    if trusts_weights:
        from tst_megatron.training.run import pretrained

        pretrained.missing_weights = lambda *_: []
    if tokens is not None:
        import recording

        recording.record_tokens(tokens)
        recording.record_settings(tokens)
    from tst_megatron.cli.app import main

    main()


def _stock_arm() -> None:
    import stock_arm

    stock_arm.main()


def wait(processes: list[subprocess.Popen] | list[Rank], log: Path, status: int = 0) -> None:
    """Wait for the ranks of a job, each of which must end with a status."""
    for process in processes:
        assert process.wait(timeout=300) == status, log.read_text()


def run(*arguments: str, log: Path, status: int = 0, **options) -> str:
    """Run ``tst-megatron`` to its end and return what it printed."""
    process = start(*arguments, log=log, **options)
    assert process.wait(timeout=300) == status, log.read_text()
    return log.read_text()


def environment(**more: str) -> dict[str, str]:
    """One thread, so that sums are taken in one order, and no rank of an outer job."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def free_port() -> str:
    return str(launch.free_port())


def state(folder: Path) -> dict:
    """How a run says that it stands."""
    return json.loads((folder / "state.json").read_text())


def loss_bits(folder: Path, event: str = "step") -> dict[int, list[str]]:
    """Every loss and gradient norm of a run's metrics, bit for bit, by step."""
    return bits_of(metrics(folder, event))


def bits_of(rows: list[dict]) -> dict[int, list[str]]:
    """The same of some rows."""
    return {
        row["step"]: [
            struct.pack("<d", row[key]).hex() for key in row if "loss" in key or key == "grad-norm"
        ]
        for row in rows
    }


def saved_weights(checkpoint: Path) -> dict:
    """Every weight of a checkpoint, by its name in it; the optimizer's buffers have noisy gaps."""
    tensors = saved_tensors(checkpoint).items()
    weights = {key: tensor for key, tensor in tensors if not key.startswith("optimizer.")}
    assert len(weights) > 10
    return weights


def saved_tensors(checkpoint: Path) -> dict:
    """Every tensor of a checkpoint, by its name in it.

    By torch's reader: that of Megatron-Core 0.19.2 does not know how torch 2.15 describes tensors.
    """
    import torch
    import torch.distributed.checkpoint as torch_checkpoint
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = torch_checkpoint.FileSystemReader(checkpoint)
    tensors = {
        name: torch.empty(item.size, dtype=item.properties.dtype)
        for name, item in reader.read_metadata().state_dict_metadata.items()
        if isinstance(item, TensorStorageMetadata)
    }
    torch_checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def metrics(folder: Path, event: str = "step") -> list[dict]:
    """The rows of a run's metrics."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]
