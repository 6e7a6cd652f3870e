"""The table of Megatron's options says what Megatron's own parser says."""

import json

from tst_megatron.megatron import arguments
from tst_megatron.recipe.keys import table as keys
from tst_megatron.recipe.keys.flags import Flags

OWN = arguments.argument_parser()


def test_table_is_that_of_the_installed_megatron():
    table = json.loads(keys.TABLE.read_text())
    assert table == keys.table_of(OWN), "run tools/update_keys.py"


def test_parser_of_the_table_has_the_same_table():
    assert keys.table_of(keys.argument_parser()) != []
    again = json.loads(json.dumps(keys.table_of(keys.argument_parser())))
    own = json.loads(keys.TABLE.read_text())
    for ours, theirs in zip(again, own, strict=True):
        assert {**ours, "type": None} == {**theirs, "type": None}


def test_the_same_values_make_the_same_flags():
    recipe = {
        "num-layers": 4,
        "lr": "2e-3",
        "bf16": True,
        "rope-fusion": False,
        "moe-layer-freq": "([0]*1+[1]*3)",
        "window-size": "(8,0)",
        "attention-backend": "flash",
        "cuda-graph-modules": ["attn", "moe_router"],
        "offload-modules": ["core_attn"],
        "overlap-p2p-communication": False,
    }
    ours = Flags(keys.argument_parser()).convert(recipe)
    assert ours == Flags(OWN).convert(recipe)
    assert ours[1] == []


def test_defaults_are_the_same_but_for_names_of_members():
    ours = vars(keys.argument_parser().parse_args([]))
    theirs = vars(OWN.parse_args([]))
    assert set(ours) == set(theirs)
    different = {name for name, value in ours.items() if value != theirs[name]}
    assert different == {"attention_backend", "exit_signal"}
