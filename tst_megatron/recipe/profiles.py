"""Profiles: what a recipe leaves to the machine, as Megatron's flags with a reason beside each.

The recipe's own keys and overrides win over a profile's values. So ``profile=tuned
moe-token-dispatcher-type=alltoall`` switches one setting off, and with it whatever only that
setting needs. No profile asks what is installed: ``gradient-accumulation-fusion: false`` says that
Apex is missing. No profile was run on a GPU yet. The settings are in ``profile_settings.py``;
`docs/profiles.md` has them as tables.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

from tst_megatron.recipe.conditions import Setting
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.profile_settings import BF16, CPU, FP8_SETTINGS, MXFP8_SETTINGS, TUNED

GPU_PROFILES = ("bf16", "tuned", "mxfp8", "fp8")
PROFILES = (*GPU_PROFILES, "cpu")

CHAINS: Mapping[str, tuple[tuple[Setting, ...], ...]] = {
    "bf16": (BF16,),
    "tuned": (BF16, TUNED),
    "mxfp8": (BF16, TUNED, MXFP8_SETTINGS),
    "fp8": (BF16, TUNED, FP8_SETTINGS),
    "cpu": (CPU,),
}
"""The settings of a profile; later ones override earlier ones."""


def given_by(profile: str | None, recipe: Mapping[str, Any], flags: Flags) -> dict[str, Any]:
    """Return what a profile adds to a recipe: its settings that the recipe does not decide itself.

    Args:
        profile: None adds nothing.
        recipe: the recipe's own keys and overrides.
        flags: Megatron's parser, by which two spellings of one flag are known.
    """
    if profile is None:
        return {}
    decided = {flags.destination(key) for key, value in recipe.items() if value is not None}
    given: dict[str, Any] = {}
    for setting in itertools.chain(*CHAINS[profile]):
        value = functools.partial(flags.value, {**given, **recipe})
        if setting.is_wanted(value) and flags.destination(setting.key) not in decided:
            given[setting.key] = setting.value
    return given


def keys() -> frozenset[str]:
    """Return every key that a profile may give."""
    return frozenset(s.key for chain in CHAINS.values() for s in itertools.chain(*chain))
