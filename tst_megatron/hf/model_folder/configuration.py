"""A model's config.json: read, checked, and filled with its class's defaults."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tst_megatron.hf.families.family import Family
from tst_megatron.hf.families.known import family_of_config
from tst_megatron.hf.model_folder.config_problems import config_problems
from tst_megatron.system.records import Damaged, block_of, read_text

CONFIG = "config.json"


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model, complete: what config.json leaves out is the class's default.

    Args:
        folder: in Hugging Face format.

    Raises:
        ValueError: there is no config.json, it is of no known family, or a number in it is that
            of no model; one line for each.
    """
    written = written_config(folder)
    family = known_family(folder, written)
    refuse(folder, config_problems(written, family))
    return complete(folder, family)


def written_config(folder: Path) -> dict[str, Any]:
    """Return what config.json says, and nothing else.

    Raises:
        ValueError: there is none, or it holds no block of settings.
    """
    block = read_block(folder / CONFIG)
    if block is None:
        raise ValueError(f"{folder}: has no {CONFIG}. Give a folder in Hugging Face format.")
    return block


def read_block(file: Path) -> dict[str, Any] | None:
    """The block of a JSON file that comes from outside; None where there is no file.

    Raises:
        ValueError: it cannot be read, holds no block, or says something twice.
    """
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        block = dict(pairs)
        if len(block) < len(pairs):
            names = [name for name, _ in pairs]
            twice.extend(sorted({name for name in names if names.count(name) > 1}))
        return block

    try:
        text = read_text(file)
        if text is None:
            return None
        block = block_of(_parsed(text, once), {})
    except Damaged as error:
        raise ValueError(f"{file}: {error}. Fetch it again.") from error
    if twice:
        raise ValueError(
            f"{file}: has {', '.join(twice)} twice, and which is meant is unknown. Take one out."
        )
    return block


def _parsed(text: str, once: Any) -> Any:
    if text.startswith("version https://git-lfs"):
        raise Damaged("is a pointer of git-lfs, whose content was never fetched: git lfs pull")
    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError as error:
        raise Damaged("is nested too deep") from error
    except ValueError as error:
        raise Damaged(f"is not JSON ({error})") from error


def known_family(folder: Path, written: Mapping[str, Any]) -> Family:
    """The family of a configuration.

    Raises:
        ValueError: it is none of those known here.
    """
    try:
        return family_of_config(written)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def refuse(folder: Path, problems: Iterable[str]) -> None:
    """Raise what was found in a config.json, a line each, where anything was.

    Raises:
        ValueError: there are problems.
    """
    if lines := [f"{folder / CONFIG}: {problem}" for problem in problems]:
        raise ValueError("\n".join(lines))


def complete(folder: Path, family: Family) -> dict[str, Any]:
    """The configuration with the defaults of its class.

    Args:
        folder: whose config.json has none of ``config_problems``.
        family: of the configuration.

    Raises:
        ValueError: transformers refuses it.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True).to_dict()
    except Exception as error:
        # Whatever its code runs into: nothing of it is our own.
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{folder / CONFIG}: transformers refuses it: {said}") from error
    # Of the names that transformers 5 writes and those that all else reads, the latter.
    filled = {
        "num_experts": config.get("num_local_experts", 0),
        "head_dim": config["hidden_size"] // config["num_attention_heads"],
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
