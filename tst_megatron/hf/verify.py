"""Prove that a folder in Hugging Face format and a Megatron checkpoint hold one model.

Weights are compared bit for bit, one at a time, whatever the size of the model. Where both models
fit into memory they also compute: in float32, with the weights as the folder has them, so that what
is measured is the conversion and not the rounding of a narrower type.

Shapes: B sequences, T raw tokens, V vocabulary without padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tst_megatron.checkpoint.reader.weights import TrainedWeights, load_model
from tst_megatron.data.tokenizer.hugging_face import load_hugging_face
from tst_megatron.hf.families.weight_table import Form
from tst_megatron.hf.generate import load_in_transformers
from tst_megatron.hf.model_folder.configuration import read_config
from tst_megatron.hf.model_folder.weight_files import HuggingFaceWeights
from tst_megatron.hf.weights import merge, place_of, rules
from tst_megatron.system.machine.memory import available_bytes

LOGIT_BOUND = 1e-5
"""Largest allowed difference of two logits, per unit of the largest logit (at least 1)."""
TIE_GAP = 1e-4
"""Two best logits closer than this are a tie: float32 sums decide which one wins."""
_NUM_SEQUENCES, _NUM_TOKENS, _NUM_PROMPT_TOKENS = 2, 64, 16
_MAX_TOKENS = 512
"""Of a text, what is compared."""
_ASKED = "logits not compared, as asked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Computed:
    """The results of both models, which were the same."""

    num_logits: int
    max_logit: float
    """Largest absolute logit, the scale of the next two."""
    max_logit_difference: float
    """Largest absolute difference between transformers and Megatron, both in float32."""
    logit_bound: float
    mean_log_sum_exp: float
    """Of the model's logits over its tokens, log Z: the mean over the positions compared."""
    num_padding_columns: int
    """Columns of Megatron's softmax that stand for no token; transformers has none."""
    padding_cost: float
    """Their share of the mean loss of Megatron's model, in nats; 0 where there are none."""
    num_greedy_tokens: int
    """Greedy steps at which both chose the same token."""
    num_greedy_ties: int
    """Greedy steps not compared because the two best logits were closer than ``TIE_GAP``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerificationReport:
    """The comparisons and measurements of a proof; every bound held."""

    num_tensors: int
    """Tensors that the files hold bit for bit as Megatron does, each with a place in
    transformers."""
    num_parameters: int
    computed: Computed | None
    """None where the two models do not fit into memory."""
    reason: str
    """The reason why nothing was computed; empty where it was."""


def verify(
    trained: TrainedWeights,
    hf_dir: Path,
    *,
    compute: bool | None = None,
    text: str | None = None,
    num_greedy_tokens: int = 32,
) -> VerificationReport:
    """Compare a folder with the checkpoint it was made from, or that was made from it.

    Args:
        trained: the weights of the checkpoint.
        hf_dir: the folder in Hugging Face format.
        compute: also compare logits and a greedy continuation; where both models fit into memory
            when not given.
        text: what the logits are computed on: the first 512 tokens of the document that the
            folder's tokenizer makes of it; random tokens when not given.
        num_greedy_tokens: length of the greedy continuation.

    Raises:
        ValueError: ``compute`` was asked for and does not fit.
        RuntimeError: transformers misses a tensor or does not know one, a weight differs by a
            single bit, a logit by more than the bound, or a greedy continuation by a token.
    """
    config = read_config(hf_dir)
    files = HuggingFaceWeights(hf_dir)
    num_parameters = _compare_places(hf_dir, files, config)
    num_tensors = _compare_weights(trained, files, config)
    reason = _too_large(num_parameters, config["vocab_size"]) if compute is not False else _ASKED
    if reason and compute:
        raise ValueError(f"{hf_dir}: {reason}. Use a larger machine, or leave --logits out")
    return VerificationReport(
        num_tensors=num_tensors,
        num_parameters=num_parameters,
        computed=None if reason else _compute(trained, hf_dir, config, text, num_greedy_tokens),
        reason=reason,
    )


def _too_large(num_parameters: int, vocab_size: int) -> str:
    """Say why two models in float32 do not fit into memory; empty where they do."""
    # Logits of both, and two of their differences.
    needed = 2 * 4 * num_parameters * 1.1 + 4 * 4 * _MAX_TOKENS * vocab_size
    free = available_bytes()
    if needed <= free:
        return ""
    return (
        f"logits not compared: two models in float32 take {needed / 1e9:.1f} GB and "
        f"{free / 1e9:.1f} GB are free"
    )


# --- weights -------------------------------------------------------------------------------------


def _compare_places(hf_dir: Path, files: HuggingFaceWeights, config: Mapping[str, Any]) -> int:
    """Check that transformers has a place for each tensor and a tensor for each place."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(hf_dir, local_files_only=True)
        )
    if config["tie_word_embeddings"]:
        model.tie_weights()
    state = model.state_dict()
    numbers = dict.fromkeys(state, 0)
    for name in files.names():
        place, part = place_of(name, state)
        shape = files.shape(name)
        if tuple(part.shape) != shape:
            raise RuntimeError(
                f"{hf_dir}: {name} is {shape}, and transformers has {tuple(part.shape)}."
            )
        numbers[place] += part.numel()
    if config["tie_word_embeddings"]:
        numbers.pop("lm_head.weight", None)
    missing = [name for name, number in numbers.items() if number != state[name].numel()]
    if missing:
        raise RuntimeError(
            f"{hf_dir}: transformers does not load it strictly: no tensor for {', '.join(missing)}."
        )
    return sum(parameter.numel() for parameter in model.parameters())


def _compare_weights(
    trained: TrainedWeights, files: HuggingFaceWeights, config: Mapping[str, Any]
) -> int:
    """Return the number of tensors compared; all are equal where it returns."""
    left_over = set(trained.names())
    num_tensors = 0
    for rule in rules(config):
        parts = [files.read(name) for name in rule.hf]
        weight, there = trained.read(rule.megatron), merge(rule.form, parts, config)
        rows = slice(config["vocab_size"]) if rule.form is Form.VOCABULARY else slice(None)
        if not torch.equal(weight[rows].to(there.dtype), there):
            raise RuntimeError(
                f"{rule.megatron}: the weight in {files.folder} is not bit for bit Megatron's."
            )
        left_over.discard(rule.megatron)
        num_tensors += len(parts)
    if left_over:
        raise RuntimeError(f"Weights without a place: {', '.join(sorted(left_over))}.")
    return num_tensors


# --- what they compute ---------------------------------------------------------------------------


def _compute(
    trained: TrainedWeights,
    hf_dir: Path,
    config: Mapping[str, Any],
    text: str | None,
    num_greedy_tokens: int,
) -> Computed:
    model, info = load_in_transformers(hf_dir, torch.float32)
    if problems := {name: found for name, found in info.items() if found}:
        raise RuntimeError(f"{hf_dir}: transformers does not load it strictly: {problems}.")
    megatron = load_model(trained, dtype=torch.float32).model
    # Importing Megatron needs the CPU host, which reading the checkpoint has installed.
    from tst_megatron.megatron.distributed_checkpoint.model import logits

    files = HuggingFaceWeights(hf_dir)
    with torch.no_grad():
        for rule in rules(config):
            # As the files have it: a narrower type there is no difference of the two models.
            weight = megatron.get_parameter(rule.megatron)
            weight.copy_(weight.to(files.read(rule.hf[0]).dtype))
        tokens_BT = _tokens(hf_dir, config, text)
        all_BTP = logits(megatron, tokens_BT)
        expected_BTV = all_BTP[..., : config["vocab_size"]]
        actual_BTV = model(tokens_BT, use_cache=False).logits
        if not (expected_BTV.isfinite().all() or actual_BTV.isfinite().all()):
            raise ValueError(
                f"{hf_dir}: the model computes NaN or infinite logits, in transformers as in "
                "Megatron, though each weight is a number: some are too large. Its files are "
                "damaged, or it was left so by its training."
            )
        difference = float((expected_BTV - actual_BTV).abs().max())
        largest = float(expected_BTV.abs().max())
        bound = LOGIT_BOUND * max(1.0, largest)
        if not difference <= bound:
            raise RuntimeError(
                f"{hf_dir}: logits of transformers and Megatron differ by {difference:.3g}, more "
                f"than {bound:.3g} (largest logit {largest:.3g}). They are not the same model."
            )
        log_sum_exp_BT = expected_BTV.logsumexp(dim=-1)
        num_ties = _compare_greedy(megatron, model, config, num_greedy_tokens)
    return Computed(
        num_logits=actual_BTV.numel(),
        max_logit=largest,
        max_logit_difference=difference,
        logit_bound=bound,
        mean_log_sum_exp=float(log_sum_exp_BT.mean()),
        num_padding_columns=all_BTP.shape[-1] - expected_BTV.shape[-1],
        padding_cost=float((all_BTP.logsumexp(dim=-1) - log_sum_exp_BT).mean()),
        num_greedy_tokens=num_greedy_tokens - num_ties,
        num_greedy_ties=num_ties,
    )


def _tokens(hf_dir: Path, config: Mapping[str, Any], text: str | None) -> Tensor:
    if text is not None:
        ids = load_hugging_face(hf_dir).beginning(text)
        if not ids:
            raise ValueError("the text to verify on has no tokens. Give one that is not empty")
        return torch.tensor([ids[: min(_MAX_TOKENS, config["max_position_embeddings"])]])
    num_tokens = min(_NUM_TOKENS, config["max_position_embeddings"])
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config["vocab_size"], (_NUM_SEQUENCES, num_tokens), generator=generator)


def _compare_greedy(
    megatron: nn.Module, transformers: Any, config: Mapping[str, Any], num_tokens: int
) -> int:
    """Return the number of ties met; after a tie, both continue with Megatron's choice."""
    # As in ``_compute``.
    from tst_megatron.megatron.distributed_checkpoint.model import logits

    generator = torch.Generator().manual_seed(1)
    tokens_BT = torch.randint(config["vocab_size"], (1, _NUM_PROMPT_TOKENS), generator=generator)
    num_ties = 0
    for step in range(num_tokens):
        expected_V = logits(megatron, tokens_BT)[0, -1, : config["vocab_size"]]
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
