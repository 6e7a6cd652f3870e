"""Which recipes go on with a run: the same one however spelled, and none that changes a number."""

import re
import shlex
import shutil

import pytest
import tiny
import yaml

from tst_megatron.megatron.cpu import host

host.install()

from tst_megatron.megatron import arguments
from tst_megatron.recipe.keys import kinds, run_keys
from tst_megatron.recipe.recipe import load_recipe
from tst_megatron.training.check.check_recipe import check_recipe
from tst_megatron.training.run.identity import differences, identity, notes

TST = {"bag-size": 4, "superposition-steps": 8}
RECIPE = {"moe_layer_freq": "[1,1]", "rotary_percent": 1.0}


@pytest.fixture(scope="module")
def base(text, tmp_path_factory):
    """A recipe, and what a run folder keeps of it."""
    path = tiny.write_recipe(tmp_path_factory.mktemp("base") / "run.yaml", text, TST, **RECIPE)
    return path, kept(check(path))


@pytest.fixture(scope="module")
def again(base):
    """The same recipe at a later start."""
    return check(base[0])


def check(path, *overrides):
    return check_recipe(load_recipe(path, overrides), world_size=1)


def kept(checked):
    return yaml.safe_load(yaml.safe_dump(identity(checked), sort_keys=False))


def keys_of(problems):
    return [problem.partition(":")[0] for problem in problems]


# --- the table of kinds ---------------------------------------------------------------------------


def test_every_key_of_megatron_has_one_kind():
    parser = arguments.argument_parser()
    first = {action.option_strings[0].removeprefix("--") for action in parser._actions}
    assert first - {"-h", "help"} == set(kinds.KINDS)
    lists = (
        *(run_keys.MODEL_KEYS, run_keys.COMPUTING_KEYS, run_keys.TRAINING_KEYS),
        *(run_keys.OTHER_KEYS, kinds.LAYOUT_KEYS),
        *(kinds._WORK, kinds._SAVING, kinds._EVALUATION),
        *(kinds._PLACES, kinds._REPORTS),
    )
    assert sum(map(len, lists)) == len(kinds.KINDS)


# --- the same run, spelled otherwise --------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ["lr=1e-2"],
        ["lr=0.010"],
        ["adam-eps=1e-8", "adam-beta1=0.9", "seed=1234"],
        ["seed=null", "adam-eps=null"],
        ["norm-epsilon=1.0e-06"],
        ["clip-grad=1", "rotary-percent=1"],
        ["rotary-base=1000000", "rotary-percent=null"],
        ["no-weight-decay-cond-type=null"],
        # Lists, and one value where several may stand.
        ["moe-layer-freq='[1]*2'"],
        ["moe-aux-loss-coeff=[0.01]", "moe-router-load-balancing-type=[aux_loss]"],
        # What a flag means, under its other name.
        ["no-masked-softmax-fusion=true", "rope-fusion=false"],
        # What the profile gives or forces, and what follows from other keys or the tokenizer.
        ["moe-token-dispatcher-type=alltoall", "transformer-impl=local"],
        ["lr-decay-iters=20", "max-position-embeddings=32"],
        # The same phases.
        ["tst={schedule: [[4, 8], [1, 12]]}"],
        ["tst={bag-size: 4, superposition-fraction: 0.4, stream-unit-bags: 4}"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_same_run_spelled_otherwise_goes_on(base, again, overrides):
    path, before = base
    otherwise = check(path, *overrides)
    assert differences(before, otherwise) == []
    # And the other way round: the run had the other spelling.
    assert differences(kept(otherwise), again) == []


def test_same_text_under_another_path_goes_on_and_other_weights_do_not(
    base, text, tmp_path, monkeypatch
):
    path, before = base
    shutil.copytree(text, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    assert differences(before, check(path, "data={copy: 1}")) == []
    two = kept(check(path, f"data={{{text}: 1, copy: 0.5}}".replace("copy", str(copy(text, "b")))))
    names = [*two["data"]]
    one_way = check(path, f"data={{{names[0]}: 1.0, {names[1]}: 0.50}}")
    assert differences(two, one_way) == []
    (problem,) = differences(two, check(path, f"data={{{names[0]}: 1, {names[1]}: 2}}"))
    assert problem.startswith("data: this run was started with {")


def copy(text, name):
    target = text.parent / name
    if not target.exists():
        shutil.copytree(text, target)
    return target


def test_flattened_and_renamed_base_goes_on(base, tmp_path):
    path, before = base
    shutil.copy(path, tmp_path / "other-name.yaml")
    (tmp_path / "derived.yaml").write_text("base: other-name.yaml\nlr: 1.0e-2\n")
    assert differences(before, check(tmp_path / "derived.yaml")) == []


FREE = {
    "num-workers": "1",
    "distributed-timeout-minutes": "77",
    "exit-duration-in-mins": "60",
    "exit-interval": "15",
    "wandb-project": "curves",
    "log-interval": "2",
    "log-throughput": "true",
    "timing-log-level": "2",
    "logging-level": "30",
    "tensorboard-queue-size": "5",
    "manual-gc": "true",
    "check-for-spiky-loss": "true",
    "profile-step-start": "3",
    "eval-interval": "5",
    "eval-iters": "2",
    "save-interval": "3",
    "async-save": "true",
    "dist-ckpt-workers": "2",
    "rerun-mode": "disabled",
    "overlap-grad-reduce": "true",
    "data-cache-path": "/tmp/elsewhere",
}


def test_keys_that_decide_no_number_are_free(base, again, monkeypatch):
    # Weights & Biases, which is not installed here.
    monkeypatch.setattr("tst_megatron.recipe.rules.packages._needs", lambda values: [])
    path, before = base
    changed = check(path, *(f"{key}={value}" for key, value in FREE.items()))
    assert differences(before, changed) == []
    assert differences(kept(changed), again) == []
    assert {kinds.KINDS[key] for key in FREE} == set(kinds.KINDS.values()) - {kinds.RUN}


def test_other_held_out_positions_are_said_and_another_cadence_is_not(base):
    path, before = base
    assert notes(before, check(path, "eval-interval=5", "lr=1e-2")) == []
    (note,) = notes(before, check(path, "eval-iters=2"))
    assert note.startswith("eval-iters 1 -> 2: validation losses from here on are of other")


def test_other_name_of_a_switch_goes_on(base, tmp_path):
    path, before = base
    recipe = yaml.safe_load(path.read_text())
    del recipe["disable-bias-linear"]
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**recipe, "add-bias-linear": False}))
    assert differences(before, check(other)) == []
    other.write_text(yaml.safe_dump({**recipe, "add-bias-linear": True}))
    (problem,) = differences(before, check(other))
    assert "add add-bias-linear=false;" in problem


# --- another run ----------------------------------------------------------------------------------

CHANGED = {
    "lr": "0.02",
    "min-lr": "0",
    "adam-eps": "1e-7",
    "seed": "1",
    "train-iters": "24",
    "lr-warmup-iters": "3",
    "global-batch-size": "4",
    "micro-batch-size": "1",
    "moe-aux-loss-coeff": "0.02",
    "moe-layer-freq": "'[0,1]'",
    "ffn-hidden-size": "96",
    "add-qkv-bias": "true",
    "calculate-per-token-loss": "true",
    "eod-mask-loss": "true",
    "verify-integrity": "true",
    "tst.slot-weights": "1/i",
    "tst.reset-optimizer": "true",
    "tst.bag-size": "2",
    "tst.stream-unit-bags": "8",
}


@pytest.mark.parametrize("key", CHANGED)
def test_key_that_decides_numbers_is_refused_and_the_advice_brings_it_back(base, key):
    path, before = base
    override = f"{key}={CHANGED[key]}"
    problems = differences(before, check(path, override))
    assert key in keys_of(problems)
    assert set(keys_of(problems)) <= {key, "phases"}
    (problem,) = [each for each in problems if each.startswith(f"{key}:")]
    (fix,) = re.findall(r"add (.*); to start another", problem)
    (back,) = shlex.split(fix)
    assert differences(before, check(path, override, back)) == []


def test_profile_value_that_the_recipe_overrides_is_refused(base):
    path, before = base
    (problem,) = differences(
        before, check(path, "moe-token-dispatcher-type=allgather", "bf16=true")
    )
    assert problem.startswith("bf16: this run was started with nothing, and the recipe now says")
    assert "add bf16=false;" in problem


def test_cadence_of_evaluation_is_of_the_run_where_evaluation_leaves_a_trace(base):
    path, _ = base
    jitter = "moe-input-jitter-eps=0.01"
    before = kept(check(path, jitter))
    assert keys_of(differences(before, check(path, jitter, "eval-interval=5"))) == ["eval-interval"]


def test_several_changes_are_all_named_and_free_ones_are_not(base):
    path, before = base
    changed = check(path, "lr=0.5", "seed=2", "num-workers=1", "adam-eps=1e-8")
    assert keys_of(differences(before, changed)) == ["lr", "seed"]


def test_run_of_another_version_goes_on(base, again):
    """Whose block lacked a key; what this version's Megatron cannot do is named."""
    _, before = base
    old = {**before, "tst": {k: v for k, v in before["tst"].items() if k != "linear-cross-entropy"}}
    assert differences(old, again) == []
    (problem,) = differences({**old, "warp-drive": 9}, again)
    assert problem.startswith("warp-drive: this run was started with 9, and the recipe now says no")
