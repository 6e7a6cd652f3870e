"""Two small runs on the text that a machine has: the ordinary arm and the one with superposition.

    python tools/two_arms.py --folder FOLDER --minutes 8

A Llama of about 42M parameters, K = 4 in the first 30% of the steps, as many steps of as many
latent positions in both arms (equal FLOPs) from one stream of the text. The text is what is found
below Python's and the system's folders. The arms are trained in turns, in slices that end with a
checkpoint; called again with the same folder, everything goes on where it was. Both curves stay in
FOLDER: BASELINE.jsonl and TST.jsonl, a picture, and a table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tst_megatron.cli.quickstart.chain import GPU_WITHOUT_TRANSFORMER_ENGINE
from tst_megatron.megatron.cpu import host
from tst_megatron.system.files import write_beside
from tst_megatron.system.packages import has_transformer_engine
from tst_megatron.training.report.metrics_file import VALIDATION_LOSS, read_metrics

ROOT = Path(__file__).resolve().parents[1]
ENDINGS = {".py", ".pyi", ".md", ".rst", ".txt", ".h", ".hpp", ".cuh", ".c", ".html", ".json"}
PLACES = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"], "/usr/share")
ARMS = ("baseline", "tst")
MODEL = {
    "num-layers": 8,
    "hidden-size": 512,
    "num-attention-heads": 8,
    "num-query-groups": 4,
    "kv-channels": 64,
    "ffn-hidden-size": 1536,
    "vocab-size": 16384,
    "seq-length": 512,
    "micro-batch-size": 16,
    "global-batch-size": 64,
    "lr": 1.0e-3,
    "eval-iters": 4,
    "eval-interval": 200,
    "save-interval": 200,
}
BAG_SIZE, SUPERPOSITION_FRACTION = 4, 0.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0, help="for both arms together")
    parser.add_argument("--slice-seconds", type=float, default=60.0, help="of one arm at a time")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--text-bytes", type=int, default=400_000_000)
    parser.add_argument("overrides", nargs="*", help="key=value, for smaller runs")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    options.folder.mkdir(parents=True, exist_ok=True)
    overrides = [*host_overrides(), *options.overrides]
    vocabulary = next(
        (int(o.partition("=")[2]) for o in overrides if o.startswith("vocab-size=")),
        MODEL["vocab-size"],
    )
    text = prepared_text(options.folder, options.text_bytes, vocabulary)
    for arm in ARMS:
        write_recipe(options.folder, arm, text, options.steps)
    unfinished = list(ARMS)
    while unfinished and time.monotonic() < end:
        for arm in list(unfinished):
            seconds = min(options.slice_seconds, end - time.monotonic())
            if seconds > 0 and train_slice(options.folder, arm, overrides, seconds):
                unfinished.remove(arm)
    summarise(options.folder)
    print("unfinished: " + ", ".join(unfinished) if unfinished else "both arms are finished")
    return 0


def host_overrides() -> list[str]:
    """What the machine decides: a GPU with or without Transformer Engine, or the CPU host."""
    if host.is_needed():
        return ["profile=cpu"]
    if has_transformer_engine():
        return ["profile=bf16"]
    return ["profile=null", "bf16=true", *GPU_WITHOUT_TRANSFORMER_ENGINE]


def prepared_text(folder: Path, num_bytes: int, vocabulary: int) -> Path:
    """Text files of this machine, tokenised; kept and used again."""
    output, corpus, tokenizer = folder / "text", folder / "corpus.jsonl", folder / "tokenizer.model"
    if (output / "manifest.json").exists():
        return output
    if not corpus.exists():
        lines = [json.dumps({"text": text}) for text in texts(num_bytes)]
        write_beside(corpus, "\n".join(lines) + "\n")
    if not tokenizer.exists():
        tst("data", "tokenizer", corpus, "--output", tokenizer, "--vocab-size", vocabulary)
    tst("data", "prepare", corpus, "--tokenizer", tokenizer, "--output", output)
    return output


def texts(num_bytes: int) -> Iterator[str]:
    """Text files below known places, in order of their names, each content once."""
    seen, total = set(), 0
    for place in PLACES:
        for path in sorted(Path(place).rglob("*")):
            if path.suffix not in ENDINGS or not path.is_file() or path.is_symlink():
                continue
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if not 500 < len(text) < 200_000 or text in seen:
                continue
            seen.add(text)
            total += len(text)
            yield text
            if total > num_bytes:
                return


def write_recipe(folder: Path, arm: str, text: Path, steps: int) -> None:
    tst: dict[str, Any] = {"bag-size": 1, "stream-unit-bags": BAG_SIZE, "max-epochs": 50}
    if arm == "tst":
        tst |= {"bag-size": BAG_SIZE, "superposition-fraction": SUPERPOSITION_FRACTION}
    recipe = {
        "base": str(ROOT / "examples" / "llama-270m" / "baseline.yaml"),
        **MODEL,
        "train-iters": steps,
        "lr-warmup-iters": max(1, steps // 20),
        "lr-wsd-decay-iters": max(1, steps // 5),
        "data": {str(text.resolve()): 1.0},
        "tst": tst,
    }
    write_beside(folder / f"{arm}.yaml", yaml.safe_dump(recipe, sort_keys=False))


def train_slice(folder: Path, arm: str, overrides: list[str], seconds: float) -> bool:
    """Train an arm for a while; True if it is finished. It saves itself when it is asked to stop.

    Raises:
        SystemExit: it failed.
    """
    command = ["train", folder / f"{arm}.yaml", *overrides]
    command += ["--run-folder", folder / arm, "--nproc", "1"]
    process = subprocess.Popen([sys.executable, "-m", "tst_megatron", *map(str, command)])
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=300)
    if process.returncode not in (0, 75):
        raise SystemExit(f"{arm}: exit status {process.returncode}, see {folder / arm / 'logs'}")
    return process.returncode == 0


def summarise(folder: Path) -> None:
    """Keep both curves, draw them, and print the validation losses that both have."""
    found = {}
    for arm in ARMS:
        metrics = folder / arm / "metrics.jsonl"
        if metrics.exists():
            shutil.copyfile(metrics, folder / f"{arm}.jsonl")
            rows = read_metrics(metrics, event="validation")
            found[arm] = {row["step"]: row[VALIDATION_LOSS] for row in rows}
    lines = ["| step | " + " | ".join(found) + " |", "|---" * (1 + len(found)) + "|"]
    shared = set.intersection(*map(set, found.values())) if found else set()
    for step in sorted(shared):
        cells = " | ".join(f"{losses[step]:.4f}" for losses in found.values())
        lines.append(f"| {step} | {cells} |")
    write_beside(folder / "validation.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    draw(found, folder / "validation.png")


def draw(found: dict[str, dict[int, float]], picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for arm, losses in found.items():
        axes.plot(list(losses), list(losses.values()), marker="o", markersize=3, label=arm)
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss, nats (next token)")
    axes.set_title(f"K = {BAG_SIZE} in the first {SUPERPOSITION_FRACTION:.0%} of the steps")
    axes.legend()
    figure.savefig(picture, dpi=110)


def tst(*arguments: object) -> None:
    command = [sys.executable, "-m", "tst_megatron", *map(str, arguments)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    raise SystemExit(main())
