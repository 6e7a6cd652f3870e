"""The table of refusals: its rows name keys of Megatron's, and each is for the runs it says."""

from pathlib import Path

import pytest

from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.keys.table import argument_parser, destination_of
from tst_megatron.recipe.recipe import Recipe
from tst_megatron.recipe.rules.refusals import REFUSALS, refusals
from tst_megatron.recipe.tst_config import TSTConfig

BAGS = TSTConfig(bag_size=4, superposition_fraction=0.5)


def said(profile, tst=BAGS, **megatron):
    keys = {key.replace("_", "-"): value for key, value in megatron.items()}
    recipe = Recipe(path=Path("a.yaml"), megatron=keys, tst=tst, data={}, profile=profile)
    return refusals(recipe, Flags(argument_parser()).parse(keys))


def test_every_row_names_keys_of_megatron_and_no_two_begin_alike():
    assert all(destination_of(key) for row in REFUSALS for key in row.keys)
    assert len({row.keys[0] for row in REFUSALS}) == len(REFUSALS)


@pytest.mark.parametrize(
    ("profile", "tst", "megatron", "key"),
    [
        (None, BAGS, {"mtp_num_layers": 1}, "mtp-num-layers"),
        (None, TSTConfig(), {"mtp_num_layers": 1}, None),
        ("cpu", BAGS, {"hidden_dropout": 0.1, "attention_dropout": 0.0}, "hidden-dropout"),
        ("cpu", BAGS, {"hidden_dropout": 0.0, "attention_dropout": 0.1}, "hidden-dropout"),
        ("bf16", BAGS, {"hidden_dropout": 0.1}, None),
        # Any key of a row, under the name of its first.
        (None, BAGS, {"no_save_rng": True}, "no-load-optim"),
        (None, BAGS, {"dataloader_type": "single"}, None),
        (None, BAGS, {"dataloader_type": "cyclic"}, "dataloader-type"),
        (
            "bf16",
            BAGS,
            {"no_check_for_nan_in_loss_and_grad": True},
            "no-check-for-nan-in-loss-and-grad",
        ),
    ],
)
def test_row_refuses_its_values_in_its_runs(profile, tst, megatron, key):
    if profile == "cpu":
        megatron = {"hidden_dropout": 0.0, "attention_dropout": 0.0, **megatron}
    found = [problem.partition(":")[0] for problem in said(profile, tst, **megatron)]
    assert found == ([key] if key else [])
