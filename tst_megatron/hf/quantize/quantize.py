"""Quantise an export to FP8 or NVFP4 with nvidia-modelopt, in the form vLLM and TensorRT-LLM read.

The architecture's config.json stays as it is; ``quantization_config`` is added to it, and
hf_quant_config.json beside it. What was written is proven before it appears.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tst_megatron.data.text.documents import texts
from tst_megatron.data.tokenizer.files import copy_files
from tst_megatron.data.tokenizer.hugging_face import load_hugging_face
from tst_megatron.hf.generate import load_in_transformers
from tst_megatron.hf.model_folder.configuration import CONFIG, written_config
from tst_megatron.hf.model_folder.soundness import not_numbers
from tst_megatron.hf.model_folder.weight_files import HuggingFaceWeights, check_is_free, write_json
from tst_megatron.hf.model_folder.whole_model import check_model, problems_along
from tst_megatron.hf.quantize.formats import BLOCK, FORMATS
from tst_megatron.hf.quantize.proof import QUANTISED, QuantizationProof, prove
from tst_megatron.hf.tokenizer.files import GENERATION
from tst_megatron.megatron.cpu.device import find as find_device
from tst_megatron.system.files import folder_appearing_whole
from tst_megatron.system.machine.memory import available_bytes

_PROOF_SEQUENCES, _PROOF_TOKENS = 2, 256
_TOO_LARGE = (
    "the model computes NaN or infinities on the calibration's text, though each weight is a "
    "number: some are too large. Take an earlier checkpoint, or fetch the files again"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The text by which the scales of activations are found."""

    text: Path
    """JSONL file, also .gz and .zst, as for ``tst-megatron data prepare``."""
    text_key: str = "text"
    num_sequences: int = 512
    """At most; fewer where the text ends before."""
    sequence_length: int = 512
    """Raw tokens of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationReport:
    """The facts of a quantised model, for its command to print."""

    output: Path
    algorithm: str
    num_sequences: int
    """Of the calibration."""
    num_tokens: int
    """Raw tokens of the calibration."""
    num_bytes_before: int
    """Of the original's weight files."""
    num_bytes: int
    """Of the weight files written."""
    proof: QuantizationProof
    seconds: float


def quantize(
    hf_dir: Path,
    output: Path,
    *,
    format: str,
    calibration: Calibration,
    device: str | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> QuantizationReport:
    """Write a model with the weights of its attention and feed-forward layers quantised.

    lm_head, embeddings, routers and norms stay as they are. Everything is written beside the
    output and renamed to it after the proof.

    Args:
        hf_dir: a model in Hugging Face format with its tokenizer.
        output: folder that does not exist or is empty.
        format: ``fp8`` or ``nvfp4``.
        calibration: the text by which activations are measured.
        device: where the model runs for the calibration, a GPU if there is one when not given; the
            proof runs on the CPU.
        on_progress: told each step in a short sentence.

    Raises:
        ValueError: an unknown format, an incomplete or unfit model, too little text, or an output
            that is not empty.
        RuntimeError: what was written is not the model; nothing is left behind.
    """
    start = time.perf_counter()
    say = on_progress or (lambda _: None)
    if format not in FORMATS:
        raise ValueError(f"--format {format} is none of {', '.join(FORMATS)}")
    check_is_free(output)
    device = find_device(device)
    _check_modelopt()
    _check_model(hf_dir, format)
    # Held from here on: what follows takes long.
    with folder_appearing_whole(output) as new:
        tokens_BT = _calibration_tokens(hf_dir, calibration)
        say(_announced(tokens_BT, calibration))
        model = _quantised(hf_dir, _load(hf_dir).to(device), format, tokens_BT, say)
        say(f"writing {FORMATS[format].algorithm}")
        _write(model, new)
        del model
        _keep_the_rest(hf_dir, new)
        say("comparing what was written with the original")
        proof = prove(hf_dir, new, FORMATS[format], tokens_BT[:_PROOF_SEQUENCES, :_PROOF_TOKENS])
    say(f"wrote {output}")
    return QuantizationReport(
        output=output,
        algorithm=FORMATS[format].algorithm,
        num_sequences=len(tokens_BT),
        num_tokens=tokens_BT.numel(),
        num_bytes_before=_weight_bytes(hf_dir),
        num_bytes=_weight_bytes(output),
        proof=proof,
        seconds=time.perf_counter() - start,
    )


def _announced(tokens_BT: Tensor, calibration: Calibration) -> str:
    end = " (the text ends there)" if len(tokens_BT) < calibration.num_sequences else ""
    return (
        f"calibrating on {tokens_BT.numel():,} tokens: {len(tokens_BT)} sequences of "
        f"{calibration.sequence_length}{end}"
    )


def _check_modelopt() -> None:
    # nvidia-modelopt 0.47.0 imports requests without declaring it; for removal when it does.
    missing = [name for name in ("modelopt", "requests") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)}: not installed: pip install 'tst-megatron[quantize]'"
        )


def _check_model(hf_dir: Path, format: str) -> None:
    """Refuse what cannot be quantised: all that the folder says of itself, then all its numbers."""
    if not hf_dir.is_dir():
        raise ValueError(f"{hf_dir}: no such folder. Give one that `tst-megatron export` wrote.")
    problems = []
    if not any(hf_dir.glob("tokenizer*.json")):
        problems.append("no tokenizer is there (tokenizer.json or tokenizer_config.json)")
    problems += problems_along(hf_dir)
    has_config = (hf_dir / CONFIG).is_file()
    if not has_config:
        problems.append(f"{CONFIG} is missing")
    try:
        if has_config and written_config(hf_dir).get("quantization_config") is not None:
            raise ValueError("it is quantised already")
        files = check_model(hf_dir) if has_config else HuggingFaceWeights(hf_dir)
        problems += _unfit_weights(files, format) + _too_large(files)
    except ValueError as error:
        problems.append(str(error).removeprefix(f"{hf_dir}: ").rstrip("."))
    if not problems:
        problems = not_numbers(files, or_zeros=True)
    if problems:
        raise ValueError(f"{hf_dir}: cannot be quantised: {'; '.join(problems)}.")


def _unfit_weights(files: HuggingFaceWeights, format: str) -> list[str]:
    names = [name for name in files.names() if QUANTISED.fullmatch(name)]
    if not names:
        return ["it has no weight of the known families (model.layers.*_proj)"]
    unfit = [
        f"{name} {[*files.shape(name)]}"
        for name in names
        if format == "nvfp4" and files.shape(name)[-1] % BLOCK
    ]
    if not unfit:
        return []
    return [
        f"nvfp4 scales blocks of {BLOCK} input features, which do not divide those of "
        f"{len(unfit)} weights ({', '.join(unfit[:3])}); use fp8"
    ]


def _too_large(files: HuggingFaceWeights) -> list[str]:
    """Refuse at once what would fail after hours: the proof takes the model in float32."""
    needed = 4 * sum(math.prod(files.shape(name)) for name in files.names()) * 1.1
    free = available_bytes()
    if needed <= free:
        return []
    return [
        f"its proof takes {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free; use a "
        "larger machine"
    ]


def _calibration_tokens(hf_dir: Path, calibration: Calibration) -> Tensor:
    """Documents one after the other, as training has them, cut into sequences."""
    length = calibration.sequence_length
    longest = written_config(hf_dir).get("max_position_embeddings")
    if longest is not None and length > longest:
        raise ValueError(f"--sequence-length {length}: the model has {longest} positions.")
    tokenizer = load_hugging_face(hf_dir)
    tokens: list[int] = []
    for text in texts([calibration.text], text_key=calibration.text_key):
        tokens += tokenizer.encode([text])[0].tolist()
        if len(tokens) >= calibration.num_sequences * length:
            break
    num_sequences = min(len(tokens) // length, calibration.num_sequences)
    if num_sequences == 0:
        raise ValueError(
            f"--text {calibration.text}: {len(tokens)} tokens, and one sequence has {length}. "
            "Give more text, or a shorter --sequence-length."
        )
    return torch.tensor(tokens[: num_sequences * length]).view(num_sequences, length)


def _load(hf_dir: Path) -> Any:
    files = HuggingFaceWeights(hf_dir)
    dtype = files.dtype(next(name for name in files.names() if QUANTISED.fullmatch(name)))
    model, info = load_in_transformers(hf_dir, dtype)
    if problems := {name: found for name, found in info.items() if found}:
        raise ValueError(f"{hf_dir}: transformers does not load it strictly: {problems}.")
    return model


def _quantised(
    hf_dir: Path, model: Any, format: str, tokens_BT: Tensor, say: Callable[[str], None]
) -> Any:
    import modelopt.torch.quantization as mtq

    configurations = {"fp8": mtq.FP8_DEFAULT_CFG, "nvfp4": mtq.NVFP4_DEFAULT_CFG}
    tenth, shown = max(1, len(tokens_BT) // 10), sys.stdout

    def calibrate(model: Any) -> None:
        for number, tokens_T in enumerate(tokens_BT, start=1):
            logits_BTV = model(tokens_T[None].to(model.device), use_cache=False).logits
            if not bool(logits_BTV.isfinite().all()):
                raise ValueError(f"{hf_dir}: {_TOO_LARGE}")
            if number % tenth == 0:
                with contextlib.redirect_stdout(shown):
                    say(f"calibrated on {number} of {len(tokens_BT)} sequences")

    # modelopt prints, where this project's own progress is shown.
    try:
        with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
            return mtq.quantize(model, copy.deepcopy(configurations[format]), calibrate)
    except AssertionError as error:
        # What it finds in an activation: weights were looked through before.
        raise ValueError(f"{hf_dir}: {_TOO_LARGE} (nvidia-modelopt: {error})") from error


def _write(model: Any, folder: Path) -> None:
    from modelopt.torch.export import export_hf_checkpoint

    with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
        export_hf_checkpoint(model, export_dir=folder)


def _keep_the_rest(hf_dir: Path, folder: Path) -> None:
    """The original's config.json with the quantisation in it, and the tokenizer's files.

    transformers writes the keys of its own version, which other runtimes may not know.
    """
    config = written_config(hf_dir)
    written = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = written["quantization_config"]
    write_json(folder / "config.json", config)
    copy_files(hf_dir, folder)
    if (hf_dir / GENERATION).is_file():
        shutil.copyfile(hf_dir / GENERATION, folder / GENERATION)


def _weight_bytes(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in HuggingFaceWeights(folder).files())
