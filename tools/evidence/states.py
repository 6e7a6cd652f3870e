"""Read the size of every parameter, and of Adam's two moments, from the checkpoints of a run.

It shows what happens to a model at the switch. The run needs ``dist-ckpt-optim-fully-reshardable``,
under which the moments are saved for each parameter, and not for the flat buffer of all.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from tst_megatron.checkpoint.folder import list_checkpoints, step_of

PARAMETER, FIRST, SECOND = (
    f"optimizer.state.{name}." for name in ("param", "exp_avg", "exp_avg_sq")
)


def state_rows(checkpoints: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each parameter of each checkpoint, oldest first.

    A row has ``step``, ``parameter`` (layers of one kind together), ``rms`` of its values,
    ``moved`` (root mean square of the change since the checkpoint before), ``first`` (root mean
    square of Adam's first moment) and ``second`` (root of the mean of its second moment, which is
    about the root mean square of the gradient).

    Raises:
        ValueError: the moments are not saved for each parameter.
    """
    before: dict[str, torch.Tensor] = {}
    for path in sorted(list_checkpoints(checkpoints), key=step_of):
        tensors = _optimizer_tensors(path)
        names = [key.removeprefix(PARAMETER) for key in tensors if key.startswith(PARAMETER)]
        if not names:
            raise ValueError(
                f"{path}: has no Adam moments for each parameter. Train the run with "
                "dist-ckpt-optim-fully-reshardable: true"
            )
        for name in names:
            values = tensors[PARAMETER + name]
            row = {"step": step_of(path), "parameter": name, "rms": _rms(values)}
            if name in before:
                row["moved"] = _rms(values - before[name])
            row["first"] = _rms(tensors[FIRST + name])
            row["second"] = tensors[SECOND + name].mean().sqrt().item()
            before[name] = values
            yield row


def _optimizer_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    saved = dcp.FileSystemReader(str(checkpoint)).read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(kept.size, dtype=kept.properties.dtype)
        for key, kept in saved.items()
        if isinstance(kept, TensorStorageMetadata) and key.startswith((PARAMETER, FIRST, SECOND))
    }
    if tensors:
        with warnings.catch_warnings():
            # Torch warns that it reads in one process, as it is told.
            warnings.simplefilter("ignore")
            dcp.load(tensors, checkpoint_id=str(checkpoint), no_dist=True)
    return tensors


def _rms(values: torch.Tensor) -> float:
    return values.square().mean().sqrt().item()
