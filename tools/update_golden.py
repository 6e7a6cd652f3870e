"""Write ``tests/golden`` anew, for a change that is meant; the commit says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tst_megatron.megatron.cpu import host

# Megatron's parser knows which spellings mean one flag.
host.install(even_with_gpu=True)

from tst_megatron.megatron import arguments  # noqa: E402
from tst_megatron.recipe.check.plain import with_profile  # noqa: E402
from tst_megatron.recipe.keys.flags import Flags  # noqa: E402
from tst_megatron.recipe.recipe import load_recipe  # noqa: E402

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = REPOSITORY / "tests" / "golden"
RECIPES = tuple(
    f"{path.parent.name}/{path.stem}" for path in sorted((REPOSITORY / "examples").glob("*/*.yaml"))
)
"""Recipes of ``examples`` whose resolved values are held: all."""
FLAGS = Flags(arguments.argument_parser())


def golden_path(recipe: str) -> Path:
    return GOLDEN / f"{recipe.replace('/', '-')}.json"


def resolved(recipe: str) -> dict[str, Any]:
    """What decides a run: every value after bases, the profile's, and the phases in whole steps."""
    loaded = load_recipe(REPOSITORY / "examples" / f"{recipe}.yaml")
    phases = [[phase.bag_size, phase.num_steps] for phase in loaded.schedule().phases]
    values = with_profile(loaded, FLAGS)
    given = {key: values[key] for key in sorted(values) if loaded.megatron.get(key) != values[key]}
    return {**loaded.resolved(), "given by the profile": given, "phases": phases}


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for recipe in RECIPES:
        text = json.dumps(resolved(recipe), indent=2) + "\n"
        path = golden_path(recipe)
        verb = "same" if path.exists() and path.read_text() == text else "written"
        path.write_text(text)
        print(f"{path.relative_to(REPOSITORY)}: {verb}")


if __name__ == "__main__":
    main()
