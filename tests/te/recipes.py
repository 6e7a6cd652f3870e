"""The shipped recipes, and what Megatron makes of them under the host that is installed.

As a script it prints that as JSON from the CPU host of every command, where Transformer Engine is
hidden and stand-ins answer for it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = sorted(str(path.relative_to(EXAMPLES)) for path in EXAMPLES.glob("*/tst.yaml"))


def for_the_job(recipe: str, profile: str) -> tuple[argparse.Namespace, Any]:
    """Megatron's arguments of a recipe, validated for its job, and its block ``tst``."""
    from tst_megatron.recipe.check.plain import check_plainly
    from tst_megatron.recipe.recipe import load_recipe
    from tst_megatron.training.check.check_recipe import validated

    loaded = load_recipe(EXAMPLES / recipe, [f"profile={profile}"])
    plain = check_plainly(loaded, has_text=False)
    arguments, _, _ = validated(plain, is_rehearsed=False)
    return arguments, loaded.tst


def spelled(args: argparse.Namespace) -> dict[str, str]:
    """Arguments that another process can compare with its own."""
    return {name: repr(value) for name, value in sorted(vars(args).items())}


def main() -> None:
    from tst_megatron.megatron.cpu import host

    host.install()
    from tst_megatron.recipe.parameters import count_parameters
    from tst_megatron.recipe.profiles import GPU_PROFILES
    from tst_megatron.recipe.recipe import load_recipe

    print(
        json.dumps(
            {
                recipe: {
                    "parts": {
                        part.name: part.total
                        for part in count_parameters(load_recipe(EXAMPLES / recipe)).parts
                    },
                    **{
                        profile: spelled(for_the_job(recipe, profile)[0])
                        for profile in GPU_PROFILES
                    },
                }
                for recipe in RECIPES
            }
        )
    )


if __name__ == "__main__":
    main()
