"""Measure what the checks of a checkpoint cost a start and a save.

    python tools/measure_checks.py FOLDER

Two checkpoints are written with torch: one of many small items in many shards, as a large job saves
its metadata, and one of 1 GiB in few. Each check is timed in turns, and reading with checksums in
turns with ``torch.load`` of the same bytes.
"""

from __future__ import annotations

import argparse
import io
import itertools
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from tst_megatron.checkpoint.whole import examine, record_save
from tst_megatron.megatron.distributed_checkpoint.reading import load_tensor, read_item
from tst_megatron.system.pickles.metadata_file import read_description

STEP = 8
ROUNDS = 3
NUM_READ = 8192
"""Small items that are read: of the same kind as all others."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="scratch; deleted at the end")
    parser.add_argument("--items", type=int, default=98_304, help="of the one with many")
    parser.add_argument("--shards", type=int, default=256, help="of the one with many")
    options = parser.parse_args()
    console = Console()
    if options.folder.exists():
        raise SystemExit(f"{options.folder} exists. Name a folder that does not.")
    torch.set_num_threads(1)
    try:
        many = {f"item.{number:06d}": torch.rand(64) for number in range(options.items)}
        small = write(options.folder / "many", many, options.shards)
        few = {f"item.{number:06d}": torch.rand(1 << 24) for number in range(16)}
        large = write(options.folder / "few", few, 2)
        del many, few
        console.print(table(small, large))
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


def write(folder: Path, tensors: dict[str, torch.Tensor], num_shards: int) -> Path:
    """A checkpoint of these tensors and of a common state that says the step."""
    checkpoint = folder / f"iter_{STEP:07d}"
    state = {**tensors, "common_state/shard_0_1": [{"iteration": STEP}]}
    dcp.save(
        state,
        storage_writer=FileSystemWriter(checkpoint, thread_count=num_shards),
        planner=DefaultSavePlanner(flatten_state_dict=False),
        no_dist=True,
    )
    (checkpoint / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    record_save(checkpoint)
    return checkpoint


def table(small: Path, large: Path) -> Table:
    """What each check takes."""
    places = read_description(small).storage_data
    found = Table("check", "median CPU s", "median s")
    found.title = (
        f"{len(places):,} items in {len({place.relative_path for place in places.values()})} "
        f"shards, .metadata of {(small / '.metadata').stat().st_size / 1e6:.1f} MB; and 1 GiB"
    )
    checks: dict[str, Callable[[], object]] = {
        ".metadata alone": lambda: read_description(small),
        "before a start: tables, record, step": lambda: require_whole(small, deep=False),
        "after a save: the same, and saved.json": lambda: after_save(small),
        f"reading {NUM_READ:,} items, with checksums": lambda: read(small, is_checked=True),
        f"reading {NUM_READ:,} items, by torch.load": lambda: read(small, is_checked=False),
        "reading 1 GiB, with checksums": lambda: read(large, is_checked=True),
        "reading 1 GiB, by torch.load": lambda: read(large, is_checked=False),
        "checkpoint verify of 1 GiB": lambda: require_whole(large, deep=True),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in checks}
    for _ in range(ROUNDS):
        for name, check in checks.items():
            begun = time.process_time(), time.perf_counter()
            check()
            took[name].append((time.process_time() - begun[0], time.perf_counter() - begun[1]))
    for name, times in took.items():
        columns = zip(*times, strict=True)
        found.add_row(name, *(f"{statistics.median(column):.2f}" for column in columns))
    return found


def require_whole(checkpoint: Path, *, deep: bool) -> None:
    found = examine(checkpoint, deep=deep)
    if found.problems:
        raise SystemExit(f"{checkpoint}: {found.problems[0]}")


def after_save(checkpoint: Path) -> None:
    record_save(checkpoint, examine(checkpoint).places)


def read(checkpoint: Path, *, is_checked: bool) -> None:
    """Read tensors, as a rank does that needs them."""
    description = read_description(checkpoint)
    by_file: dict[str, list[tuple[str, object]]] = {}
    for index, place in itertools.islice(description.storage_data.items(), NUM_READ):
        if index.offset is not None:
            by_file.setdefault(place.relative_path, []).append((index.fqn, place))
    for name, items in by_file.items():
        with (checkpoint / name).open("rb") as stream:
            for item, place in items:
                if is_checked:
                    size = description.state_dict_metadata[item].size
                    load_tensor(read_item(stream, place, item), size)
                else:
                    stream.seek(place.offset)
                    torch.load(io.BytesIO(stream.read(place.length)), weights_only=True)


if __name__ == "__main__":
    main()
