"""Prove that a quantised export is the model that it was made from, up to its format's rounding.

Reads both folders' safetensors back with formulas of its own.

Shapes: B sequences, T raw tokens, V vocabulary; O and I as in ``quantized_formats``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tst_megatron.hf.generate import load_in_transformers
from tst_megatron.hf.model_folder.weight_files import HEAD, HuggingFaceWeights, is_same
from tst_megatron.hf.quantize.formats import BLOCK, Format
from tst_megatron.hf.weights import place_of

QUANTISED = re.compile(r"(model\.layers\.\d+\..*_proj)\.weight")
"""The weights that are quantised: attention and feed-forward, neither router nor lm_head."""
# vLLM computes these in one product, so they must share their second scale.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationProof:
    """The comparisons and measurements of a proof; every bound held."""

    num_quantised: int
    """Weights whose rounding error the format explains."""
    num_equal: int
    """Tensors that are the original's bit for bit."""
    largest_error_share: float
    """Largest rounding error of a weight, 1 being the largest that the format explains."""
    num_logits: int
    max_logit: float
    """Largest absolute logit of the original, the scale of the next."""
    max_logit_difference: float
    """Original against dequantised weights, both in float32; activations are not quantised."""
    relative_logit_difference: float
    """Root mean square of that difference, over the root mean square of the original's logits."""
    same_best_fraction: float
    """Share of positions, 0-1, at which both give the same token the largest logit."""


def prove(original: Path, quantised: Path, format_: Format, tokens_BT: Tensor) -> QuantizationProof:
    """Compare a quantised folder with the one it was made from.

    Needs memory for one model in float32.

    Args:
        original: the export.
        quantised: what was written.
        format_: how.
        tokens_BT: [B, T] int64 raw tokens, at which the logits are compared.

    Raises:
        RuntimeError: a name, a shape or a type is not what it must be, a weight is further off than
            rounding explains, another tensor differs by a bit, or the configuration names other
            modules than are quantised.
    """
    before, after = HuggingFaceWeights(original), HuggingFaceWeights(quantised)
    names = sorted(before.names())
    if HEAD in names and HEAD not in after.names() and before.is_tied():
        # Stored a second time in the original; the configuration still says that it is one table.
        names.remove(HEAD)
    modules = [match[1] for name in names if (match := QUANTISED.fullmatch(name))]
    _check_names(names, after, modules, format_)
    _check_configuration(quantised, names, modules, format_)
    share = max(_check_weight(before, after, module, format_) for module in modules)
    _check_shared_scales(after, modules, format_)
    others = [name for name in names if QUANTISED.fullmatch(name) is None]
    for name in others:
        if not is_same(before.read(name), after.read(name)):
            raise RuntimeError(f"{name}: is not quantised, but not bit for bit the original.")
    dequantised = (
        (f"{module}.weight", format_.dequantise(_parts(after, module, format_)))
        for module in modules
    )
    logits = _compare_logits(original, dequantised, tokens_BT)
    return QuantizationProof(
        num_quantised=len(modules), num_equal=len(others), largest_error_share=share, **logits
    )


def _parts(after: HuggingFaceWeights, module: str, format_: Format) -> dict[str, Tensor]:
    return {part: after.read(f"{module}.{part}") for part in ("weight", *format_.suffixes)}


def _check_names(
    names: list[str], after: HuggingFaceWeights, modules: list[str], format_: Format
) -> None:
    expected = {*names}
    expected |= {f"{module}.{suffix}" for module in modules for suffix in format_.suffixes}
    missing, unknown = expected - {*after.names()}, {*after.names()} - expected
    if missing or unknown or not modules:
        raise RuntimeError(
            f"The quantised tensors are not those of the original: missing {sorted(missing)[:5]}, "
            f"unknown {sorted(unknown)[:5]}, {len(modules)} weights to quantise."
        )


def _check_weight(
    before: HuggingFaceWeights, after: HuggingFaceWeights, module: str, format_: Format
) -> float:
    """The share of the format's rounding that one weight's error takes up."""
    original, parts = before.read(f"{module}.weight"), _parts(after, module, format_)
    rows, columns = original.shape
    shapes = {"weight": (rows, columns), "weight_scale": ()}
    types = {"weight": format_.weight_dtype, "weight_scale": torch.float32}
    if "weight_scale_2" in parts:
        shapes = {"weight": (rows, columns // 2), "weight_scale": (rows, columns // BLOCK)}
        types["weight_scale"] = torch.float8_e4m3fn
    for part, tensor in parts.items():
        shape, dtype = shapes.get(part, ()), types.get(part, torch.float32)
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise RuntimeError(
                f"{module}.{part}: is {tensor.dtype} {[*tensor.shape]}, but must be {dtype} "
                f"{[*shape]}."
            )
        numbers = tensor.float()
        if not bool(numbers.isfinite().all()) or (part != "weight" and numbers.min() < 0):
            raise RuntimeError(f"{module}.{part}: holds a number that is no scale or weight.")
    if not 0 < float(parts["input_scale"]):
        raise RuntimeError(f"{module}.input_scale: is 0: calibration never reached the module.")
    share = format_.error_share(original, parts)
    if not share <= 1:
        raise RuntimeError(
            f"{module}.weight: is off by {share:.3g} times the largest error that rounding to "
            f"{format_.algorithm} explains."
        )
    return share


def _check_shared_scales(after: HuggingFaceWeights, modules: list[str], format_: Format) -> None:
    if "weight_scale_2" not in format_.suffixes:
        return
    for first, *others in _TOGETHER:
        for module in (module for module in modules if module.endswith(f".{first}")):
            parent = module.removesuffix(first)
            for part in ("weight_scale_2", "input_scale"):
                values = {float(after.read(f"{parent}{name}.{part}")) for name in (first, *others)}
                if len(values) > 1:
                    raise RuntimeError(f"{parent}*.{part}: {first} and {others} do not share it.")


def _check_configuration(
    folder: Path, names: list[str], modules: list[str], format_: Format
) -> None:
    """Both configurations, by the rules with which vLLM reads them."""
    own = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    embedded = json.loads((folder / "config.json").read_text())["quantization_config"]
    is_blockwise = "weight_scale_2" in format_.suffixes
    facts = (
        (own["quant_algo"], format_.algorithm),
        (embedded["quant_algo"], format_.algorithm),
        (embedded["quant_method"], "modelopt"),
        (own.get("group_size"), BLOCK if is_blockwise else None),
        (sorted(own["exclude_modules"]), sorted(embedded["ignore"])),
    )
    wrong = [f"{found!r} instead of {wanted!r}" for found, wanted in facts if found != wanted]
    if wrong:
        raise RuntimeError(f"The quantisation's configuration says {'; '.join(wrong)}.")
    excluded = own["exclude_modules"]
    for module in modules:
        if any(pattern in module or fnmatch(module, pattern) for pattern in excluded):
            raise RuntimeError(f"{module}: is quantised, but the configuration excludes it.")
    for name in names:
        module = name.removesuffix(".weight")
        is_linear = module == "lm_head" or module.endswith(".mlp.gate")
        if is_linear and not any(fnmatch(module, pattern) for pattern in excluded):
            raise RuntimeError(f"{module}: is not quantised, but the configuration has it so.")


def _compare_logits(
    original: Path, dequantised: Iterator[tuple[str, Tensor]], tokens_BT: Tensor
) -> dict[str, Any]:
    model, _ = load_in_transformers(original, torch.float32)
    state = model.state_dict()
    with torch.no_grad():
        before_BTV = model(tokens_BT, use_cache=False).logits
        for name, weight in dequantised:
            place_of(name, state)[1].copy_(weight)
        after_BTV = model(tokens_BT, use_cache=False).logits
    relative = float((before_BTV - after_BTV).double().norm() / before_BTV.double().norm())
    if not math.isfinite(relative):
        raise ValueError(
            f"{original}: the logits of the model, or of the rounded one, are NaN, infinite or all "
            "zero, so nothing can be compared: its weights are too large or too small for it to be "
            "of use."
        )
    same_best_BT = before_BTV.argmax(-1) == after_BTV.argmax(-1)
    return {
        "num_logits": before_BTV.numel(),
        "max_logit": float(before_BTV.abs().max()),
        "max_logit_difference": float((before_BTV - after_BTV).abs().max()),
        "relative_logit_difference": relative,
        "same_best_fraction": float(same_best_BT.float().mean()),
    }
