"""Tokens per second of `data prepare`, beside plain `tokenizers` and Megatron's own tool.

    make measure-prepare MEGATRON_TOOL=FILE

FILE is tools/preprocess_data.py of Megatron-LM core_v0.19.0, which its package does not ship;
without it Megatron is left out. The text is Python sources of this machine, the tokenizers are
trained on it. Every round runs every way once, in an order of its own; a way's ratio is to plain
encoding in the same round. Each run is a short one, with a few of the documents, and a long one,
of which the tokens and the time of the short one are taken off: with them goes what a way does
once (imports, start of workers, loading, comparisons of `--fast`), which is nothing beside hours of
work. Beside the time on the clock stands that of the cores, which other work on the machine
disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Workers import this file again: what takes long to import is imported where it is used.
if TYPE_CHECKING:
    from prepare_ways import Corpus, Way

ROOT = Path(__file__).resolve().parents[1]
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PACKAGES = ("tst-megatron", "tokenizers", "sentencepiece", "transformers", "gigatoken")
PACKAGES += ("megatron-core", "pyarrow", "zstandard", "numpy")
COLUMNS = ("way", "M tokens/s", "of a core's second", "ratio per worker", "ratio by cores' time")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=32, help="of text; default 32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=48_000, help="of the byte-level BPE")
    parser.add_argument("--only", nargs="*", help="names of ways, beside plain encoding")
    parser.add_argument("--no-sentencepiece", action="store_true")
    parser.add_argument("--megatron-tool", type=Path, help="Megatron-LM's preprocess_data.py")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/DEVICE")
    options = parser.parse_args()
    if options.megatron_tool and not options.megatron_tool.is_file():
        parser.error(f"--megatron-tool {options.megatron_tool}: no such file.")
    os.environ |= ONE_THREAD
    from prepare_ways import FEW, python_sources, train_tokenizers, write_corpus

    from tst_megatron.bench.results import slug
    from tst_megatron.system.files import write_beside

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = python_sources(folder, options.megabytes * 1_000_000)
        corpora = [
            write_corpus(documents[: min(FEW, len(documents) // 4)], folder / "few"),
            write_corpus(documents, folder / "full"),
        ]
        tokenizers = train_tokenizers(documents, folder, options)
        cases = [measure(kind, path, *corpora, options) for kind, path in tokenizers.items()]
    document = result(cases, documents, options)
    output = options.output or ROOT / "benchmarks" / "results" / slug(document["device"])
    output.mkdir(parents=True, exist_ok=True)
    write_beside(output / "prepare.json", json.dumps(document, indent=1) + "\n")
    write_beside(output / "prepare.md", table(document))
    print(table(document))
    return 0


def measure(
    kind: str, tokenizer: Path, few: Corpus, full: Corpus, options: argparse.Namespace
) -> dict[str, Any]:
    """Run all ways in turns, each on the few documents and on all of them."""
    from prepare_ways import Reading, ways

    found = ways(tokenizer, options)
    order = random.Random(1)
    for way in found:
        # Imports, caches of files, compiled Python.
        way.run(few)
    for number in range(options.rounds):
        for way in order.sample(found, len(found)):
            short, long = time_of(way, few), time_of(way, full)
            way.num_tokens, seconds, cpu = (b - a for a, b in zip(short, long, strict=True))
            if min(seconds, cpu) <= 0:
                raise RuntimeError(
                    f"{way.name}: the few documents took as long as all of them, so the rate of "
                    "encoding cannot be told from what a run does once; give more --megabytes."
                )
            reading = Reading(seconds=seconds, cpu_seconds=cpu, short_seconds=short[1])
            way.readings.append(reading)
            print(f"{kind}, round {number + 1}, {way.name}: {long[1]:.1f} s", flush=True)
    numbers = {way.name: way.num_tokens for way in found}
    if len(set(numbers.values())) > 1:
        raise RuntimeError(f"{kind}: the ways give different numbers of tokens: {numbers}")
    baseline = found[0]
    return {
        "tokenizer": kind,
        "num_tokens": baseline.num_tokens,
        "ways": [summary(way, baseline) for way in found],
    }


def time_of(way: Way, corpus: Corpus) -> tuple[int, float, float]:
    """Tokens, seconds, and seconds of the processor in this process and those it waited for."""
    cpu, start = cpu_seconds(), time.perf_counter()
    num_tokens = way.run(corpus)
    return num_tokens, time.perf_counter() - start, cpu_seconds() - cpu


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def summary(way: Way, baseline: Way) -> dict[str, Any]:
    pairs = list(zip(way.readings, baseline.readings, strict=True))
    tokens = way.num_tokens
    return {
        "name": way.name,
        "workers": way.workers,
        "tokens_per_second": quartiles([tokens / each.seconds for each in way.readings]),
        "tokens_per_cpu_second": quartiles([tokens / each.cpu_seconds for each in way.readings]),
        "ratio_per_worker": quartiles([b.seconds / a.seconds / way.workers for a, b in pairs]),
        "ratio_per_cpu_second": quartiles([b.cpu_seconds / a.cpu_seconds for a, b in pairs]),
        "short_seconds": quartiles([each.short_seconds for each in way.readings]),
        "rounds": [asdict(each) for each in way.readings],
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    if len(values) == 1:
        return dict.fromkeys(("median", "p25", "p75"), values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "p25": low, "p75": high}


def result(
    cases: Sequence[dict[str, Any]], documents: Sequence[str], options: argparse.Namespace
) -> dict[str, Any]:
    import torch

    from tst_megatron.bench.results import version_of
    from tst_megatron.megatron.cpu.meter import Meter

    return {
        "question": "Tokens per second of preparing text",
        "device": Meter(torch.device("cpu")).facts(),
        "versions": {name: found for name in PACKAGES if (found := version_of(name))},
        "python": sys.version.split()[0],
        # Without folders, which are those of one machine.
        "command": shlex.join(
            ["tools/measure_prepare.py", *(arg.rpartition("/")[2] for arg in sys.argv[1:])]
        ),
        "date": datetime.now(UTC).date().isoformat(),
        "rounds": options.rounds,
        "load_average": os.getloadavg()[1],
        "num_documents": len(documents),
        "num_text_bytes": sum(len(text.encode()) for text in documents),
        "baseline": cases[0]["ways"][0]["name"],
        "cases": cases,
    }


def table(document: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {found}" for name, found in document["versions"].items())
    device = document["device"]
    lines = [
        f"# {document['question']}",
        "",
        f"`{document['command']}`, {document['date']}.",
        f"{device['name']} ({device['processor']}), load {document['load_average']:.1f} at the "
        f"end. Python {document['python']}, {versions}.",
        f"{document['num_documents']:,} documents, {document['num_text_bytes'] / 1e6:.1f} MB. "
        f"{document['rounds']} rounds in turns; medians and quartiles; ratios are to "
        f"*{document['baseline']}* of the same round.",
    ]
    for case in document["cases"]:
        lines += ["", f"## {case['tokenizer']}, {case['num_tokens'] / 1e6:.2f}M tokens", ""]
        lines += [f"| {' | '.join(COLUMNS)} | short run, s |", "|---" * (len(COLUMNS) + 1) + "|"]
        for way in case["ways"]:
            cells = [
                spread(way["tokens_per_second"], 1e-6),
                spread(way["tokens_per_cpu_second"], 1e-6),
                spread(way["ratio_per_worker"], 1),
                spread(way["ratio_per_cpu_second"], 1),
                f"{way['short_seconds']['median']:.1f}",
            ]
            lines.append(f"| {way['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(values: dict[str, float], scale: float) -> str:
    median, low, high = (values[key] * scale for key in ("median", "p25", "p75"))
    return f"{median:.3g} ({low:.3g}-{high:.3g})"


if __name__ == "__main__":
    raise SystemExit(main())
