"""Continue a text with a model in Hugging Face format."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tst_megatron.data.hugging_face_tokenizer import load_hugging_face
from tst_megatron.hf.configuration import written_config
from tst_megatron.hf.safetensors_files import is_buffer
from tst_megatron.hf.soundness import check_numbers
from tst_megatron.hf.whole_model import (
    as_transformers_reads,
    check_config,
    check_model,
    problems_along,
)
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

    Raises:
        ValueError: it is not whole, holds what is no number, or transformers cannot load it.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # Its bar for loading weights draws over this project's own progress.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    files = check_model(hf_dir)
    try:
        with as_transformers_reads(hf_dir) as folder:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype or "auto",
                attn_implementation="eager",
                experts_implementation="eager",
                local_files_only=True,
                # Other weights are a pickle.
                use_safetensors=True,
                # They are then told, as a missing one is.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (StrictDataclassError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # What its code runs into where a file is not what it takes it for.
        said = " ".join(str(error).split())
        raise ValueError(
            f"{hf_dir}: transformers cannot load it ({type(error).__name__}: {said}). Its "
            "config.json or its weights are damaged, or of another version."
        ) from error
    model, info = loaded
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        check_numbers(files)
        raise ValueError(f"{hf_dir}: some of its weights are infinite in {dtype}. Use fp32.")
    unexpected = {name for name in info["unexpected_keys"] if not is_buffer(name)}
    return model.eval(), {**info, "unexpected_keys": unexpected}


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
    model, info = load_in_transformers(hf_dir, dtype)
    if lacking := sorted(
        map(str, [*info.get("missing_keys", ()), *info.get("mismatched_keys", ())])
    ):
        raise ValueError(
            f"{hf_dir}: transformers has no weights, or others, for {', '.join(lacking[:10])}. "
            "Fetch the folder again."
        )
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
    positions = written_config(hf_dir).get("max_position_embeddings")
    return positions if type(positions) is int else sys.maxsize


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
    check_config(hf_dir)
    quantised = written_config(hf_dir).get("quantization_config")
    if isinstance(quantised, dict) and quantised.get("quant_method") == "modelopt":
        # transformers takes the rounded numbers for weights and leaves their scales out.
        raise ValueError(
            f"{hf_dir}: is quantised, for runtimes that transformers is not. Give the export that "
            "it was made from, or serve it."
        )
    if problems := problems_along(hf_dir):
        raise ValueError("\n".join(problems))
