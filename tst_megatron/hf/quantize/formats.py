"""FP8 and NVFP4 as they lie in a file: what the bytes mean, and how far rounding may go.

Shapes: O output features, I input features, of one linear layer's weight.

FP8: ``weight`` [O, I] float8_e4m3fn and ``weight_scale`` [] float32;

    w = weight * weight_scale

NVFP4: ``weight`` [O, I / 2] uint8, two E2M1 numbers per byte, the first in the low four bits;
``weight_scale`` [O, I / 16] float8_e4m3fn, one per 16 neighbours along I; ``weight_scale_2`` []
float32;

    w = E2M1[nibble] * weight_scale * weight_scale_2

Both also have ``input_scale`` [] float32, by which the runtime quantises activations.

Source: what vLLM allocates for such layers (its ``ModelOptFp8LinearMethod`` and
``ModelOptNvFp4LinearMethod``) and docs/features/quantization/modelopt.md there; nvidia-modelopt
0.47.0 writes it. Nothing here calls modelopt: this is the second opinion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 16
"""Neighbours along the input features that share one scale in NVFP4."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of the lower three bits of an NVFP4 number; the fourth is the sign."""
_E4M3_HALF_STEP = 2.0**-4
"""Largest rounding error of float8_e4m3fn relative to a number of its normal range."""
_E4M3_HALF_SMALLEST = 2.0**-10
"""Largest rounding error below that range, where the step is 2^-9."""
_DIVISION = 2.0**-8
"""Relative error of dividing by the scale before rounding, which modelopt does in bfloat16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One of the two formats."""

    algorithm: str
    """Its name in hf_quant_config.json."""
    weight_dtype: torch.dtype
    suffixes: tuple[str, ...]
    """Tensors beside ``weight``."""
    dequantise: Callable[[Mapping[str, Tensor]], Tensor]
    """From the tensors of a layer by suffix to its weight, [O, I] float32."""
    error_share: Callable[[Tensor, Mapping[str, Tensor]], float]
    """Largest rounding error of a weight [O, I], 1 being the largest that the format explains."""


def dequantise_fp8(parts: Mapping[str, Tensor]) -> Tensor:
    """The weight [O, I] float32 that FP8 tensors stand for."""
    return parts["weight"].float() * parts["weight_scale"].float()


def dequantise_nvfp4(parts: Mapping[str, Tensor]) -> Tensor:
    """The weight [O, I] float32 that NVFP4 tensors stand for."""
    packed = parts["weight"]
    nibbles = torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2).long()
    values = torch.tensor(E2M1 + tuple(-value for value in E2M1))[nibbles]
    return values * _nvfp4_scales(parts)


def _nvfp4_scales(parts: Mapping[str, Tensor]) -> Tensor:
    """The scale of every number, [O, I]."""
    scales = parts["weight_scale"].float() * parts["weight_scale_2"].float()
    return scales.repeat_interleave(BLOCK, dim=-1)


def error_share_fp8(original: Tensor, parts: Mapping[str, Tensor]) -> float:
    """Rounding error against that of float8_e4m3fn, as ``Format.error_share``.

    Numbers above 448 scales do not exist in the format, so a scale that is too small shows too.
    """
    scale = parts["weight_scale"].float()
    size = original.float().abs() / scale
    error = (dequantise_fp8(parts) - original.float()).abs() / scale
    allowed = (size * _E4M3_HALF_STEP).clamp(min=_E4M3_HALF_SMALLEST) + size * _DIVISION
    return _largest(error / allowed)


def error_share_nvfp4(original: Tensor, parts: Mapping[str, Tensor]) -> float:
    """Rounding error against that of E2M1 and of its blocks' scales, as ``Format.error_share``.

    Half a step of E2M1 is 1/4 up to 2, 1/2 up to 4 and 1 above. A scale is the largest number of
    its block over 6, rounded to float8_e4m3fn.
    """
    scales = _nvfp4_scales(parts)
    size = original.float().abs() / scales
    error = (dequantise_nvfp4(parts) - original.float()).abs() / scales
    half_step = torch.where(size <= 2, 0.25, torch.where(size <= 4, 0.5, 1.0))
    share = _largest(error / (half_step + size * _DIVISION))

    largest = original.float().abs().reshape(len(original), -1, BLOCK).amax(-1)
    exact = largest / (E2M1[-1] * parts["weight_scale_2"].float())
    # The smallest scale there is; a block of zeros takes any.
    exact = torch.where(exact == 0, parts["weight_scale"].float(), exact.clamp(min=2.0**-9))
    off = (parts["weight_scale"].float() - exact).abs()
    allowed = (exact * _E4M3_HALF_STEP).clamp(min=_E4M3_HALF_SMALLEST) + exact * _DIVISION
    return max(share, _largest(off / allowed))


def _largest(share: Tensor) -> float:
    """The largest share; a number that is none is infinitely far off."""
    return float(share.nan_to_num(nan=torch.inf).max())


FORMATS = {
    "fp8": Format(
        algorithm="FP8",
        weight_dtype=torch.float8_e4m3fn,
        suffixes=("weight_scale", "input_scale"),
        dequantise=dequantise_fp8,
        error_share=error_share_fp8,
    ),
    "nvfp4": Format(
        algorithm="NVFP4",
        weight_dtype=torch.uint8,
        suffixes=("weight_scale", "weight_scale_2", "input_scale"),
        dequantise=dequantise_nvfp4,
        error_share=error_share_nvfp4,
    ),
}
