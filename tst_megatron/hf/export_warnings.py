"""Warn before training of what `export` will refuse after it.

No torch, no transformers and no Megatron are imported, except to judge a Hugging Face tokenizer
that leaves it to the model how it is read.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tst_megatron.hf.families.family import Family
from tst_megatron.hf.families.known import FAMILIES, family_of_args, not_gpt, scattered_gates

ADVICE = "before training if you want the model in Hugging Face format"


def export_warnings(args: argparse.Namespace) -> list[str]:
    """Say that a model will have no form in Hugging Face format, with every setting to change.

    The rules are those by which `export` refuses a checkpoint (``Family.misfits``, ``not_gpt`` and
    ``scattered_gates``).

    Args:
        args: Megatron's arguments of a recipe, as its parser gives them or validated. None is what
            the parser gives for a setting without a default, and stands for "not set" here too.

    Returns:
        One warning, or none where the model can be exported.
    """
    # The old switch for RoPE, which Megatron's validation translates.
    if getattr(args, "use_rotary_position_embeddings", False):
        args = copy.copy(args)
        args.position_embedding_type = "rope"
    family = family_of_args(args)
    found = [*not_gpt(args), *scattered_gates(args), *family.misfits(args)]
    if not found:
        return []
    return [
        f"export will refuse this model, which has no {family.name} form: {'; '.join(found)}. "
        f"Change that {ADVICE}"
    ]


def tokenizer_warnings(tokenizer: Path, args: argparse.Namespace | None = None) -> list[str]:
    """Say that a tokenizer cannot be exported with a model as it is.

    A SentencePiece model of 32,000 pieces takes half a second to judge, and a Hugging Face
    tokenizer whose ``tokenizer_config.json`` names a ``tokenizer_class`` no time. Another is read
    by transformers as the model's kind has it, which is tried here as `export` tries it: some
    seconds, most of them imports.

    Args:
        tokenizer: a SentencePiece model or a folder in Hugging Face format
            (``Manifest.tokenizer_path``).
        args: as for ``export_warnings``; without them every family is considered.

    Returns:
        One warning, or none. A tokenizer that is missing, or that no text can be prepared with, is
        not judged: `data prepare` and `check` refuse it in their own words.
    """
    if tokenizer.is_dir():
        families = FAMILIES if args is None else (family_of_args(args),)
        return _read_otherwise(tokenizer, families)
    # `check` comes here with most recipes, and need not wait for packages that it does not use.
    from tst_megatron.data.tokenizer.sentencepiece import load_sentencepiece

    # Likewise: it reads the model with protobuf.
    from tst_megatron.hf.tokenizer.sentencepiece_form import exact_merges, read_model

    try:
        load_sentencepiece(tokenizer)
    except (ValueError, OSError):
        return []
    try:
        exact_merges(read_model(tokenizer))
    except ValueError as error:
        return [
            f"export will refuse the tokenizer {tokenizer}, which has no exact Hugging Face form: "
            f"{error}. Prepare the text with one that `tst-megatron data tokenizer` trains, "
            f"{ADVICE}; `export --no-tokenizer` writes the weights alone"
        ]
    return []


def _read_otherwise(folder: Path, families: Sequence[Family]) -> list[str]:
    """Warn if transformers reads a tokenizer otherwise beside a model of one of the families."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
        if config.get("tokenizer_class"):
            return []
    except FileNotFoundError:
        pass
    except (ValueError, OSError, AttributeError):
        return []
    found = [family.name for family in families if _has_other_ids(folder, family)]
    if not found:
        return []
    return [
        f"export will refuse the tokenizer {folder} beside a {' or '.join(found)} model: its "
        "tokenizer_config.json names no tokenizer_class, and the one that transformers then takes "
        'gives other ids. Add "tokenizer_class": "PreTrainedTokenizerFast" to it before the text '
        f"is prepared, {ADVICE}; or give `export --tokenizer` a copy that has it"
    ]


def _has_other_ids(folder: Path, family: Family) -> bool:
    # The only judgement that needs transformers, which takes seconds to import.
    from tst_megatron.hf.tokenizer.files import TokenizerFiles, write_tokenizer

    with tempfile.TemporaryDirectory() as beside:
        # What of the model's config.json decides how the files are read.
        config = json.dumps({"model_type": family.model_type})
        (Path(beside) / "config.json").write_text(config)
        try:
            write_tokenizer(TokenizerFiles(source=folder, description=""), Path(beside))
        except RuntimeError:
            return True
        except (ValueError, OSError):
            return False
    return False
