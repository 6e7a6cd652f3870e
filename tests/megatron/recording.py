"""What every rank of a run reads, noted by the ranks themselves, and put together again."""

from __future__ import annotations

import functools
import inspect
import json
from collections import defaultdict
from pathlib import Path

import torch


def record_tokens(folder: Path) -> None:
    """Let this rank note each micro-batch that it trains on, as its step has it in hand."""
    from megatron.core import parallel_state

    from tst_megatron.megatron import loop, names
    from tst_megatron.training import step

    read = step.read_raw_tokens

    def read_and_note(*args, **kwargs):
        tokens_BT = read(*args, **kwargs)
        # Evaluation reads through the same function, without gradients.
        if torch.is_grad_enabled():
            row = {
                "step": names.get_args().curr_iteration,
                "replica": parallel_state.get_data_parallel_rank(),
                "tokens": tokens_BT.tolist(),
                "end of document": loop.end_of_document_id(),
            }
            with (folder / f"rank-{torch.distributed.get_rank()}.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        return tokens_BT

    folder.mkdir(parents=True, exist_ok=True)
    step.read_raw_tokens = read_and_note


def record_settings(folder: Path) -> None:
    """Let this rank note with what each of its steps is made: rates, decay, moments, clipping."""
    from tst_megatron.megatron import names

    train_step = names.training.train_step

    @functools.wraps(train_step)
    def note_and_train(*args, **kwargs):
        call = inspect.signature(train_step).bind(*args, **kwargs).arguments
        groups = call["optimizer"].param_groups
        wanted = ("lr", "weight_decay", "wd_mult", "max_lr", "min_lr", "betas", "eps")
        row = {
            "step": names.get_args().curr_iteration,
            "groups": [{name: group[name] for name in wanted} for group in groups],
            "clip": call["optimizer"].chained_optimizers[0].config.clip_grad,
        }
        with (folder / f"settings-{torch.distributed.get_rank()}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        return train_step(*args, **kwargs)

    folder.mkdir(parents=True, exist_ok=True)
    names.training.train_step = note_and_train


def settings(folder: Path) -> dict[int, list[dict]]:
    """What each rank noted of each step, by steps completed before."""
    found = defaultdict(list)
    for path in sorted(folder.glob("settings-*.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            found[row["step"]].append(row)
    return dict(found)


def ends_of_documents(folder: Path) -> set[int]:
    """The token after which targets would be masked, as every rank had it in every step."""
    lines = [line for path in folder.glob("rank-*.jsonl") for line in path.read_text().splitlines()]
    return {json.loads(line)["end of document"] for line in lines}


def batches(folder: Path) -> dict[int, list[list[int]]]:
    """The samples of each global batch in the order of the stream, by steps completed before.

    Ranks that share a replica must have read the same.
    """
    of_ranks = []
    for path in sorted(folder.glob("rank-*.jsonl")):
        read = defaultdict(list)
        for row in map(json.loads, path.read_text().splitlines()):
            read[row["step"], row["replica"]].append(row["tokens"])
        of_ranks.append(read)
    of_replicas: dict[tuple[int, int], list] = {}
    for read in of_ranks:
        for key, micro_batches in read.items():
            assert of_replicas.setdefault(key, micro_batches) == micro_batches, key
    found = {}
    for step in sorted({step for step, _ in of_replicas}):
        replicas = [of_replicas[key] for key in sorted(of_replicas) if key[0] == step]
        # Megatron deals a global batch out in turns, one micro-batch to each replica.
        found[step] = [
            sample
            for micro_batches in zip(*replicas, strict=True)
            for micro_batch in micro_batches
            for sample in micro_batch
        ]
    return found
