"""Find and read the losses per held-out sequence that a run keeps of its evaluations."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np

from tst_megatron.compare.results import BlockLosses
from tst_megatron.system.records import Damaged, read_bytes

EVALUATIONS = "evaluations"
"""The folder in a run folder; runs of earlier versions have none."""
_NAME = re.compile(r"validation-(\d{7,})\.npz")


def list_evaluations(folder: Path) -> dict[int, Path]:
    """Return step -> file of the evaluations on validation text, in order; none without a folder.

    Raises:
        OSError: the folder cannot be read.
    """
    if not folder.is_dir():
        return {}
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return dict(sorted((int(match[1]), path) for match, path in found))


def read_blocks(path: Path) -> BlockLosses:
    """Read the losses of an evaluation.

    Raises:
        Damaged: it cannot be read, or is no such file.
    """
    content = read_bytes(path)
    if content is None:
        raise Damaged("is not there")
    try:
        # Without pickles, so that nothing in the file can run. Only two of its arrays are read.
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            loss_sum = file["loss_sum"].astype(np.float64)
            num_positions = file["num_positions"].astype(np.int64)
    except Exception as error:
        # Of many kinds, from zip, zlib and numpy, which may take it for another kind of file.
        raise Damaged(f"is no whole archive of losses ({error})") from error
    if loss_sum.ndim != 1 or loss_sum.shape != num_positions.shape or not num_positions.sum() > 0:
        raise Damaged("has arrays that do not fit each other")
    if not np.isfinite(loss_sum).all() or num_positions.min() < 0:
        raise Damaged("has losses that are no finite numbers")
    return BlockLosses(loss_sum=loss_sum, num_positions=num_positions)
