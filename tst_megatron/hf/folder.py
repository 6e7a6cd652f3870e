"""A model folder in Hugging Face format: its weights read one at a time, and written in files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tst_megatron.files import check_not_claimed
from tst_megatron.hf.families import family_of_config
from tst_megatron.hf.weights import rules, shapes
from tst_megatron.outputs import check_output
from tst_megatron.system.paths import is_own_name

INDEX = "model.safetensors.index.json"
ONE_FILE = "model.safetensors"

_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

SHARD_BYTES = 500_000_000
"""Largest size of one safetensors file, unless a single tensor is larger. Twice as much is in
memory while it is written."""


class HuggingFaceWeights:
    """The weights of a folder, one at a time: no more than one file is open."""

    def __init__(self, folder: Path) -> None:
        """Read which file has which weight.

        Raises:
            ValueError: the folder has no whole set of safetensors files.
        """
        self.folder = folder
        self._files = _weight_map(folder)
        self._open: tuple[str, Any] = "", None

    def names(self) -> list[str]:
        """Every weight, as the files have it."""
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a weight, without reading it."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """The type of a weight, without reading it.

        Raises:
            ValueError: a type that no model is trained in.
        """
        stored = self._slice(name).get_dtype()
        if stored not in _TYPES:
            raise ValueError(
                f"{self.folder}: {name} is {stored}, and a model is trained in one of "
                f"{', '.join(_TYPES)}. Convert it first."
            )
        return _TYPES[stored]

    def read(self, name: str) -> Tensor:
        """One weight, as it is in the files."""
        with self._named(name) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse weights that are not those of a configuration, all of them at once.

        Args:
            config: a config.json of a known family.

        Raises:
            ValueError: a weight is missing, unknown, or has another shape.
        """
        wanted: dict[str, tuple[int, ...]] = {}
        for rule in rules(config):
            wanted.update(zip(rule.hf, shapes(rule, config), strict=True))
        unknown = set(self._files) - wanted.keys()
        if config["tie_word_embeddings"]:
            # Some writers store the tied table a second time.
            unknown -= {"lm_head.weight"}
        found = [f"{name} is unknown" for name in sorted(unknown)]
        found += [f"{name} is missing" for name in wanted if name not in self._files]
        found += [
            f"{name} is {self.shape(name)} and should be {shape}"
            for name, shape in wanted.items()
            if name in self._files and self.shape(name) != shape
        ]
        found += [
            f"{', '.join(rule.hf)} are of several types"
            for rule in rules(config)
            if len({self.dtype(name) for name in rule.hf if name in self._files}) > 1
        ]
        if found:
            shown = "; ".join(found[:20]) + ("; and others" if len(found) > 20 else "")
            raise ValueError(
                f"{self.folder}: its weights are not those of its config.json ({len(found)} "
                f"differences): {shown}. Fetch the folder again, or convert it to the names that "
                f"{family_of_config(config).architecture} has on the hub."
            )

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

    def _slice(self, name: str) -> Any:
        with self._named(name) as file:
            return file.get_slice(name)

    @contextmanager
    def _named(self, name: str) -> Iterator[Any]:
        """The file of a weight, while something is asked of it."""
        try:
            yield self._file(name)
        except SafetensorError as error:
            raise ValueError(
                f"{self.folder / self._files[name]}: {name} cannot be read ({error}), though "
                f"{INDEX} says it is there. Fetch the folder again."
            ) from error

    def _file(self, name: str) -> Any:
        file = self._files[name]
        if self._open[0] != file:
            # The one before is closed, and its pages are given back.
            self._open = "", None
            try:
                self._open = file, safe_open(self.folder / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{self.folder / file}: cannot be read ({error}). Fetch it again."
                ) from error
        return self._open[1]


def _weight_map(folder: Path) -> dict[str, str]:
    """Weight -> file, in the order of the files."""
    if (folder / INDEX).is_file():
        try:
            listed = json.loads((folder / INDEX).read_text())["weight_map"]
            files = {str(name): str(file) for name, file in listed.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / INDEX}: is no index of weights ({error!r}).") from error
        if outside := sorted({file for file in files.values() if not is_own_name(file)}):
            raise ValueError(
                f"{folder / INDEX}: names {', '.join(outside)}, and a model's files lie beside its "
                "index. Fetch the folder again, or put them there and correct the index."
            )
        if absent := sorted(file for file in set(files.values()) if not (folder / file).is_file()):
            raise ValueError(f"{folder}: {', '.join(absent)} missing, which {INDEX} names.")
        return dict(sorted(files.items(), key=lambda item: item[1]))
    if not (folder / ONE_FILE).is_file():
        raise ValueError(
            f"{folder}: has neither {ONE_FILE} nor {INDEX}. Give a folder whose weights are in "
            "safetensors files (save_pretrained writes them)."
        )
    try:
        with safe_open(folder / ONE_FILE, framework="pt") as file:
            return dict.fromkeys(file.keys(), ONE_FILE)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / ONE_FILE}: cannot be read ({error}).") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model, complete: what config.json leaves out is the class's default.

    Args:
        folder: in Hugging Face format.

    Raises:
        ValueError: there is no config.json, or it is of no known family.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder}: has no config.json. Give a folder in Hugging Face format.")
    try:
        written = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: is not JSON ({error}).") from error
    if not isinstance(written, dict):
        raise ValueError(f"{file}: is no block of settings, but {type(written).__name__}.")
    family = family_of_config(written)
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: transformers refuses it: {error}") from error
    heads = config["num_attention_heads"]
    # Of the names that transformers 5 writes and those that all else reads, the latter.
    filled = {
        "num_experts": config.get("num_local_experts", 0),
        "head_dim": config["hidden_size"] // heads,
        "mlp_only_layers": [],
        **{name: value for name, value in config.items() if value is not None},
    }
    filled["mlp_only_layers"] = _dense_layers(filled)
    return {**config, **filled, "decoder_sparse_step": 1, "model_type": family.model_type}


def _dense_layers(config: Mapping[str, Any]) -> list[int]:
    """The layers without experts, which a configuration may say in two ways at once."""
    step = config.get("decoder_sparse_step", 1)
    others = {layer for layer in range(config["num_hidden_layers"]) if (layer + 1) % step}
    return sorted(others.union(config["mlp_only_layers"]))


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
