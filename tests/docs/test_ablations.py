"""The table of ablations names keys that a recipe takes."""

import re
from pathlib import Path

import pytest
import yaml

from tst_megatron.recipe.recipe import load_recipe
from tst_megatron.recipe.rules.tst import tst_problems

ROOT = Path(__file__).parent.parent.parent
TABLE = re.findall(
    r"^\| (.+?) \| (`.+?) \| .* \|$", (ROOT / "docs" / "ablations.md").read_text(), re.M
)


def settings(cell):
    """The ``key: value`` pairs of a cell; a bare value is another choice for the key before it."""
    found = []
    for text in re.findall(r"`([^`]+)`", cell):
        key, colon, value = text.partition(": ")
        found.append((key, value) if colon else (found[-1][0], text))
    return [(key, value.replace("K", "4")) for key, value in found]


def test_table_has_every_switch():
    keys = {key for _, cell in TABLE for key, _ in settings(cell)}
    switches = {"inputs", "targets", "slot-weights", "reset-embeddings", "reset-optimizer"}
    assert switches | {"schedule"} <= keys


@pytest.mark.parametrize(("arm", "cell"), TABLE, ids=[arm for arm, _ in TABLE])
def test_arm_is_a_recipe(arm, cell):
    superposed = ["tst.bag-size=4", "tst.superposition-fraction=0.3"]
    for key, value in settings(cell):
        if key == "mtp-num-layers":
            overrides = [f"{key}={value}"]
        elif key in ("schedule", "bag-size"):
            overrides = (
                [f"tst.{key}={value}", *superposed[1:]]
                if key == "bag-size"
                else [f"tst.{key}={value}"]
            )
        else:
            overrides = [*superposed, f"tst.{key}={value}"]
        loaded = load_recipe(ROOT / "examples" / "quickstart" / "baseline.yaml", overrides)
        assert not loaded.problems and not tst_problems(loaded.tst)
        meant = loaded.megatron if key == "mtp-num-layers" else loaded.resolved()["tst"]
        assert meant[key] == yaml.safe_load(value)
