"""Export a SentencePiece BPE tokenizer to Hugging Face files that give exactly the same ids."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import (  # type: ignore[import-untyped, unused-ignore]
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tst_megatron.data.tokenizer.sentencepiece import load_sentencepiece
from tst_megatron.hf.tokenizer.sentencepiece_form import CONTROL, UNKNOWN, exact_merges, read_model

SPACE = "\u2581"
PROBES = (
    "",
    "word",
    " leading and trailing ",
    "  two  three   many" + " " * 67 + "end",
    "\ttab\t\ttab \t mixed",
    "line\n\n  line\r\nline\r \n",
    "def f(x):\n    return x\n\n\nclass A:\n        pass\n",
    "na\u00efve caf\u00e9, \u0416\u0443\u043a, \u4e2d\u6587, \u65e5\u672c\u8a9e, "
    "\u0639\u0631\u0628\u064a",
    "e\u0301 \ufb01 \u212b \u00a0\u2009\u3000 \u200b\u200d\ufeff",
    "\U0001f600 \U0001f469\u200d\U0001f4bb \U0001f1e9\U0001f1ea",
    "\x01\x02\x07\x08\x0b\x0c\x1b\x1c\x7f\x85\u2028\u2029",
    "</s> <s> <unk> <0x0A> a</s>b <s></s>",
    "\u2581 \u2581\u2581x\u2581",
    "a" * 33 + "ab" * 33 + "aba" * 33 + "-" * 80 + "=" * 79,
    "0123456789 3.14159 1e-5 0xFF",
)
"""Texts on which tokenizers are compared: what one may cut, join, strip or rewrite otherwise."""


def export_tokenizer(model_file: Path, output: Path, *, probe_texts: Iterable[str] = ()) -> None:
    """Write tokenizer.json, tokenizer_config.json and tokenizer.model; prove the ids equal.

    `AutoTokenizer.from_pretrained(output)` then gives SentencePiece's ids for every text. It adds
    neither BOS nor EOS unasked, and reads a literal "</s>" as text (`split_special_tokens` is
    stored as true). A prompt that must contain the special id, as a chat template does, needs
    `split_special_tokens=False` in that call. Decoding gives the text back, except U+2581, which
    comes back as a space, as in SentencePiece.

    Args:
        model_file: a model of the kind `train_sentencepiece` makes.
        output: folder, may hold other files; files of the same names are replaced, after the proof.
            A model's config.json should be there already: it has a say in how the files are read.
        probe_texts: further texts to compare, beside the built-in ones.

    Raises:
        ValueError: the model needs something these files cannot express.
        RuntimeError: ids or decoded text differ; the message shows the first such text.
    """
    processor = load_sentencepiece(model_file)
    model = read_model(model_file)
    try:
        merges = exact_merges(model)
    except ValueError as error:
        raise ValueError(
            f"{model_file}: no exact Hugging Face form: {error}. Train the tokenizer with "
            "`tst-megatron data tokenizer`, or export the weights alone with --no-tokenizer."
        ) from error
    tokenizer = _build(model, merges)
    specials = {
        name: processor.id_to_piece(index)
        for name, index in (
            ("bos_token", processor.bos_id()),
            ("eos_token", processor.eos_id()),
            ("unk_token", processor.unk_id()),
        )
        if index >= 0
    }
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tokenizer.", dir=output) as beside:
        PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=tokenizer,
            split_special_tokens=True,
            clean_up_tokenization_spaces=False,
            **specials,
        ).save_pretrained(beside)
        shutil.copyfile(model_file, Path(beside) / "tokenizer.model")
        files = sorted(Path(beside).iterdir())
        # transformers takes another tokenizer class for some kinds of models (qwen2, in 5.14).
        if (output / "config.json").is_file():
            shutil.copyfile(output / "config.json", Path(beside) / "config.json")
        _prove(processor, Path(beside), (*PROBES, *probe_texts))
        for file in files:
            file.replace(output / file.name)


def _build(model: Any, merges: list[tuple[str, str]]) -> Tokenizer:
    unknown = next(piece.piece for piece in model.pieces if piece.type == UNKNOWN)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece.piece: index for index, piece in enumerate(model.pieces)},
            merges=merges,
            unk_token=unknown,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(piece.piece, special=True, normalized=False)
            for piece in model.pieces
            if piece.type in (UNKNOWN, CONTROL)
        ]
    )
    tokenizer.encode_special_tokens = True
    return tokenizer


def _prove(processor: SentencePieceProcessor, folder: Path, texts: Iterable[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in texts:
        expected = processor.encode(text, out_type=int)
        actual = tokenizer.encode(text, add_special_tokens=False)
        if actual != expected:
            raise RuntimeError(
                f"exported tokenizer: text {text[:200]!r} gives ids {actual[:50]}, SentencePiece "
                f"gives {expected[:50]}. Do not use the export; report the installed versions of "
                "tokenizers and transformers."
            )
        decoded = tokenizer.decode(actual)
        if decoded != text.replace(SPACE, " "):
            raise RuntimeError(
                f"exported tokenizer: text {text[:200]!r} is decoded as {decoded[:200]!r}. Do not "
                "use the export; report the installed versions of tokenizers and transformers."
            )
