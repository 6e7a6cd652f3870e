"""Prove that an exported model is the trained one, before anybody relies on it.

Both models compute in float32, with the weights as exported, so that what is measured is the export
and not the rounding of a narrower type.

Shapes: B sequences, T raw tokens, V vocabulary without padding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tst_megatron.hf import qwen3_moe
from tst_megatron.hf.checkpoint import LoadedModel, seam

LOGIT_BOUND = 1e-5
"""Largest allowed difference of two logits, per unit of the largest logit (at least 1)."""
TIE_GAP = 1e-4
"""Two best logits closer than this are a tie: float32 sums decide which one wins."""
INDEX = "model.safetensors.index.json"
_NUM_SEQUENCES, _NUM_TOKENS, _NUM_PROMPT_TOKENS = 2, 64, 16


@dataclass(frozen=True, kw_only=True, slots=True)
class VerificationReport:
    """What was compared and what was measured; every bound held."""

    num_tensors: int
    """Tensors that transformers holds bit for bit as the files and Megatron do."""
    num_parameters: int
    num_logits: int
    max_logit: float
    """Largest absolute logit, the scale of the next two."""
    max_logit_difference: float
    """Largest absolute difference between transformers and Megatron, both in float32."""
    logit_bound: float
    num_greedy_tokens: int
    """Greedy steps at which both chose the same token."""
    num_greedy_ties: int
    """Greedy steps not compared because the two best logits were closer than ``TIE_GAP``."""


def verify(loaded: LoadedModel, hf_dir: Path, *, num_greedy_tokens: int = 32) -> VerificationReport:
    """Compare an export with the model it was made from.

    Needs memory for both models in float32.

    Args:
        loaded: the trained model, loaded in float32. Its weights are rounded as the export's are.
        hf_dir: the export.
        num_greedy_tokens: length of the greedy continuation.

    Raises:
        RuntimeError: transformers misses a tensor or does not know one, a weight differs by a
            single bit, a logit by more than the bound, or a greedy continuation by a token.
    """
    config = json.loads((hf_dir / "config.json").read_text())
    model, info = load_in_transformers(hf_dir, torch.float32)
    problems = {name: found for name, found in info.items() if found}
    if problems:
        raise RuntimeError(f"{hf_dir}: transformers does not load it strictly: {problems}.")
    num_tensors = _compare_weights(loaded.model, hf_dir, config, model.state_dict())
    with torch.no_grad():
        num_logits, largest, difference = _compare_logits(loaded.model, model, config)
        bound = LOGIT_BOUND * max(1.0, largest)
        if not difference <= bound:
            raise RuntimeError(
                f"{hf_dir}: logits of transformers and Megatron differ by {difference:.3g}, more "
                f"than {bound:.3g} (largest logit {largest:.3g}). They are not the same model."
            )
        num_ties = _compare_greedy(loaded.model, model, config, num_greedy_tokens)
    return VerificationReport(
        num_tensors=num_tensors,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_logits=num_logits,
        max_logit=largest,
        max_logit_difference=difference,
        logit_bound=bound,
        num_greedy_tokens=num_greedy_tokens - num_ties,
        num_greedy_ties=num_ties,
    )


def load_in_transformers(hf_dir: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """Load an export the plainest way transformers has, without the network.

    Args:
        hf_dir: the export.
        dtype: type of the weights in memory.

    Returns:
        The model in evaluation mode, and what transformers reports about names and shapes.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # Its bar for loading weights draws over this project's own progress.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        hf_dir,
        dtype=dtype,
        attn_implementation="eager",
        experts_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
    )
    model, info = loaded
    return model.eval(), info


def generate_text(hf_dir: Path, prompt: str, num_tokens: int) -> str:
    """Continue a text greedily with an exported model and its tokenizer.

    Args:
        hf_dir: an export that has a tokenizer.
        prompt: the text before.
        num_tokens: tokens to add at most; fewer if the model ends the text.

    Returns:
        The continuation, without the prompt.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(hf_dir, local_files_only=True)
    model, _ = load_in_transformers(hf_dir, torch.float32)
    tokens_BT = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    with torch.no_grad():
        result_BT = model.generate(
            tokens_BT,
            attention_mask=torch.ones_like(tokens_BT),
            max_new_tokens=num_tokens,
            do_sample=False,
        )
    text: str = tokenizer.decode(
        result_BT[0, tokens_BT.shape[1] :].tolist(), skip_special_tokens=True
    )
    return text


def _compare_weights(
    model: nn.Module, hf_dir: Path, config: Mapping[str, Any], in_transformers: Mapping[str, Tensor]
) -> int:
    """Megatron against the files against transformers; rounds Megatron's weights to the files'."""
    index = hf_dir / INDEX
    files = json.loads(index.read_text())["weight_map"] if index.exists() else {}
    weights = dict(model.named_parameters())
    num_tensors = 0
    with ExitStack() as stack, torch.no_grad():
        opened: dict[str, Any] = {}

        def read(name: str) -> Tensor:
            file = files.get(name, "model.safetensors")
            if file not in opened:
                opened[file] = stack.enter_context(safe_open(hf_dir / file, framework="pt"))
            tensor: Tensor = opened[file].get_tensor(name)
            return tensor

        for rule in qwen3_moe.rules(config):
            parts = [read(name) for name in rule.hf]
            exported = qwen3_moe.merge(rule.form, parts, config)
            weight = weights[rule.megatron]
            weight.copy_(weight.to(exported.dtype))
            rows = slice(config["vocab_size"]) if rule.form is rule.form.VOCABULARY else slice(None)
            _require_equal(weight[rows].to(exported.dtype), exported, rule.megatron)
            for name, part in zip(rule.hf, parts, strict=True):
                _require_equal(part.float(), _tensor_in(in_transformers, name), name)
            num_tensors += len(parts)
    return num_tensors


def _require_equal(expected: Tensor, actual: Tensor, name: str) -> None:
    if not torch.equal(expected, actual):
        raise RuntimeError(f"{name}: the exported weight is not bit for bit the trained one.")


def _tensor_in(state: Mapping[str, Tensor], name: str) -> Tensor:
    """One tensor by its name in the files; transformers 5 stacks those of the experts."""
    if name in state:
        return state[name]
    match = re.fullmatch(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight", name)
    if match is None:
        raise RuntimeError(f"{name}: transformers has no such weight.")
    experts, expert, projection = match[1], int(match[2]), match[3]
    if projection == "down":
        return state[f"{experts}.down_proj"][expert]
    gate, up = state[f"{experts}.gate_up_proj"][expert].chunk(2)
    return gate if projection == "gate" else up


def _compare_logits(
    megatron: nn.Module, transformers: Any, config: Mapping[str, Any]
) -> tuple[int, float, float]:
    generator = torch.Generator().manual_seed(0)
    num_tokens = min(_NUM_TOKENS, config["max_position_embeddings"])
    tokens_BT = torch.randint(
        config["vocab_size"], (_NUM_SEQUENCES, num_tokens), generator=generator
    )
    expected_BTV = seam().logits(megatron, tokens_BT)[..., : config["vocab_size"]]
    actual_BTV = transformers(tokens_BT, use_cache=False).logits
    difference = (expected_BTV - actual_BTV).abs().max()
    return actual_BTV.numel(), float(expected_BTV.abs().max()), float(difference)


def _compare_greedy(
    megatron: nn.Module, transformers: Any, config: Mapping[str, Any], num_tokens: int
) -> int:
    """Number of ties met; after one, both go on with Megatron's choice."""
    generator = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(config["vocab_size"], (1, _NUM_PROMPT_TOKENS), generator=generator)
    num_ties = 0
    for step in range(num_tokens):
        expected_V = seam().logits(megatron, tokens_BT)[0, -1, : config["vocab_size"]]
        actual_V = transformers(tokens_BT, use_cache=False).logits[0, -1]
        best, second = expected_V.topk(2).values.tolist()
        if best - second <= TIE_GAP:
            num_ties += 1
        elif expected_V.argmax() != actual_V.argmax():
            raise RuntimeError(
                f"Greedy continuation, token {step + 1} of {num_tokens}: Megatron chooses "
                f"{int(expected_V.argmax())}, transformers {int(actual_V.argmax())}, although the "
                f"best logit leads by {best - second:.3g}. They are not the same model."
            )
        tokens_BT = torch.cat((tokens_BT, expected_V.argmax().reshape(1, 1)), dim=1)
    return num_ties
