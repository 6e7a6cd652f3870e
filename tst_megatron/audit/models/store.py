"""Keep scores in a folder, so that an audit that was interrupted goes on where it was."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tst_megatron.audit.items import Scores
from tst_megatron.audit.models.scores import FIELDS
from tst_megatron.system.files import write_bytes_beside
from tst_megatron.system.records import Damaged, read_bytes

FORMAT = 1


def path_of(folder: Path, fingerprint: str, suite: str, suite_fingerprint: str) -> Path:
    """Return the file of one model's scores of one suite; other weights or items, another file."""
    return folder / f"{suite}-{fingerprint[:12]}-{suite_fingerprint[:12]}-{FORMAT}.npz"


def save(path: Path, scores: Scores, inverse_temperature: float) -> None:
    """Write scores so that a killed process leaves all or none of them."""
    content = io.BytesIO()
    # The scores are not more exact than float32 themselves.
    arrays: dict[str, Any] = {
        name: np.asarray(getattr(scores, name), dtype=np.float32) for name in FIELDS
    }
    np.savez(content, inverse_temperature=np.array(inverse_temperature), **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_beside(path, content.getvalue())


def read(path: Path, num_scored: int) -> tuple[Scores, float] | None:
    """Return scores and the inverse temperature that they were read at; None where there are none.

    A damaged file counts as none, since its scores can be computed again.
    """
    try:
        content = read_bytes(path)
    except Damaged:
        return None
    if content is None:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            values = {name: file[name].astype(np.float64) for name in FIELDS}
            inverse = float(file["inverse_temperature"])
    except (ValueError, KeyError, OSError, zipfile.BadZipFile, EOFError):
        return None
    if any(value.shape != (num_scored,) for value in values.values()):
        return None
    return Scores(
        **{name: values[name] for name in FIELDS if name != "is_top"},
        is_top=values["is_top"] > 0.5,
    ), inverse
