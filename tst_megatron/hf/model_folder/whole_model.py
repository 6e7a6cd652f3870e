"""Check a complete model folder before transformers reads it: its errors speak of its own code."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tst_megatron.hf.families.family import Family, parts_without_form
from tst_megatron.hf.families.known import FAMILIES
from tst_megatron.hf.model_folder.config_problems import config_problems
from tst_megatron.hf.model_folder.configuration import (
    complete,
    known_family,
    read_block,
    refuse,
    written_config,
)
from tst_megatron.hf.model_folder.safetensors_files import INDEX
from tst_megatron.hf.model_folder.weight_files import HuggingFaceWeights
from tst_megatron.system.records import Damaged, read_json

_ALONG = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
)


def check_config(folder: Path) -> Family | None:
    """Refuse a configuration that is none, or has numbers that are those of no model.

    Args:
        folder: in Hugging Face format.

    Returns:
        The family; None where it is another than those known here, and nothing else was looked at.

    Raises:
        ValueError: with all that was found.
    """
    written = written_config(folder)
    said = written.get("model_type"), written.get("architectures")
    if not any(said[0] == each.model_type or said[1] == [each.architecture] for each in FAMILIES):
        return None
    family = known_family(folder, written)
    refuse(folder, config_problems(written, family))
    return family


def check_model(folder: Path) -> HuggingFaceWeights:
    """Refuse a folder whose configuration or weights are damaged or do not belong together.

    Args:
        folder: in Hugging Face format.

    Returns:
        Its weights, none of which was read but to compare tied tables.

    Raises:
        ValueError: with all that was found.
    """
    family = check_config(folder)
    files = HuggingFaceWeights(folder)
    # transformers has parts that the rules of the weights here do not name, such as biases.
    if family and not parts_without_form(written_config(folder)):
        files.check(complete(folder, family))
    return files


def problems_along(folder: Path) -> list[str]:
    """List what is wrong with the files beside the weights that would be copied as they are.

    Args:
        folder: in Hugging Face format.
    """
    found = []
    for name in _ALONG:
        try:
            read_json(folder / name)
        except Damaged as error:
            found.append(f"{folder / name}: {error}. Fetch it again, or delete it")
    return found


@contextmanager
def as_transformers_reads(folder: Path) -> Iterator[Path]:
    """A folder with the same model in it that transformers can open.

    transformers 5.14.1 ends in a KeyError at an index without its ``metadata``, of which it uses
    nothing here (``get_checkpoint_shard_files``). For removal when it does not.

    Args:
        folder: has passed ``HuggingFaceWeights``.
    """
    index = read_block(folder / INDEX)
    if index is None or isinstance(index.get("metadata"), dict):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tst-megatron-") as name:
        for path in folder.iterdir():
            if path.name != INDEX:
                (Path(name) / path.name).symlink_to(path.absolute())
        (Path(name) / INDEX).write_text(json.dumps({**index, "metadata": {}}))
        yield Path(name)
