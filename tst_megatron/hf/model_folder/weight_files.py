"""Read the weights of a Hugging Face model folder one at a time, and write them in files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tst_megatron.checkpoint.outputs import check_output
from tst_megatron.hf.families.known import family_of_config
from tst_megatron.hf.model_folder.safetensors_files import (
    INDEX,
    ONE_FILE,
    Stored,
    is_buffer,
    open_safetensors,
    stored_tensors,
)
from tst_megatron.hf.weights import rules, shapes
from tst_megatron.system.files import check_not_claimed

_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_EXPERT = re.compile(r"model\.layers\.\d+\.mlp\.experts\.(\d+)\.")

SHARD_BYTES = 500_000_000
"""Largest size of one safetensors file, unless a single tensor is larger. Twice as much is in
memory while it is written."""


class HuggingFaceWeights:
    """The weights of a folder, one at a time: no more than one file is open."""

    def __init__(self, folder: Path) -> None:
        """Read which file has which weight, and what each file says that it holds.

        Buffers that older versions of transformers kept among the weights are passed over.

        Raises:
            ValueError: the folder has no complete set of safetensors files, or its index says
                something else than they do.
        """
        self.folder = folder
        self._stored = {
            name: stored
            for name, stored in stored_tensors(folder).items()
            if not is_buffer(name, stored.shape)
        }
        self._open: tuple[str, Any] = "", None

    def names(self) -> list[str]:
        """Every weight, as the files have it."""
        return list(self._stored)

    def files(self) -> set[str]:
        """The names of the files."""
        return {stored.file for stored in self._stored.values()}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight, without reading it."""
        return self._stored[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """The type of a weight, without reading it.

        Raises:
            ValueError: a type that no model is trained in.
        """
        stored = self._stored[name].dtype
        if stored not in _TYPES:
            raise ValueError(f"{self.folder}: {name} {_wrong_type(stored)}. Convert it first.")
        return _TYPES[stored]

    def read(self, name: str) -> Tensor:
        """One weight, as it is in the files."""
        try:
            tensor: Tensor = self._file(name).get_tensor(name)
        except SafetensorError as error:
            raise ValueError(
                f"{self.folder / self._stored[name].file}: {name} cannot be read ({error}). Fetch "
                "it again."
            ) from error
        return tensor

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse weights that are not those of a configuration, all of them at once.

        Args:
            config: a config.json of a known family, complete.

        Raises:
            ValueError: a weight is missing, unknown, or has another shape, or there is an output
                layer where the configuration has none.
        """
        # A number of layers that is another one would be a list of weights without an end.
        if counts := _other_counts(self._stored, config):
            raise ValueError(f"{self.folder}: config.json is not that of the files: {counts}.")
        if found := self._differences(config):
            shown = "; ".join(found[:20]) + ("; and others" if len(found) > 20 else "")
            raise ValueError(
                f"{self.folder}: its weights are not those of its config.json ({len(found)} "
                f"differences): {shown}. Fetch the folder again, or convert it to the names that "
                f"{family_of_config(config).architecture} has on the hub."
            )
        if config["tie_word_embeddings"] and not self.is_tied():
            raise ValueError(
                f"{self.folder}: {HEAD} is another table than {EMBEDDINGS}, and config.json says "
                'that they are one ("tie_word_embeddings": true). If the model has an output layer '
                'of its own, set "tie_word_embeddings": false there; if not, take the tensor out '
                "of the files."
            )

    def _differences(self, config: Mapping[str, Any]) -> list[str]:
        wanted: dict[str, tuple[int, ...]] = {}
        for rule in rules(config):
            wanted.update(zip(rule.hf, shapes(rule, config), strict=True))
        unknown = set(self._stored) - wanted.keys()
        if config["tie_word_embeddings"]:
            # Some writers store the tied table a second time.
            unknown -= {HEAD}
        found = [f"{name} is unknown" for name in sorted(unknown)]
        found += [f"{name} is missing" for name in wanted if name not in self._stored]
        found += [
            f"{name} is {self.shape(name)} and should be {shape}"
            for name, shape in wanted.items()
            if name in self._stored and self.shape(name) != shape
        ]
        found += [
            f"{name} {_wrong_type(self._stored[name].dtype)}"
            for name in wanted
            if name in self._stored and self._stored[name].dtype not in _TYPES
        ]
        found += [
            f"{', '.join(rule.hf)} are of several types"
            for rule in rules(config)
            if len({self._stored[name].dtype for name in rule.hf if name in self._stored}) > 1
        ]
        return found

    def is_tied(self) -> bool:
        """Tell whether the output layer, where the files have one, is the table of embeddings."""
        return HEAD not in self._stored or is_same(self.read(HEAD), self.read(EMBEDDINGS))

    def num_bytes(self, config: Mapping[str, Any]) -> int:
        """Bytes of the weights of a configuration, as the files have them.

        Args:
            config: as for ``check``, which has passed them.
        """
        return sum(
            math.prod(self.shape(name)) * self.dtype(name).itemsize
            for rule in rules(config)
            for name in rule.hf
        )

    def _file(self, name: str) -> Any:
        file = self._stored[name].file
        if self._open[0] != file:
            # The one before is closed, and its pages are given back.
            self._open = "", None
            self._open = file, open_safetensors(self.folder / file)
        return self._open[1]


def is_same(first: Tensor, second: Tensor) -> bool:
    """Tell whether two tensors are of one type and shape and hold the same bits."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(
        first.contiguous().view(torch.uint8).flatten(),
        second.contiguous().view(torch.uint8).flatten(),
    )


def _other_counts(stored: Mapping[str, Stored], config: Mapping[str, Any]) -> str:
    """Say where the files have other numbers of layers, experts or tokens than config.json."""
    counts = {"num_hidden_layers": (_count(stored, _LAYER), "layers (model.layers.N)")}
    if config.get("num_experts"):
        counts["num_experts"] = (_count(stored, _EXPERT), "experts (mlp.experts.N)")
    table = stored.get(EMBEDDINGS)
    if table is not None and len(table.shape) == 2:
        rows, columns = table.shape
        counts["vocab_size"] = (rows, f"rows in {EMBEDDINGS}")
        counts["hidden_size"] = (columns, f"columns in {EMBEDDINGS}")
    return "; ".join(
        f"{key}={config[key]}, and they hold {count} {what}"
        for key, (count, what) in counts.items()
        if config[key] != count
    )


def _count(stored: Iterable[str], pattern: re.Pattern[str]) -> int:
    numbers = {int(match[1]) for name in stored if (match := pattern.match(name))}
    return max(numbers, default=-1) + 1


def _wrong_type(stored: str) -> str:
    return f"is {stored}, and a model is trained in one of {', '.join(_TYPES)}"


# --- writing -------------------------------------------------------------------------------------


def write_weights(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], sizes: dict[str, int]
) -> int:
    """Write tensors in files of at most ``SHARD_BYTES``, with an index if there are several.

    Args:
        folder: exists.
        tensors: name and values, one at a time, in the order of ``sizes``.
        sizes: bytes by name.

    Returns:
        The number of files.
    """
    files = plan_files(sizes)
    stream = iter(tensors)
    for file, names in files.items():
        shard = dict(islice(stream, len(names)))
        assert list(shard) == names, "tensors come in the order that was planned"
        save_file(shard, folder / file, metadata={"format": "pt"})
        # Before the next one is gathered.
        del shard
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file, names in files.items() for name in names},
        }
        write_json(folder / INDEX, index)
    return len(files)


def plan_files(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Tensor names by file name, in their order.

    Args:
        sizes: bytes by name.
    """
    groups: list[list[str]] = []
    filled = SHARD_BYTES
    for name, num_bytes in sizes.items():
        if filled + num_bytes > SHARD_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += num_bytes
    if len(groups) == 1:
        return {ONE_FILE: groups[0]}
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": names
        for number, names in enumerate(groups, start=1)
    }


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as Hugging Face's libraries do."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def check_is_free(output: Path) -> None:
    """Refuse a folder that holds something, or that is not for exports.

    Raises:
        ValueError: it exists and is not empty, is a run's own (``check_output``), or another
            process is making it.
    """
    check_output(output)
    check_not_claimed(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: exists and is not empty. Name another folder, or remove it.")
    if output.is_mount():
        raise ValueError(
            f"{output}: is where a file system is mounted, which a finished folder cannot replace. "
            "Name a folder inside it."
        )
