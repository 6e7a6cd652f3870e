"""Write and read the losses of an evaluation, one entry for each held-out sequence.

``RUN/evaluations/validation-0000250.npz`` belongs to the evaluation after step 250. Its arrays, for
n sequences:

- ``loss_sum`` float64 [n]: nats, summed over the positions of a sequence that count.
- ``num_positions`` int64 [n]: positions that count, all L of them unless ``eod-mask-loss`` is set.
- ``loss_by_position`` float64 [n, P] and ``num_by_position`` int64 [n, P]: the same for each of P
  parts of a sequence. Part p has the positions from ``position_edges[p]`` on and before
  ``position_edges[p + 1]``, an int64 [P + 1].
- ``loss_by_frequency`` float64 [n, F], ``num_by_frequency`` int64 [n, F] and ``frequency_edges``
  int64 [F + 1]: the same by how often the target occurs among all targets of the n sequences.

The n sequences are those of ``HeldOutPositions``, in its order, whatever the layout was. So entry i
is the same text in every evaluation of every run that holds out the same positions. The loss that
the run has logged is the sum of ``loss_sum`` divided by the sum of ``num_positions``, up to the
rounding of Megatron's single precision.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tst_megatron.system.files import write_bytes_beside
from tst_megatron.system.records import Damaged, read_bytes

MOST_POSITION_PARTS = 8

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_NAME = re.compile(r"(validation|test)-(\d{7,})\.npz")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The losses of sequences, each divided into P parts of its positions."""

    edges: Ints
    """[P + 1] rising."""
    loss_sum: Floats
    """[n, P] nats."""
    num_positions: Ints
    """[n, P]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockLosses:
    """The losses of one evaluation, one entry for each held-out sequence."""

    loss_sum: Floats
    """[n] nats, summed over the positions that count."""
    num_positions: Ints
    """[n]."""
    by_position: Parts | None = None
    """By the position in the sequence."""
    by_frequency: Parts | None = None
    """By how often the target occurs among the targets of the held-out sequences."""

    @property
    def loss_mean(self) -> float:
        """Mean loss of a position, in nats: what the run has logged."""
        return float(self.loss_sum.sum() / self.num_positions.sum())


def position_edges(num_latent_positions: int) -> Ints:
    """Return the edges [P + 1] of as many equal parts as L divides into, 8 at most.

    Example: L = 128 has 8 parts of 16 positions, and L = 20 has 5 parts of 4.
    """
    most = min(MOST_POSITION_PARTS, num_latent_positions)
    num_parts = next(n for n in range(most, 0, -1) if num_latent_positions % n == 0)
    return np.arange(num_parts + 1, dtype=np.int64) * (num_latent_positions // num_parts)


def frequency_parts(counts_V: Ints) -> tuple[Ints, Ints]:
    """Divide token ids by how often they occur, at powers of two.

    Args:
        counts_V: [V] occurrences of each id.

    Returns:
        The edges [F + 1], which are 1, 2, 4 and so on; and the part [V] of each id. An id that does
        not occur is in part 0.
    """
    parts_V = np.frexp(np.maximum(counts_V, 1).astype(np.float64))[1].astype(np.int64) - 1
    return 2 ** np.arange(parts_V.max() + 2, dtype=np.int64), parts_V


def places_of_rank(
    num_micro_batches: int, *, micro_batch_size: int, rank: int, num_ranks: int
) -> Ints:
    """Return which held-out sequences a data-parallel rank evaluates, in its order.

    Megatron deals sequences out in turns, one micro-batch to each rank. Example: with micro-batches
    of 2 and 3 ranks, rank 1 has sequences 2 and 3, then 8 and 9.

    Args:
        num_micro_batches: that a rank evaluates.
        micro_batch_size: in evaluation.
        rank: in the data-parallel group.
        num_ranks: of the data-parallel group.
    """
    first = (np.arange(num_micro_batches) * num_ranks + rank) * micro_batch_size
    places: Ints = (first[:, None] + np.arange(micro_batch_size)).ravel()
    return places


# --- files ----------------------------------------------------------------------------------------


def file_of(folder: Path, event: str, step: int) -> Path:
    """Return where the losses of an evaluation are kept.

    Args:
        folder: ``evaluations/`` of a run.
        event: ``validation`` or ``test``.
        step: steps completed.
    """
    return folder / f"{event}-{step:07d}.npz"


def list_evaluations(folder: Path, event: str = "validation") -> dict[int, Path]:
    """Return step -> file of the evaluations that are kept, in order; none if there is no folder.

    Raises:
        OSError: the folder cannot be read.
    """
    if not folder.is_dir():
        return {}
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return dict(sorted((int(match[2]), path) for match, path in found if match[1] == event))


def drop_evaluations_after(folder: Path, step: int) -> None:
    """Delete the evaluations of later steps, which this start makes again.

    Raises:
        OSError: one cannot be deleted.
    """
    for event in ("validation", "test"):
        for evaluated, path in list_evaluations(folder, event).items():
            if evaluated > step:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()


def write_blocks(path: Path, blocks: BlockLosses) -> None:
    """Write the losses of an evaluation; the file appears whole under its name.

    Raises:
        OSError: it cannot be written.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        "loss_sum": blocks.loss_sum,
        "num_positions": blocks.num_positions,
    }
    for name, parts in (("position", blocks.by_position), ("frequency", blocks.by_frequency)):
        if parts is not None:
            arrays |= {
                f"{name}_edges": parts.edges,
                f"loss_by_{name}": parts.loss_sum,
                f"num_by_{name}": parts.num_positions,
            }
    content = io.BytesIO()
    # Compressed: the counts are the same in every evaluation, and take no room so.
    # Not with allow_pickle, which older NumPy takes for an array to be saved.
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(exist_ok=True)
    write_bytes_beside(path, content.getvalue())


def read_blocks(path: Path, *, with_parts: bool = True) -> BlockLosses:
    """Read the losses of an evaluation.

    Args:
        path: of the file.
        with_parts: also those by position and by frequency, which take most of the time.

    Raises:
        FileNotFoundError: it is not there.
        Damaged: it cannot be read, or is no such file.
    """
    content = read_bytes(path)
    if content is None:
        raise FileNotFoundError(f"{path}: there is no such file")
    arrays = _arrays(content, None if with_parts else ("loss_sum", "num_positions"))
    loss_sum, num_positions = _pair(arrays, "loss_sum", "num_positions", num_dimensions=1)
    if not len(loss_sum):
        raise Damaged("holds no sequence")
    return BlockLosses(
        loss_sum=loss_sum,
        num_positions=num_positions,
        by_position=_parts(arrays, "position", num_positions),
        by_frequency=_parts(arrays, "frequency", num_positions),
    )


def _arrays(content: bytes, names: Sequence[str] | None) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an archive; of some names, or all."""
    try:
        # Without pickles, so that nothing in the file can run.
        file = np.load(io.BytesIO(content), allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise Damaged("is no archive of arrays")
        return {name: file[name] for name in file.files if names is None or name in names}
    except Damaged:
        raise
    except Exception as error:
        # Of many kinds, from zip, zlib and numpy, which may take it for another kind of file.
        raise Damaged(f"is no whole archive of arrays ({error})") from error


def _pair(
    arrays: dict[str, npt.NDArray[Any]], sums: str, counts: str, *, num_dimensions: int
) -> tuple[Floats, Ints]:
    for name, kind in ((sums, "f"), (counts, "i")):
        array = arrays.get(name)
        if array is None or array.dtype.kind != kind or array.ndim != num_dimensions:
            raise Damaged(f"holds no {name!r}" if array is None else f"holds no {name!r} that fits")
    if arrays[sums].shape != arrays[counts].shape:
        raise Damaged(f"has other shapes of {sums!r} and {counts!r}")
    if arrays[counts].size and arrays[counts].min() < 0:
        raise Damaged(f"counts less than nothing in {counts!r}")
    return arrays[sums].astype(np.float64), arrays[counts].astype(np.int64)


def _parts(arrays: dict[str, npt.NDArray[Any]], name: str, whole: Ints) -> Parts | None:
    """Return the losses divided by something; None if the file does not have them."""
    names = f"{name}_edges", f"loss_by_{name}", f"num_by_{name}"
    if not any(each in arrays for each in names):
        return None
    loss_sum, num_positions = _pair(arrays, names[1], names[2], num_dimensions=2)
    edges = arrays.get(names[0])
    if edges is None or edges.dtype.kind != "i" or edges.shape != (loss_sum.shape[1] + 1,):
        raise Damaged(f"holds no {names[0]!r} that fits")
    if len(num_positions) != len(whole) or (num_positions.sum(axis=1) != whole).any():
        raise Damaged(f"has parts in {names[2]!r} that do not add up to 'num_positions'")
    return Parts(edges=edges.astype(np.int64), loss_sum=loss_sum, num_positions=num_positions)
