"""Build time, disk and memory of the token stream's indexes, on shards that stand for 2T tokens.

    python benchmarks/index_scale.py --shards 200 --report 1 10 100 200

A shard stands for 10 billion tokens: a real `.idx` with document lengths drawn from a log-normal
distribution (mean 1,000 tokens, as web text after filtering has), and a `.bin` of the right size
without content (a sparse file), which building an index does not read but for its fingerprint. One
shard is on disk at a time; all indexes stay until the end. Each build runs in a process of its own,
whose peak memory is reported.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from tst_megatron.data.stream.corpus_index import IndexFacts, ensure_index
from tst_megatron.data.stream.sample_order import count_units
from tst_megatron.data.tokens.fingerprint import fingerprint
from tst_megatron.data.tokens.format import bin_path, idx_path
from tst_megatron.data.tokens.reader import IndexedReader

MEAN_DOCUMENT_TOKENS = 1000
SIGMA = 1.2
NUM_LATENT_POSITIONS = 4096
UNIT_CHUNKS = 16


def write_shard(prefix: Path, seed: int, num_tokens: int) -> None:
    """Write the index of a shard, and a token file of its size without content."""
    mean = np.log(MEAN_DOCUMENT_TOKENS) - SIGMA**2 / 2
    number = num_tokens // MEAN_DOCUMENT_TOKENS
    drawn = np.random.default_rng(seed).lognormal(mean, SIGMA, number)
    lengths = np.clip(drawn, 1, 2**20).astype("<i4")
    offsets = np.zeros(number, dtype="<i8")
    np.cumsum(lengths[:-1], dtype=np.int64, out=offsets[1:])
    num_bytes = (int(offsets[-1]) + int(lengths[-1])) * 4
    with idx_path(prefix).open("wb") as file:
        file.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 4, number, number + 1))
        for part in (lengths, offsets * 4, np.arange(number + 1, dtype="<i8")):
            part.tofile(file)
    with bin_path(prefix).open("wb") as file:
        file.truncate(num_bytes)


def build(prefix: Path, cache: Path, results: Any) -> None:
    """Build one shard's index and report the seconds, its bytes and this process's peak memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    reader = IndexedReader(prefix)
    facts = IndexFacts(
        bin_fingerprint=fingerprint(bin_path(prefix)),
        idx_fingerprint=fingerprint(idx_path(prefix)),
        num_units=count_units(
            reader.num_tokens, unit_chunks=UNIT_CHUNKS, num_latent_positions=NUM_LATENT_POSITIONS
        ),
        unit_chunks=UNIT_CHUNKS,
        num_latent_positions=NUM_LATENT_POSITIONS,
        seed=1234,
        epoch=0,
    )
    assert ensure_index(cache, facts, reader, note=print)
    results.put(
        {
            "tokens": reader.num_tokens,
            "documents": reader.num_documents,
            "seconds": time.perf_counter() - start,
            "index bytes": sum(file.stat().st_size for file in (cache / facts.name).iterdir()),
            "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "MiB before": before / 1024,
        }
    )


def in_a_process(function: Any, *arguments: Any) -> None:
    """Run a function in a fresh process, so that its memory is its own."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} ended with status {process.exitcode}")


def main() -> None:
    """Build the indexes shard after shard and print a table of the sums."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--report", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--tokens", type=float, default=1e10, help="of a shard")
    parser.add_argument("--folder", type=Path, default=None, help="where shards and indexes go")
    parser.add_argument("--output", type=Path, default=None, help="a JSON file of all numbers")
    options = parser.parse_args()
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        cache, shard = Path(folder) / "index", Path(folder) / "shard"
        results = multiprocessing.get_context("spawn").SimpleQueue()
        for number in track(range(options.shards), "shards"):
            shard.mkdir()
            in_a_process(write_shard, shard / "train", number, int(options.tokens))
            in_a_process(build, shard / "train", cache, results)
            rows.append(results.get())
            shutil.rmtree(shard)
    print(f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}")
    print("| shards | tokens | documents | build, s | s per shard | index, GB | peak memory, MiB |")
    print("|---|---|---|---|---|---|---|")
    for number in options.report:
        part = rows[:number]
        total = {key: sum(row[key] for row in part) for key in rows[0]}
        print(
            f"| {number} | {total['tokens'] / 1e9:,.0f}B | {total['documents'] / 1e6:,.0f}M "
            f"| {total['seconds']:.1f} | {total['seconds'] / number:.2f} "
            f"| {total['index bytes'] / 1e9:.2f} | {max(row['peak MiB'] for row in part):.0f} |"
        )
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
