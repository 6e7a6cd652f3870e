"""Small recipes for the tests of sweeps, and a command that stands for ``tst-megatron``."""

import json
import sys
from pathlib import Path

from tst_megatron.recipe.check.plain import NoTextError, check_plainly
from tst_megatron.recipe.recipe import load_recipe
from tst_megatron.sweep.command import Options

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart"
TST = QUICKSTART / "tst.yaml"
SHORT = (
    *("train-iters=40", "lr-warmup-iters=4", "lr-wsd-decay-iters=10"),
    *("eval-interval=20", "eval-iters=1", "expert-model-parallel-size=1"),
)
"""The switch comes after step 16, and the decay starts after step 30."""

FAKE = (sys.executable, str(Path(__file__).parent / "fake_command.py"))


def checked(*overrides, recipe=TST):
    """The plain check of a recipe whose text is not there."""
    try:
        return check_plainly(load_recipe(recipe, overrides), world_size=1)
    except NoTextError as error:
        return error.plain


def options(output, *overrides, text=None, recipe=TST, **changes):
    """The options of a small sweep."""
    data = [f"data={json.dumps({str(text): 1.0})}"] if text else []
    given = {
        "grid": (),
        "seeds": 1,
        "arms": None,
        "share_trunks": True,
        "at_once": None,
        "nproc": None,
        "plan_only": False,
        "slurm": False,
        **changes,
    }
    return Options(recipe=recipe, overrides=(*SHORT, *data, *overrides), output=output, **given)
