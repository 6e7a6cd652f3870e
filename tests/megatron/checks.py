"""What the tests of ``check`` share: problems of the tiny recipe with changes."""

from __future__ import annotations

from pathlib import Path

import tiny
import yaml

from tst_megatron.recipe.check.checked import CheckedRecipe
from tst_megatron.recipe.recipe import RecipeError, load_recipe
from tst_megatron.training.check.check_recipe import check_recipe


def check(
    text: Path,
    tst: dict | None = None,
    *,
    world_size: int | None = None,
    without: tuple[str, ...] = (),
    is_rehearsed: bool = False,
    **changes,
) -> CheckedRecipe:
    """Check ``tiny.TINY`` with changes (keys with underscores for dashes).

    What a start builds is built only if asked for: it takes a second.
    """
    keys = {name.replace("_", "-"): value for name, value in changes.items()}
    recipe = {**tiny.TINY, "profile": "cpu", "data": {str(text): 1.0}, "tst": tst or {}, **keys}
    for key in without:
        del recipe[key]
    path = text.parent / "checked.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return check_recipe(load_recipe(path), world_size=world_size, is_rehearsed=is_rehearsed)


def problems(text: Path, tst: dict | None = None, **changes) -> list[str]:
    """The problems that ``check`` finds, which must be some."""
    try:
        checked = check(text, tst, **changes)
    except RecipeError as error:
        return list(error.problems)
    raise AssertionError(f"no problem found; flags: {' '.join(checked.flags)}")
