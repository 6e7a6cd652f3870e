"""Weights that are no numbers, or nothing but zeros: found before anything is made of them."""

from __future__ import annotations

from tst_megatron.hf.model_folder.weight_files import HuggingFaceWeights

_LISTED = 10
_NOTHING = 1e-30
"""A weight whose largest number is smaller has no scale: 448 over it leaves float32's range."""


def check_numbers(files: HuggingFaceWeights) -> None:
    """Refuse weights that hold NaN or an infinity, all of them at once.

    Reads every weight once, one at a time.

    Raises:
        ValueError: some do; with the tensors and how many of their numbers.
    """
    problems = not_numbers(files)
    if problems:
        raise ValueError(f"{files.folder}: {problems[0]}.")


def not_numbers(files: HuggingFaceWeights, *, or_zeros: bool = False) -> list[str]:
    """List what makes weights unfit, a sentence for each kind.

    Args:
        files: of the model; each weight is read once.
        or_zeros: whether one of zeros alone is unfit too, as it is for a format with scales.
    """
    broken, dead = [], []
    for name in files.names():
        weight = files.read(name)
        if not bool(weight.isfinite().all()):
            num_nan = int(weight.isnan().sum())
            counts = (num_nan, "NaN"), (int(weight.isinf().sum()), "infinite")
            listed = " and ".join(f"{count:,} {what}" for count, what in counts if count)
            broken.append(f"{name} ({listed} of {weight.numel():,} numbers)")
        elif or_zeros and _has_scale(name) and float(weight.abs().max()) < _NOTHING:
            dead.append(name)
    found = []
    if broken:
        found.append(
            f"NaN or infinite numbers in {len(broken)} of its weights: {_listed(broken)}. The "
            "files are damaged, or the training left it so: fetch them again, or take an earlier "
            "checkpoint"
        )
    if dead:
        found.append(
            f"all zero in the original: {_listed(dead)} ({len(dead)} of its weights). Zeros alone "
            "have no scale, nor has what comes out of them, and would be written as NaN. Weights "
            "of an expert are so where it is dead: train on until the router uses it, or take it "
            "out (its weights, its row of mlp.gate.weight, and num_experts in config.json); or "
            "serve the model as it is"
        )
    return found


def _has_scale(name: str) -> bool:
    """Of the weights that nothing comes through where they are zero; a router may begin so."""
    return not name.endswith((".bias", ".mlp.gate.weight"))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", and others" if len(names) > _LISTED else "")
