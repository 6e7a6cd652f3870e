"""Write the paper's arms anew: the table in docs/sweeps.md, and examples/MODEL/ablations/*.yaml.

Both are generated from ``tst_megatron/sweep/arms.py`` and from each model's baseline.yaml and
tst.yaml.

Run: uv run python tools/update_ablations.py (``--check`` only says whether all are up to date)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from update_readme import replaced

from tst_megatron.recipe.recipe import load_recipe
from tst_megatron.sweep.arms import ARMS, Arm
from tst_megatron.sweep.keys import differences, file_of, flat_keys, words_of

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "sweeps.md"
MODELS = tuple(path.parent for path in sorted((ROOT / "examples").glob("*/tst.yaml")))
FOLDER = "ablations"
AT_HAND = ("tst", "baseline")
"""Recipes of a model that are there without this tool."""
KEYS = {
    "baseline": "`tst.bag-size: 1`",
    "tst": "",
    "mtp": "`tst.bag-size: 1`, `mtp-num-layers: 1`",
    "equal-data": "`tst.bag-size: 1`, `train-iters`",
    "recovery-only": "`tst.bag-size: 1`, `train-iters`",
}
"""Cells of the table that name the keys, where they follow from the recipe."""


def recipes(model: Path) -> dict[Path, str]:
    """The files of a model's ablations: each a few keys on top of the nearer of its recipes."""
    bases = {name: flat_keys(load_recipe(model / f"{name}.yaml")) for name in AT_HAND}
    given = load_recipe(model / "tst.yaml")
    found = {}
    for arm in ARMS.values():
        keys = flat_keys(load_recipe(model / "tst.yaml", words_of(arm.keys(given))))
        if keys in bases.values():
            continue
        name = min(bases, key=lambda base: len(differences(bases[base], keys)))
        comment = f"{arm.meaning}\nSource: {arm.source}."
        text = file_of(differences(bases[name], keys), comment=comment, base=f"../{name}.yaml")
        found[model / FOLDER / f"{arm.name}.yaml"] = text
    return found


def table() -> str:
    rows = ["| arm | keys | what it is | from |", "|---|---|---|---|"]
    for arm in ARMS.values():
        rows.append(f"| `{arm.name}` | {keys_of(arm)} | {arm.meaning} | {arm.source} |")
    return "\n".join(rows) + "\n"


def keys_of(arm: Arm) -> str:
    if arm.name in KEYS:
        return KEYS[arm.name]
    if arm.name.startswith("longer-"):
        return KEYS["equal-data"]
    given = load_recipe(ROOT / "examples" / "quickstart" / "tst.yaml")
    keys = differences(flat_keys(given), {**flat_keys(given), **arm.keys(given)})
    return ", ".join(f"`{word.replace('=', ': ', 1)}`" for word in words_of(keys))


def files() -> dict[Path, str]:
    """Every generated file, as it should be."""
    found = {GUIDE: replaced(GUIDE.read_text(encoding="utf-8"), table(), by=Path(__file__).name)}
    for model in MODELS:
        found |= recipes(model)
    return found


def stale() -> list[Path]:
    """Files that are not as they should be, and recipes that no arm makes any more."""
    wanted = files()
    there = {path for model in MODELS for path in (model / FOLDER).glob("*.yaml")}
    found = [p for p, text in wanted.items() if not p.exists() or p.read_text("utf-8") != text]
    return [*found, *sorted(there - wanted.keys())]


def main() -> int:
    wanted = files()
    if "--check" in sys.argv:
        return int(bool(stale()))
    for path in stale():
        if path not in wanted:
            os.unlink(path)
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(wanted[path], encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
