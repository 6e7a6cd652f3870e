"""Continue a text with a model in Hugging Face format."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tst_megatron.checkpoint.run_files import is_run, run_of
from tst_megatron.data.tokenizer.hugging_face import load_hugging_face
from tst_megatron.hf.model_folder.configuration import written_config
from tst_megatron.hf.model_folder.safetensors_files import is_buffer
from tst_megatron.hf.model_folder.soundness import check_numbers
from tst_megatron.hf.model_folder.whole_model import (
    as_transformers_reads,
    check_config,
    check_model,
    problems_along,
)

_SEEDS = 2**64
"""The number of seeds that torch has, from 0."""


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
        ValueError: it is incomplete, holds what is no number, or transformers cannot load it.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """The way in which the next token is chosen; the default is always the likeliest."""

    temperature: float = 0.0
    """The divisor of logits before a token is drawn; 0 takes the likeliest."""
    top_p: float | None = None
    """Draws from the likeliest tokens alone that have this share of the probability together."""
    seed: int | None = None
    """Of the draws; None takes a new one and says it."""


GREEDY = Sampling()


def generate_text(
    hf_dir: Path,
    prompt: str,
    num_tokens: int,
    *,
    dtype: torch.dtype | None = None,
    sampling: Sampling = GREEDY,
    on_progress: Callable[[str], None] | None = None,
) -> str:
    """Continue a text with a model and its tokenizer.

    The folder's generation_config.json has no say but in the tokens that end a text.

    Args:
        hf_dir: a folder in Hugging Face format that has a tokenizer.
        prompt: the text before; it begins as a document of the training text does, and what
            spells a special token in it is text.
        num_tokens: tokens to add at most; fewer if the model ends the text or has no more
            positions.
        dtype: type of the weights in memory; the type of the files when not given.
        sampling: how each token is chosen. One seed gives one text on one machine.
        on_progress: told the seed if none was given, and that the model's positions ended the text.

    Returns:
        The continuation, without the prompt.

    Raises:
        ValueError: the folder has no model or no tokenizer for documents, the prompt has no
            tokens or too many, or a number of the sampling is out of its range.
    """
    if problems := _sampling_problems(sampling):
        raise ValueError("\n".join(problems))
    _check(hf_dir)
    tokenizer = load_hugging_face(hf_dir)
    ids = tokenizer.beginning(prompt)
    if not ids:
        raise ValueError("--prompt: has no tokens. Give a text to go on from.")
    num_positions = positions(hf_dir)
    room = num_positions - len(ids)
    if room < 1:
        raise ValueError(
            f"--prompt: has {len(ids):,} tokens, and the model has {num_positions:,} positions. "
            "Give a shorter text to go on from."
        )
    say = on_progress or (lambda _: None)
    model, info = load_in_transformers(hf_dir, dtype)
    if lacking := sorted(
        map(str, [*info.get("missing_keys", ()), *info.get("mismatched_keys", ())])
    ):
        raise ValueError(
            f"{hf_dir}: transformers has no weights, or others, for {', '.join(lacking[:10])}. "
            "Fetch the folder again."
        )
    added = _continue(model, ids, min(num_tokens, room), sampling, tokenizer.facts.eod_id, say)
    if len(added) == room < num_tokens:
        say(
            f"The text stops where the model does: it has {num_positions:,} positions, and the "
            f"prompt takes {len(ids):,} of them, which leaves {room:,} of {num_tokens:,} tokens."
        )
    return tokenizer.decode(added, skip_special_tokens=True)


def _sampling_problems(sampling: Sampling) -> list[str]:
    temperature, top_p, seed = sampling.temperature, sampling.top_p, sampling.seed
    problems = []
    # Beyond these bounds the division ends in infinite logits, or in all of them equal.
    if not (temperature == 0 or 0.01 <= temperature <= 100):
        problems.append(
            f"--temperature {temperature}: is neither 0, which always takes the likeliest token, "
            "nor a number from 0.01 to 100. Give 1 to draw by the model's own probabilities"
        )
    if top_p is not None and not 0 < top_p <= 1:
        problems.append(
            f"--top-p {top_p}: is no number above 0 and up to 1. Give 0.9 to draw from the "
            "likeliest tokens that have 90% of the probability together, or 1 to draw from all"
        )
    if seed is not None and not 0 <= seed < _SEEDS:
        problems.append(
            f"--seed {seed}: is no whole number from 0 to {_SEEDS - 1}. Give a smaller one that "
            "is not negative"
        )
    idle = [name for name, value in (("--top-p", top_p), ("--seed", seed)) if value is not None]
    if temperature == 0 and idle:
        problems.append(
            f"{' and '.join(idle)}: nothing is drawn at temperature 0, which always takes the "
            "likeliest token. Give a --temperature above 0 too"
        )
    return problems


def _continue(
    model: Any,
    ids: list[int],
    num_tokens: int,
    sampling: Sampling,
    eod_id: int,
    say: Callable[[str], None],
) -> list[int]:
    """Return the ids that the model adds, with the one that ends a text if it comes."""
    from transformers import GenerationConfig

    file = model.generation_config
    ends = eod_id if file.eos_token_id is None else file.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    if not listed or not all(type(each) is int and each >= 0 for each in listed):
        raise ValueError(
            f"generation_config.json: eos_token_id is {ends!r}, and must be an id or some of them. "
            "Correct it, or take it out"
        )
    chosen: dict[str, Any] = {"do_sample": False}
    seed = sampling.seed
    if sampling.temperature:
        if seed is None:
            seed = secrets.randbelow(2**32)
            say(f"--seed {seed} gives this text again.")
        top_p = 1.0 if sampling.top_p is None else sampling.top_p
        # transformers would draw from the 50 likeliest alone.
        chosen = {"do_sample": True, "temperature": sampling.temperature, "top_p": top_p}
        chosen["top_k"] = 0
    # What the file sets beside, such as a penalty for repetition, would change either way.
    model.generation_config = GenerationConfig(
        max_new_tokens=num_tokens,
        eos_token_id=ends,
        pad_token_id=listed[0],
        **chosen,
    )
    tokens_BT = torch.tensor([ids])
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        result_BT = model.generate(tokens_BT, attention_mask=torch.ones_like(tokens_BT))
    return [int(token_id) for token_id in result_BT[0, tokens_BT.shape[1] :]]


def positions(hf_dir: Path) -> int:
    """Return the positions that the model was made for; without them there is no bound."""
    positions = written_config(hf_dir).get("max_position_embeddings")
    return positions if type(positions) is int else sys.maxsize


def _check(hf_dir: Path) -> None:
    if not hf_dir.is_dir():
        raise ValueError(f"{hf_dir}: no such folder. Give one that `tst-megatron export` wrote.")
    if is_run(run := run_of(hf_dir)):
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
