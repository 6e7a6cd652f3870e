"""Read scalars and texts from TensorBoard's event files, without making an object of each event.

A file is a row of records (https://github.com/tensorflow/tensorboard/blob/master/tensorboard/
compat/tensorflow_stub/pywrap_tensorflow.py): 8 bytes length, 4 bytes checksum of it, the event as a
protocol buffer, 4 bytes checksum. TensorBoard's own reader takes 30 seconds for the scalars of
100,000 steps. Here records are told apart by the bytes of their tags, and few are parsed.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PATTERN = "*tfevents*"
_HEAD, _CHECKSUM = 12, 4
_TEXT = "/text_summary"
_DOUBLE = 2
"""TensorBoard's number for float64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Events:
    """What was wanted of a folder of event files."""

    scalars: dict[str, dict[int, float]]
    """Tag -> step -> value, by step."""
    texts: dict[str, str]
    """Tag without TensorBoard's ending -> the last text."""


def event_files(folder: Path) -> list[Path]:
    """List the event files of a folder, in the order in which they were begun."""
    # The name has the seconds: events.out.tfevents.1795994576.host.9380.0
    return sorted(path for path in folder.glob(PATTERN) if path.is_file())


def read_events(
    files: Sequence[Path], tags: Collection[str], *, most_values: int, whole: Collection[str] = ()
) -> Events:
    """Read some scalars, and all texts.

    A file that a restart began replaces what earlier files say of the same and of later steps. A
    record that a kill has torn ends its file.

    Args:
        files: in the order in which they were begun.
        tags: of the scalars that are wanted.
        most_values: of a scalar. Where it has more, the first half as many are read, since a curve
            falls fast where it begins, and as many at even distances.
        whole: tags whose values are all read.

    Raises:
        OSError: one cannot be read.
    """
    scalars: dict[str, dict[int, float]] = {tag: {} for tag in tags}
    texts: dict[str, str] = {}
    for file in files:
        found = _by_tag(file.read_bytes(), tags)
        for tag, events in found.items():
            if tag not in scalars:
                texts[tag] = str(_value(events[-1])[1])
                continue
            distance = 1 if tag in whole else max(1, len(events) // most_values)
            wanted = [*events[::distance], events[-1]]
            if distance > 1:
                wanted += events[: most_values // 2]
            new = dict(map(_value, wanted))
            kept = {step: value for step, value in scalars[tag].items() if step < min(new)}
            scalars[tag] = kept | new
    return Events(
        scalars={tag: dict(sorted(values.items())) for tag, values in scalars.items() if values},
        texts=texts,
    )


def tags_of(files: Sequence[Path]) -> list[str]:
    """List the tags of the scalars that the first and the last thousand events of files have."""
    # Imported here: only foreign runs need it.
    from tensorboard.compat.proto.event_pb2 import Event

    tags = set()
    for file in files:
        events = list(_events(file.read_bytes()))
        for event in (*events[:1000], *events[-1000:]):
            tags |= {value.tag for value in Event.FromString(event).summary.value}
    return sorted(tag for tag in tags if not tag.endswith(_TEXT))


def _by_tag(data: bytes, tags: Collection[str]) -> dict[str, list[bytes]]:
    """Sort the events of a file by their tags; texts are put under their tags without ending."""
    # A tag is a field of its own in an event: its number and type, its length, its bytes.
    keys = {bytes([10, len(tag)]) + tag.encode(): tag for tag in tags}
    found: dict[str, list[bytes]] = {}
    for event in _events(data):
        # Time and step come first and take few bytes, and so do the heads of both messages.
        at = event.find(b"\n", 11, 40)
        while at >= 0:
            length = event[at + 1] if at + 1 < len(event) else 0
            tag = keys.get(event[at : at + 2 + length])
            if tag is not None:
                found.setdefault(tag, []).append(event)
                break
            if event[at + 2 : at + 2 + length].endswith(_TEXT.encode()):
                name = event[at + 2 : at + 2 + length].decode("utf-8", "replace")
                found.setdefault(name.removesuffix(_TEXT), []).append(event)
                break
            at = event.find(b"\n", at + 1, 40)
    return found


def _events(data: bytes) -> Iterator[bytes]:
    place = 0
    while place + _HEAD <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        end = place + _HEAD + length
        if end + _CHECKSUM > len(data):
            return
        yield data[place + _HEAD : end]
        place = end + _CHECKSUM


def _value(event: bytes) -> tuple[int, Any]:
    """Return the step and the first value of an event."""
    # Imported here: only foreign runs need it.
    from tensorboard.compat.proto.event_pb2 import Event

    parsed = Event.FromString(event)
    value = parsed.summary.value[0]
    if value.WhichOneof("value") == "simple_value":
        return parsed.step, float(value.simple_value)
    tensor = value.tensor
    if tensor.string_val:
        return parsed.step, tensor.string_val[0].decode("utf-8", "replace")
    if tensor.tensor_content:
        kind = np.float64 if tensor.dtype == _DOUBLE else np.float32
        return parsed.step, float(np.frombuffer(tensor.tensor_content, kind)[0])
    return parsed.step, float((*tensor.float_val, *tensor.double_val, math.nan)[0])
