"""Keep parts on disk: a part is what a unit became, a folder that is complete or absent.

They are in `<output>.parts/` until the output is finished. A run that was killed continues from
them. The name of a part says of which content and by which settings it was made. So it still serves
when other files of the text are added, removed or repaired, and it never serves other settings.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tst_megatron.data.text.documents import Rejected
from tst_megatron.data.text.units import Unit
from tst_megatron.data.tokenizer.round_trip import RoundTrip
from tst_megatron.data.tokens.writer import IndexedFacts
from tst_megatron.system.files import beside, is_beside, write_beside

FILE_NAME = "part.json"
MARK_NAME = "PARTS"
_DELETED = ".deleted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The documents of one unit, encoded."""

    folder: Path
    splits: dict[str, IndexedFacts]
    num_empty: int
    rejected: list[Rejected]
    round_trip: RoundTrip


def parts_folder(output: Path) -> Path:
    """Return the folder of an output's parts."""
    return output.with_name(f"{output.name}.parts")


def part_folder(parts: Path, unit: Unit, sha256: str, settings: str) -> Path:
    """Return the folder that the part of a unit has, once it is made.

    Args:
        parts: of all units.
        unit: of a file.
        sha256: of the file that the unit is a range of.
        settings: as `begin_parts` gives them.
    """
    return parts / f"{sha256[:32]}-{unit.start}-{unit.stop}-{settings}"


def hashes_path(prefix: Path) -> Path:
    """Return the file of hashes of a split's documents, 16 bytes each, in their order."""
    return prefix.with_name(f"{prefix.name}.hashes")


def counts_path(folder: Path) -> Path:
    """Return the file of token counts in a part's training documents, an int64 array."""
    return folder / "counts.npy"


def read_hashes(prefix: Path) -> npt.NDArray[np.uint64]:
    """Return [documents, 2] uint64, the hashes of a split's documents."""
    path = hashes_path(prefix)
    # A unit without a document has no such file.
    content = path.read_bytes() if path.is_file() else b""
    return np.frombuffer(content, dtype=np.uint64).reshape(-1, 2)


def write_part(
    folder: Path,
    splits: Mapping[str, IndexedFacts],
    *,
    num_empty: int,
    rejected: Sequence[Rejected],
    round_trip: RoundTrip,
) -> None:
    """Write part.json, the last file of a part."""
    values = {
        "splits": {name: asdict(facts) for name, facts in splits.items()},
        "num_empty": num_empty,
        "rejected": [[each.number, each.problem] for each in rejected],
        "round_trip": round_trip.record(),
    }
    (folder / FILE_NAME).write_text(json.dumps(values), encoding="utf-8")


def load_part(folder: Path, unit: Unit) -> Part | None:
    """Return the part of a unit, if it has been made.

    Args:
        folder: as `part_folder` names it.
        unit: that it was made of, or one with the same content.

    Raises:
        ValueError: it is damaged.
    """
    if not folder.is_dir():
        return None
    try:
        values = json.loads((folder / FILE_NAME).read_bytes())
        return Part(
            folder=folder,
            splits={name: IndexedFacts(**facts) for name, facts in values["splits"].items()},
            num_empty=int(values["num_empty"]),
            rejected=[Rejected(unit.path, *each) for each in values["rejected"]],
            round_trip=RoundTrip.recorded(values["round_trip"]),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{folder}: is damaged ({error!r}). Delete this folder; it will be made again."
        ) from error


def is_parts_folder(folder: Path) -> bool:
    """Tell whether `begin_parts` has made this folder."""
    return (folder / MARK_NAME).is_file()


def begin_parts(parts: Path, settings: Mapping[str, Any]) -> str:
    """Make the folder of parts, or continue with the existing one.

    Args:
        parts: as `parts_folder` names it.
        settings: what decides each part beside the content of its unit, as JSON values.

    Returns:
        The settings in short, for the names of the parts.

    Raises:
        ValueError: the folder exists and holds something else.
    """
    mark = parts / MARK_NAME
    if not mark.is_file():
        parts.mkdir(parents=True, exist_ok=True)
        if any(not is_beside(path, mark) for path in parts.iterdir()):
            raise ValueError(
                f"{parts}: exists and is no folder of parts (no {MARK_NAME}). Move it away, or "
                "give another output folder."
            )
        write_beside(mark, "What `data prepare` has done of its output; it goes on from here.\n")
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def delete_parts(parts: Path) -> None:
    """Delete a folder of parts, if it is one, and what a killed deletion left of one."""
    for path in parts.parent.glob(f".{glob.escape(parts.name)}.*{_DELETED}"):
        shutil.rmtree(path)
    if is_parts_folder(parts):
        # Renamed first: half of a folder must not look like one to continue from.
        new = beside(parts)
        new = new.with_name(f"{new.name}{_DELETED}")
        parts.rename(new)
        shutil.rmtree(new)
