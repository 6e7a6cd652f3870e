"""Find out which safetensors file has which tensor, by the headers and by the index."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tst_megatron.hf.model_folder.configuration import read_block
from tst_megatron.system.paths import is_own_name

INDEX = "model.safetensors.index.json"
ONE_FILE = "model.safetensors"

_ROTARY = re.compile(r"(?:^|\.)rotary_emb\.(?:original_)?(?:inv_freq|cos_cached|sin_cached)$")
_MASK = re.compile(r"[._](?:attn|attention)\.(masked_bias|bias)$")
_LFS = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor, as the header of its file has it."""

    file: str
    """Name of the file, which lies in the folder."""
    dtype: str
    """The name that safetensors has for its type."""
    shape: tuple[int, ...]


def is_buffer(name: str, shape: tuple[int, ...] | None = None) -> bool:
    """Tell whether a tensor is no weight: a model computes it from its configuration.

    Args:
        name: as the files have it.
        shape: where it is known, a mask is told from a bias by it.
    """
    if _ROTARY.search(name):
        return True
    match = _MASK.search(name)
    if match is None:
        return False
    # A mask is [1, 1, positions, positions], and what stands in its place a single number.
    is_mask = shape is None or (len(shape) == 4 and shape[:2] == (1, 1))
    return match[1] == "masked_bias" or is_mask


def open_safetensors(path: Path) -> Any:
    """A safetensors file, its header checked by the library.

    Raises:
        ValueError: it is none, or is incomplete.
    """
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {_what_it_is(path, error)}. Fetch it again.") from error


def _what_it_is(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(len(_LFS))
    if start == _LFS:
        return "is a pointer of git-lfs, whose content was never fetched (git lfs pull)"
    if not start:
        return "cannot be read: it is empty"
    return f"cannot be read as safetensors ({error}): it is damaged, cut short, or something else"


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Return what the files hold, in their order, compared with the index if there is one.

    Raises:
        ValueError: a file is missing or damaged, or the index says something else than they do.
    """
    listed = _weight_map(folder)
    files = sorted(set(listed.values())) if listed is not None else [ONE_FILE]
    found: dict[str, Stored] = {}
    unlisted = []
    for file in files:
        opened = open_safetensors(folder / file)
        for name in opened.keys():  # noqa: SIM118
            part = opened.get_slice(name)
            shape = tuple(part.get_shape())
            found.setdefault(name, Stored(file, part.get_dtype(), shape))
            if listed is not None and listed.get(name) != file and not is_buffer(name, shape):
                where = f"in {listed[name]}" if name in listed else "nowhere"
                unlisted.append(f"{file} has {name}, which is {where} by the index")
    problems = [
        f"{name} is not in {file}, where the index has it"
        for name, file in (listed or {}).items()
        if name not in found
    ] + unlisted
    if problems:
        shown = "; ".join(problems[:10]) + ("; and others" if len(problems) > 10 else "")
        raise ValueError(
            f"{folder / INDEX}: does not fit the files ({len(problems)} differences): {shown}. "
            "Fetch the folder again."
        )
    return found


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Weight -> file by the index; None where all are in one file and nothing lists them."""
    block = read_block(folder / INDEX)
    if block is None:
        if not (folder / ONE_FILE).is_file():
            raise ValueError(
                f"{folder}: has neither {ONE_FILE} nor {INDEX}. Give a folder whose weights are in "
                "safetensors files (save_pretrained writes them)."
            )
        return None
    listed = block.get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(
            f"{folder / INDEX}: is no index of weights: its weight_map must name a file for each, "
            f"and is {json.dumps(listed)[:60]}. Fetch it again."
        )
    names = set(map(str, listed.values()))
    if outside := sorted(
        str(file) for file in listed.values() if not is_own_name(file) or "\\" in file
    ):
        raise ValueError(
            f"{folder / INDEX}: names {', '.join(map(repr, outside[:5]))}, and a model's files lie "
            "beside its index. Fetch the folder again, or put them there and correct the index."
        )
    if others := sorted(name for name in names if not name.endswith(".safetensors")):
        raise ValueError(f"{folder / INDEX}: names {', '.join(others)}, no safetensors file.")
    if absent := sorted(name for name in names if not (folder / name).is_file()):
        raise ValueError(
            f"{folder}: {', '.join(absent)} missing, which {INDEX} names. Fetch the folder again."
        )
    if ONE_FILE not in names and (folder / ONE_FILE).is_file():
        raise ValueError(
            f"{folder}: has {ONE_FILE} and an index of other files. transformers reads the first, "
            "others the second: move the one aside that is not the model."
        )
    return dict(listed)
