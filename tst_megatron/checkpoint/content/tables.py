"""Check that the tables in a checkpoint's ``.metadata`` can be true.

It holds two tables: the tensors with the chunks that they were cut into, and where in the shards
each chunk is. Both must name the same items, the chunks must cover each tensor, and the items each
shard, without a hole and without an overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tst_megatron.system.paths import is_own_name
from tst_megatron.system.problems import shortened

_Place = tuple[str, tuple[int, ...] | None]
"""Name of an item, and of a tensor's chunk where it starts."""

_Box = tuple[tuple[int, ...], tuple[int, ...]]
"""The start of a chunk, and its sizes."""


def table_problems(description: Any) -> list[str]:
    """List where the two tables of ``.metadata`` contradict each other or themselves.

    Args:
        description: torch's ``Metadata`` of a checkpoint.

    Raises:
        Exception: damaged entries raise whatever they happen to mean.
    """
    places: dict[_Place, int] = {
        (index.fqn, None if index.offset is None else tuple(index.offset)): item.length
        for index, item in description.storage_data.items()
    }
    found = []
    if len(places) != len(description.storage_data):
        found.append("an item is stored twice")
    needed: dict[_Place, int] = {}
    for name, item in description.state_dict_metadata.items():
        if not hasattr(item, "chunks"):
            needed[name, None] = 1
            continue
        boxes = [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in item.chunks]
        if not covers(tuple(item.size), boxes):
            found.append(f"the parts of {name} do not make up its shape {tuple(item.size)}")
        for offsets, sizes in boxes:
            needed[name, offsets] = _product(sizes) * item.properties.dtype.itemsize
    found += [
        f"{_shown(place)} is described and not stored" for place in needed if place not in places
    ]
    found += [
        f"{_shown(place)} is stored and not described" for place in places if place not in needed
    ]
    found += [
        f"{_shown(place)} takes {places[place]:,} bytes, and its values alone {num_bytes:,}"
        for place, num_bytes in needed.items()
        if place in places and places[place] <= num_bytes
    ]
    return shortened([f".metadata is damaged ({text})" for text in found])


def _shown(place: _Place) -> str:
    name, offsets = place
    return name if not offsets or not any(offsets) else f"{name} at {offsets}"


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


def covers(shape: tuple[int, ...], boxes: Sequence[_Box]) -> bool:
    """Tell whether boxes cover a shape without a hole or an overlap.

    Along its first axis the shape is cut wherever a box starts or ends; in each slab, the boxes
    that reach through it must cover the other axes.
    """
    if not all(shape):
        return all(not _product(sizes) for _, sizes in boxes)
    if len(boxes) == 1:
        return boxes[0] == ((0,) * len(shape), shape)
    if not shape or any({len(offsets), len(sizes)} != {len(shape)} for offsets, sizes in boxes):
        return False
    boxes = [box for box in boxes if all(box[1])]
    if not boxes:
        return False
    starts = {offsets[0] for offsets, _ in boxes} | {
        offsets[0] + sizes[0] for offsets, sizes in boxes
    }
    cuts = sorted(starts)
    if (cuts[0], cuts[-1]) != (0, shape[0]):
        return False
    number = {cut: place for place, cut in enumerate(cuts)}
    slabs: list[list[_Box]] = [[] for _ in cuts[1:]]
    for offsets, sizes in boxes:
        rest = offsets[1:], sizes[1:]
        for slab in range(number[offsets[0]], number[offsets[0] + sizes[0]]):
            slabs[slab].append(rest)
    return all(covers(shape[1:], slab) for slab in slabs)


def shard_problems(checkpoint: Path, places: Mapping[Any, Any]) -> list[str]:
    """Shards that are not there, or hold other bytes than the items that ``.metadata`` places.

    Args:
        checkpoint: an ``iter_`` folder.
        places: torch's ``storage_data``.

    Raises:
        Exception: damaged entries raise whatever they happen to mean.
    """
    by_shard: dict[str, list[tuple[int, int]]] = {}
    for item in places.values():
        by_shard.setdefault(item.relative_path, []).append((item.offset, item.length))
    found = []
    for name, items in sorted(by_shard.items()):
        if not is_own_name(name):
            found.append(f".metadata is damaged ({ascii(name)} is no file of a checkpoint)")
            continue
        end = max(start + length for start, length in items)
        if not (checkpoint / name).is_file():
            found.append(f"{name} is missing")
        elif (size := (checkpoint / name).stat().st_size) != end:
            found.append(f"{name} has {size:,} bytes of {end:,}")
        elif (place := _first_gap(items)) is not None:
            found.append(f".metadata is damaged (a gap or an overlap in {name} at {place:,})")
    return shortened(found)


def _first_gap(items: list[tuple[int, int]]) -> int | None:
    position = 0
    for start, length in sorted(items):
        if start != position or length <= 0:
            return position
        position += length
    return None
