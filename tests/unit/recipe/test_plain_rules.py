"""Keys without effect, packages that are missing, keys that no recipe has."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tst_megatron.recipe.keys.table import argument_parser
from tst_megatron.recipe.recipe import Recipe
from tst_megatron.recipe.rules import packages
from tst_megatron.recipe.rules.decided_elsewhere import DECIDED_ELSEWHERE, key_problems
from tst_megatron.recipe.rules.no_effect import BELONGS_TO, no_effect_warnings
from tst_megatron.recipe.tst_config import TSTConfig

PARSER = argument_parser()


def values(**changes):
    found = PARSER.parse_args([])
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def recipe(profile=None, **megatron):
    keys = {name.replace("_", "-"): value for name, value in megatron.items()}
    return Recipe(
        path=Path("r.yaml"), megatron=keys, tst=TSTConfig(), data={}, profile=profile, problems=()
    )


# --- without effect ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"moe_aux_loss_coeff": 0.1}, "moe-aux-loss-coeff: has no effect without num-experts"),
        ({"lr_wsd_decay_iters": 5}, "lr-wsd-decay-iters: has no effect without lr-decay-style"),
        ({"muon_momentum": 0.9}, "muon-momentum: has no effect without optimizer: muon"),
        ({"fp8_margin": 1, "fp8_interval": 2}, "fp8-interval, fp8-margin: have no effect"),
        (
            {"moe_router_num_groups": 2, "num_experts": 4},
            "moe-router-num-groups: has no effect without moe-router-group-topk",
        ),
        (
            {"rotary_base": 5, "position_embedding_type": "none"},
            "rotary-base: has no effect without rotary positions",
        ),
        ({"wandb_exp_name": "x"}, "wandb-exp-name: has no effect without wandb-project"),
        ({"min_lr": 0.1, "lr_decay_style": "constant"}, "min-lr: has no effect without another"),
    ],
)
def test_key_that_belongs_to_another_is_told(changes, said):
    found = no_effect_warnings(values(**changes), set(changes))
    assert any(warning.startswith(said) for warning in found), found


def test_key_that_asks_for_nothing_is_not_told():
    found = no_effect_warnings(values(moe_aux_loss_coeff=0.0), {"moe_aux_loss_coeff"})
    assert found == []


def test_defaults_are_not_told():
    assert no_effect_warnings(values(), set()) == []


def test_beginnings_are_of_keys_that_exist():
    names = [action.dest for action in PARSER._actions]
    for _, is_set, beginnings in BELONGS_TO:
        assert is_set(values()) in (True, False)
        for beginning in beginnings:
            assert any(name.startswith(beginning) for name in names), beginning


# --- packages ------------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wandb_project": "x"}, "wandb-project: needs wandb, which this environment lacks"),
        ({"optimizer": "muon"}, "optimizer: muon: needs emerging-optimizers, which this"),
        ({"gradient_accumulation_fusion": True}, "gradient-accumulation-fusion: needs Apex"),
        ({"moe_enable_deepep": True}, "moe-enable-deepep: needs DeepEP"),
    ],
)
def test_missing_package_is_a_problem_where_the_recipe_runs(
    nothing_is_installed, monkeypatch, changes, said
):
    asked = values(**{"gradient_accumulation_fusion": False, **changes})
    problems, warnings = packages.package_remarks(recipe(profile="cpu"), asked)
    assert problems[0].startswith(said) and not warnings
    monkeypatch.setattr(packages, "sees_gpu", lambda: True)
    assert packages.package_remarks(recipe(profile="bf16"), asked) == (problems, [])


def test_missing_package_is_a_warning_where_only_the_job_runs(nothing_is_installed, monkeypatch):
    monkeypatch.setattr(packages, "sees_gpu", lambda: False)
    asked = values(gradient_accumulation_fusion=False, wandb_project="x")
    problems, warnings = packages.package_remarks(recipe(profile="bf16"), asked)
    assert problems == []
    assert warnings == [
        "wandb-project: needs wandb, which this environment lacks; that of the job must have it"
    ]


def test_package_that_nothing_asks_for_is_not_missed(nothing_is_installed):
    asked = values(gradient_accumulation_fusion=False)
    assert packages.package_remarks(recipe(profile="cpu"), asked) == ([], [])


# --- keys ----------------------------------------------------------------------------------------


def test_refused_keys_are_keys_of_megatron():
    names = {name for action in PARSER._actions for name in action.option_strings}
    assert not {f"--{key}" for key in DECIDED_ELSEWHERE} - names


@pytest.mark.parametrize("key", sorted(DECIDED_ELSEWHERE))
def test_key_that_something_else_decides_is_refused(key):
    found = key_problems(recipe(**{key.replace("-", "_"): "x"}), values())
    assert found == [f"{key}: {DECIDED_ELSEWHERE[key]}"]


def test_cache_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place, is_wrong in ((tmp_path / "file", True), (tmp_path, False), (tmp_path / "x", False)):
        found = key_problems(recipe(), values(data_cache_path=str(place)))
        assert bool(found) is is_wrong, place


def test_a_typo_is_answered_without_torch(tmp_path):
    (tmp_path / "r.yaml").write_text("num-layerz: 2\nprofile: cpu\n")
    code = (
        "import sys\nfrom tst_megatron.cli.app import main\n"
        f"sys.argv = ['tst-megatron', 'check', {str(tmp_path / 'r.yaml')!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, 'torch' in sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.split() == ["2", "False"], ended.stderr
    assert "Did you mean num-layers?" in ended.stderr
