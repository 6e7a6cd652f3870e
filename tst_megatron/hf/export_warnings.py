"""What `export` will refuse of a run, said before it is trained.

Nothing slow is imported: no torch, no transformers, no Megatron.
"""

from __future__ import annotations

import argparse
import copy

from tst_megatron.hf.families import family_of_args, not_gpt, scattered_gates

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
