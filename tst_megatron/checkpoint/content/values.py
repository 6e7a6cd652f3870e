"""Read tensors of a checkpoint, a stored chunk at a time, and check their bytes and numbers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tst_megatron.system.machine.errors import machine_error
from tst_megatron.system.pickles.torch_archive import archive_problem

if TYPE_CHECKING:
    # Takes seconds to import, and most commands do not need it.
    import torch


class DamagedItem(ValueError):
    """A stored item is not what was saved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """One stored part of a tensor, and where its bytes are."""

    name: str
    """Of the tensor."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    place: Any
    """Torch's ``_StorageInfo``."""

    @property
    def num_bytes(self) -> int:
        """That it takes in its shard."""
        num_bytes: int = self.place.length
        return num_bytes

    @property
    def memory(self) -> int:
        """That reading and checking it takes: its archive, its values and a copy of them."""
        return 3 * self.num_bytes


def chunks_of(description: Any) -> dict[str, list[Chunk]]:
    """Every stored chunk, by the name of its tensor.

    Args:
        description: torch's ``Metadata``, against which ``table_problems`` has nothing.
    """
    places = {
        (index.fqn, tuple(index.offset)): place
        for index, place in description.storage_data.items()
        if index.offset is not None
    }
    return {
        name: [
            Chunk(
                name=name,
                offsets=tuple(chunk.offsets),
                sizes=tuple(chunk.sizes),
                dtype=item.properties.dtype,
                place=places[name, tuple(chunk.offsets)],
            )
            for chunk in item.chunks
        ]
        for name, item in description.state_dict_metadata.items()
        if hasattr(item, "chunks")
    }


def read_chunk(checkpoint: Path, chunk: Chunk) -> torch.Tensor:
    """One chunk, its bytes held against the checksums beside them.

    Raises:
        DamagedItem: it is not what was saved.
    """
    import torch

    place = chunk.place
    try:
        with (checkpoint / place.relative_path).open("rb") as shard:
            shard.seek(place.offset)
            archive = io.BytesIO(shard.read(place.length))
        if (problem := archive_problem(archive)) is None:
            archive.seek(0)
            tensor: torch.Tensor = torch.load(archive, map_location="cpu", weights_only=True)
            if tensor.dtype == chunk.dtype and tensor.numel() == torch.Size(chunk.sizes).numel():
                return tensor.detach().reshape(chunk.sizes)
            problem = f"{tensor.dtype} {tuple(tensor.shape)} where .metadata says {chunk.dtype} "
            problem += f"{chunk.sizes}"
    except Exception as error:
        if machine_error(error) is not None:
            raise
        # Damaged bytes raise whatever they happen to mean.
        problem = str(error).partition("\n")[0] or type(error).__name__
    raise DamagedItem(f"{place.relative_path}: {chunk.name} is damaged ({problem})")


def value_problem(name: str, values: torch.Tensor, *, is_square: bool = False) -> str | None:
    """Say what is wrong with numbers that were saved as they are; None if nothing.

    Args:
        name: of their tensor.
        values: any shape.
        is_square: they are means of squares, so none is negative.
    """
    import torch

    if not values.is_floating_point() or values.numel() == 0:
        return None
    if values.element_size() == 1:
        # Of 8 bits, for which torch computes little.
        values = values.float()
    low, high = torch.aminmax(values)
    # Both are NaN if one value is.
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        number = int((~torch.isfinite(values)).sum())
        return f"{name} has {number:,} values that are not finite"
    if is_square and bool(low < 0):
        return f"{name} holds squares, and {int((values < 0).sum()):,} of them are negative"
    return None
