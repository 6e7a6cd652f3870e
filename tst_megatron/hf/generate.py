"""Continue a text with a model in Hugging Face format."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tst_megatron.data.hugging_face_tokenizer import load_hugging_face
from tst_megatron.training.run_folder import RunFolder, run_of


def load_in_transformers(
    hf_dir: Path, dtype: torch.dtype | None = None
) -> tuple[Any, dict[str, Any]]:
    """Load a model the plainest way transformers has, without the network.

    Args:
        hf_dir: a folder in Hugging Face format.
        dtype: type of the weights in memory; the type of the files when not given.

    Returns:
        The model in evaluation mode, and what transformers reports about names and shapes.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # Its bar for loading weights draws over this project's own progress.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        hf_dir,
        dtype=dtype or "auto",
        attn_implementation="eager",
        experts_implementation="eager",
        local_files_only=True,
        # Other weights are a pickle.
        use_safetensors=True,
        output_loading_info=True,
    )
    model, info = loaded
    return model.eval(), info


def generate_text(
    hf_dir: Path,
    prompt: str,
    num_tokens: int,
    *,
    dtype: torch.dtype | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> str:
    """Continue a text greedily with a model and its tokenizer.

    Args:
        hf_dir: a folder in Hugging Face format that has a tokenizer.
        prompt: the text before; it begins as a document of the training text does, and what
            spells a special token in it is text.
        num_tokens: tokens to add at most; fewer if the model ends the text or has no more
            positions.
        dtype: type of the weights in memory; the type of the files when not given.
        on_progress: told where the positions of the model end before.

    Returns:
        The continuation, without the prompt.

    Raises:
        ValueError: the folder has no model or no tokenizer for documents, or the prompt has no
            tokens or too many.
    """
    _check(hf_dir)
    tokenizer = load_hugging_face(hf_dir)
    ids = tokenizer.beginning(prompt)
    if not ids:
        raise ValueError("--prompt: has no tokens. Give a text to go on from.")
    room = _positions(hf_dir) - len(ids)
    if room < 1:
        raise ValueError(
            f"--prompt: has {len(ids):,} tokens, and the model has {len(ids) + room:,} positions. "
            "Give a shorter text to go on from."
        )
    if room < num_tokens and on_progress:
        on_progress(f"{room:,} tokens at most: the model has {len(ids) + room:,} positions")
    model, _ = load_in_transformers(hf_dir, dtype)
    tokens_BT = torch.tensor([ids])
    with torch.no_grad():
        result_BT = model.generate(
            tokens_BT,
            attention_mask=torch.ones_like(tokens_BT),
            max_new_tokens=min(num_tokens, room),
            do_sample=False,
        )
    return tokenizer.decode(result_BT[0, tokens_BT.shape[1] :].tolist(), skip_special_tokens=True)


def _positions(hf_dir: Path) -> int:
    """How many positions the model was made for; a config.json without them sets no bound."""
    config = json.loads((hf_dir / "config.json").read_bytes())
    return int(config.get("max_position_embeddings") or sys.maxsize)


def _check(hf_dir: Path) -> None:
    if not hf_dir.is_dir():
        raise ValueError(f"{hf_dir}: no such folder. Give one that `tst-megatron export` wrote.")
    if RunFolder(run := run_of(hf_dir)).is_prepared():
        raise ValueError(
            f"{hf_dir}: is a run's, and this reads Hugging Face format. Export it first: "
            f"tst-megatron export {run} OUTPUT"
        )
    missing = [
        name for name in ("config.json", "tokenizer_config.json") if not (hf_dir / name).is_file()
    ]
    if missing:
        raise ValueError(
            f"{hf_dir}: has no {' and no '.join(missing)}. Give a folder that `tst-megatron "
            "export` wrote with its tokenizer."
        )
