"""Export a full-size checkpoint on a small machine, and say what it took.

    python tools/measure_export.py FOLDER                      the 10B-A1B model, 42 GB of disk
    python tools/measure_export.py FOLDER --num-layers 2 --with-modelopt

The checkpoint has random weights and is written one tensor at a time, as an import writes it. Each
exporter runs in a process of its own, whose largest resident memory the kernel reports. The second
form compares with nvidia-modelopt's exporter, which holds the whole model.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
BOUND_BYTES = 6_000_000_000
"""Of resident memory, for a model of any size: an export holds one weight and one file."""
RECIPE = ROOT / "examples" / "qwen3-10b-a1b" / "baseline.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="scratch; deleted at the end")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--num-layers", type=int, help="fewer layers than the recipe has")
    parser.add_argument("--with-modelopt", action="store_true")
    parser.add_argument("--run-modelopt", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run_modelopt:
        export_with_modelopt(options.folder)
        return
    console = Console()
    if options.folder.exists():
        raise SystemExit(f"{options.folder} exists. Name a folder that does not.")
    checkpoint, ours = options.folder / "checkpoint", options.folder / "hf"
    try:
        measure(options, checkpoint, ours, console)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


def measure(options: argparse.Namespace, checkpoint: Path, ours: Path, console: Console) -> None:
    """Write the checkpoint and let each exporter export it."""
    start = time.perf_counter()
    write_random_checkpoint(options.recipe, checkpoint, num_layers=options.num_layers)
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    console.print(f"checkpoint: {size / 1e9:.1f} GB in {time.perf_counter() - start:.0f} s")
    command = [sys.executable, "-m", "tst_megatron", "export", str(checkpoint), str(ours)]
    command.append("--no-tokenizer")
    peak = report("tst-megatron export, weights verified", [*command, "--no-logits"], console)
    if peak > BOUND_BYTES:
        raise SystemExit(f"{peak / 1e9:.2f} GB are more than {BOUND_BYTES / 1e9:.0f} GB")
    if options.with_modelopt:
        shutil.rmtree(ours)
        report("the same, logits too", [*command, "--logits"], console)
        shutil.rmtree(ours)
        report("the same, not verified", [*command, "--no-verify"], console)
        itself = [sys.executable, __file__, str(options.folder), "--run-modelopt"]
        report("modelopt's exporter", itself, console)


def report(name: str, command: list[str], console: Console) -> int:
    """Run a command, and print its time and its largest resident memory, which is returned."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{printed}")
    peak: int = usage.ru_maxrss * 1024
    seconds = time.perf_counter() - start
    console.print(printed.strip(), highlight=False, soft_wrap=True)
    line = f"{name}: {seconds:.0f} s, peak resident memory {peak / 1e9:.2f} GB"
    console.print(line, highlight=False, soft_wrap=True)
    return peak


def write_random_checkpoint(recipe: Path, folder: Path, *, num_layers: int | None) -> None:
    """The model of a recipe in bf16 with random weights, as a release checkpoint."""
    from tst_megatron.checkpoint.folder import RELEASE, TRACKER
    from tst_megatron.checkpoint.reader.process import in_one_process
    from tst_megatron.checkpoint.reader.weights import skeleton
    from tst_megatron.hf.importing import CONTENT_METADATA, contents

    in_one_process()
    import torch

    from tst_megatron.megatron.distributed_checkpoint.model import write_checkpoint

    args = arguments(recipe, num_layers)
    weights, aliases = skeleton(args, CONTENT_METADATA)
    shapes = {name: shape_of(entry) for name, entry in weights.items() if hasattr(entry, "data")}
    generator = torch.Generator().manual_seed(1)

    def read(name: str) -> torch.Tensor:
        values = torch.empty(shapes[name], dtype=torch.bfloat16)
        return values.uniform_(-0.05, 0.05, generator=generator)

    (folder / RELEASE).mkdir(parents=True)
    with Progress() as progress:
        task = progress.add_task("writing", total=None)
        write_checkpoint(
            folder / RELEASE,
            weights,
            read,
            dtype=lambda _: torch.bfloat16,
            common=contents(args),
            aliases=aliases,
            on_weight=lambda done, total: progress.update(task, completed=done, total=total),
        )
    (folder / TRACKER).write_text(RELEASE)


def shape_of(entry: object) -> tuple[int, ...]:
    """The shape of a weight of a model on the meta device."""
    return tuple(getattr(getattr(entry, "data", None), "shape", ()))


def arguments(recipe: Path, num_layers: int | None) -> argparse.Namespace:
    """Megatron's arguments of a recipe's model in one CPU process, trained in bf16."""
    import torch

    from tst_megatron.recipe.parameters import arguments_of
    from tst_megatron.recipe.recipe import load_recipe

    args = arguments_of(load_recipe(recipe, [f"num-layers={num_layers}"] if num_layers else []))
    args.bf16, args.params_dtype = True, torch.bfloat16
    args.padded_vocab_size = args.vocab_size
    return args


def export_with_modelopt(folder: Path) -> None:
    """The checkpoint of a folder through nvidia-modelopt, as far as it goes in one process."""
    from tst_megatron.checkpoint.reader.open import open_checkpoint
    from tst_megatron.checkpoint.reader.weights import TrainedWeights, load_model

    loaded = load_model(TrainedWeights(open_checkpoint(folder / "checkpoint")))
    import torch
    from modelopt.torch.export import export_mcore_gpt_to_hf

    export_mcore_gpt_to_hf(
        loaded.model,
        # It takes the configuration of an existing model; ours has written it.
        pretrained_model_name_or_path=str(folder / "hf"),
        export_dir=str(folder / "modelopt"),
        dtype=torch.bfloat16,
    )


if __name__ == "__main__":
    main()
