"""Plans of recipes: counted by Megatron, beside the paper's numbers, for every shipped recipe."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml

from tst_megatron.megatron.cpu import host

host.install()

from tst_megatron.plan.make_plan import make_plan
from tst_megatron.plan.published.read import published
from tst_megatron.plan.wishes import Budget, Hardware, Wishes
from tst_megatron.recipe.recipe import RecipeError, load_recipe

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
TEN_B = EXAMPLES / "qwen3-10b-a1b"

RUNS = {
    "270m-20k": ("llama-270m/baseline.yaml", ()),
    "270m-20k-tst": ("llama-270m/tst.yaml", ()),
    "270m-100k": ("llama-270m/baseline.yaml", ("train-iters=100000",)),
    "270m-100k-tst": ("llama-270m/tst.yaml", ("train-iters=100000",)),
    "600m-20k": ("llama-600m/baseline.yaml", ()),
    "600m-20k-tst": ("llama-600m/tst.yaml", ()),
    "3b-20k": ("llama-3b/baseline.yaml", ()),
    "3b-36k": ("llama-3b/baseline.yaml", ("train-iters=36000",)),
    "3b-50k": ("llama-3b/baseline.yaml", ("train-iters=50000",)),
    "3b-20k-tst": ("llama-3b/tst.yaml", ()),
    "10b-125k": ("qwen3-10b-a1b/baseline.yaml", ()),
    "10b-50k-tst": ("qwen3-10b-a1b/tst.yaml", ()),
}
"""Every run of the paper -> the recipe that is it, and what its length is."""

WISHES = Wishes(hardware=Hardware(mfu=0.126))


def plan_of(recipe, *overrides, wishes=WISHES, baseline=None):
    beside = None if baseline is None else load_recipe(baseline)
    return make_plan(load_recipe(Path(recipe), overrides), wishes, baseline=beside).as_keys()


def arms(plan):
    return {each["name"]: each for each in plan["cost"]["arms"]}


@pytest.fixture(scope="module")
def plans():
    """The plan of each of the paper's runs."""
    return {name: plan_of(EXAMPLES / path, *more) for name, (path, more) in RUNS.items()}


# --- against the paper ----------------------------------------------------------------------------


def test_every_run_of_the_paper_has_its_recipe():
    assert set(RUNS) == set(published().runs)


@pytest.mark.parametrize("name", RUNS)
def test_parameters_steps_and_raw_tokens_are_the_papers(plans, name):
    run, plan = published().runs[name], plans[name]
    arm = arms(plan)["TST" if run.bag_size > 1 else "ordinary run"]
    assert plan["cost"]["parameters"] == pytest.approx(run.parameters, rel=0.005)
    assert arm["steps"] == run.num_steps
    # Table 1 rounds 209.7 to 209, and 1.99 to 2.
    assert arm["raw tokens"] == pytest.approx(run.raw_tokens, rel=0.008)
    if run.bag_size > 1:
        first = arm["raw tokens by phase"][0]
        assert (first["bag size"], first["steps"]) == (run.bag_size, run.superposition_steps)
        assert first["raw tokens"] == pytest.approx(run.superposition_tokens, rel=0.008)


def test_10b_is_counted_to_the_last_parameter(plans):
    cost = plans["10b-125k"]["cost"]
    assert cost["parameters"] == 10_489_144_832
    assert cost["active parameters"] == 1_196_074_496


def test_flops_of_a_position_by_both_counts(plans):
    """6 N also counts the routers and norms, which Megatron's count leaves out."""
    cost = plans["10b-125k"]["cost"]
    by_formula = cost["flops per position by 6N and causal attention"]
    assert by_formula == pytest.approx(12.01e9, rel=2e-4)
    routers = 32 * 128 * 1536
    norms = 32 * (2 * 1536 + 2 * 128) + 1536
    assert by_formula - cost["flops per position"] == pytest.approx(6 * (routers + norms))
    assert cost["flops per position"] == pytest.approx(11.97e9, rel=2e-4)


@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("10b")])
def test_both_counts_of_a_dense_model_differ_by_its_norms(plans, name):
    cost = plans[name]["cost"]
    by_formula = cost["flops per position by 6N and causal attention"]
    assert 0 < by_formula / cost["flops per position"] - 1 < 5e-4


@pytest.mark.parametrize(("name", "mfu"), [("10b-125k", 0.126), ("10b-50k-tst", 0.130)])
def test_published_hours_follow_from_the_mfu_that_they_imply(name, mfu):
    run, (path, _) = published().runs[name], RUNS[name]
    plan = plan_of(EXAMPLES / path, wishes=Wishes(hardware=Hardware(gpu="b200", mfu=mfu)))
    arm = arms(plan)["TST" if run.bag_size > 1 else "ordinary run"]
    assert arm["gpu hours"] == pytest.approx(run.hours, rel=0.03)
    assert arm["days"] == pytest.approx(arm["gpu hours"] / 64 / 24)
    assert arm["dollars"] == pytest.approx(arm["gpu hours"] * 5.88)


@pytest.mark.parametrize("anchor", [each for each in published().anchors if each.kind == "dense"])
def test_mfu_of_a_dense_anchor_is_what_its_hours_imply(plans, anchor):
    name = next(n for n, run in published().runs.items() if run.parameters == anchor.active)
    run = published().runs[name]
    flops = arms(plans[name])["ordinary run"]["flops"]
    assert flops / (run.hours * 3600 * 2250e12) == pytest.approx(anchor.mfu, abs=0.001)


def test_10b_baseline_has_two_and_a_half_times_the_steps():
    plan = plan_of(TEN_B / "tst.yaml", baseline=TEN_B / "baseline.yaml")
    found = arms(plan)
    ratio = found["ordinary run"]["steps"] / found["TST"]["steps"]
    assert ratio == pytest.approx(2.5, abs=0.005)
    assert found["ordinary run"]["flops"] / found["TST"]["flops"] == pytest.approx(ratio)
    gap = plan["views"]["baseline gap nats"]
    assert gap["low"] < 0 < gap["high"]


def test_without_superposition_the_best_schedule_is_set_beside_it(plans):
    plan = plans["10b-125k"]
    assert arms(plan)["TST"]["steps"] == 125_000
    assert arms(plan)["TST"]["raw tokens"] > arms(plan)["ordinary run"]["raw tokens"]
    assert any("has no superposition" in note for note in plan["notes"])


def test_output_only_reads_what_an_ordinary_run_reads():
    found = arms(plan_of(TEN_B / "ablations" / "output-only.yaml"))
    assert found["TST"]["raw tokens"] == found["ordinary run"]["raw tokens"]
    assert (
        found["TST"]["loader bytes per second"] == found["ordinary run"]["loader bytes per second"]
    )


def test_loaders_read_sixteen_times_as_much_in_superposition(plans):
    found = arms(plans["10b-50k-tst"])
    rates = [found[name]["loader bytes per second"] for name in ("TST", "ordinary run")]
    assert rates[0] == pytest.approx(16 * rates[1])
    # 64 GPUs at 12.6% of 2,250 TFLOP/s, int32 tokens.
    assert rates[1] == pytest.approx(64 * 0.126 * 2250e12 / 11.97e9 * 4, rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "num_bytes"),
    [
        ((), 2 + 12),
        (("profile=cpu",), 4 + 8),
        (("no-save-optim=true",), 2),
        (
            (
                *("use-precision-aware-optimizer=true", "main-params-dtype=fp16"),
                *("exp-avg-dtype=bf16", "exp-avg-sq-dtype=fp8"),
            ),
            2 + 2 + 2 + 1,
        ),
    ],
)
def test_checkpoint_has_weights_and_what_the_optimizer_saves(overrides, num_bytes):
    plan = plan_of(EXAMPLES / "llama-270m" / "tst.yaml", *overrides)
    assert plan["cost"]["checkpoint bytes"] == num_bytes * plan["cost"]["parameters"]


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "kind"), [(3e11, "data-bound"), (1e13, "compute-bound")])
def test_verdict_of_a_shop_that_wants_10b_at_1t_positions(tokens, kind):
    plan = plan_of(TEN_B / "baseline.yaml", wishes=Wishes(tokens_available=tokens))
    assert plan["verdict"]["kind"] == kind
    assert (plan["verdict"]["recommended"] is None) == (kind == "data-bound")
    assert 1.05e12 < plan["verdict"]["data-bound below tokens"] < 1.3e12
    assert arms(plan)["ordinary run"]["epochs"] == pytest.approx(1.0486e12 / tokens, rel=1e-3)


def test_epochs_that_a_start_refuses_are_noted():
    notes = plan_of(TEN_B / "baseline.yaml", wishes=Wishes(tokens_available=1.2e12))["notes"]
    assert [note.split(":")[0] for note in notes if "tst.max-epochs = 1" in note] == ["TST"]
    more = plan_of(
        *(TEN_B / "baseline.yaml", "tst.max-epochs=2"), wishes=Wishes(tokens_available=1.2e12)
    )
    assert not any("max-epochs" in note for note in more["notes"])


# --- any recipe -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(EXAMPLES))
)
def test_every_shipped_recipe_has_a_plan(recipe):
    plan = plan_of(recipe, wishes=Wishes(budget=Budget(), tokens_available=1e12))
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan
    assert {"cost", "views", "text", "advice", "verdict", "assumptions"} <= set(plan)
    found = arms(plan)
    assert found["TST"]["flops"] == found["ordinary run"]["flops"] > 0


@pytest.mark.parametrize(
    ("override", "note"),
    [
        ("num-layer=2", "num-layer: there is no such key. Did you mean num-layers?"),
        ("tst.bagsize=4", "tst.bagsize: there is no such key. Did you mean tst.bag-size?"),
        ("key-of-tomorrow=1", "key-of-tomorrow: there is no such key."),
    ],
)
def test_unknown_key_is_a_note_and_changes_nothing(override, note):
    recipe = EXAMPLES / "llama-270m" / "tst.yaml"
    plan, without = plan_of(recipe, override), plan_of(recipe)
    assert [each for each in plan["notes"] if each.startswith(note)] == plan["notes"]
    assert {**plan, "notes": []} == {**without, "notes": []}


@pytest.mark.parametrize(
    ("overrides", "problems"),
    [
        (("train-iters=null",), ["train-iters: is missing, and it decides what a run costs"]),
        (("hidden-size=null", "vocab-size=null"), ["hidden-size: is missing", "vocab-size: is"]),
        (("train-iters=many",), ["train-iters: "]),
        (("tst.superposition-fraction=1.5",), ["tst: 1.5 is a share of steps"]),
        (("tst.bag-size=many",), ["tst.bag-size: 'many' is not a whole number"]),
        (("num-layers=0",), ["Megatron refuses the recipe"]),
    ],
)
def test_recipe_without_a_model_or_a_schedule_is_refused(overrides, problems):
    with pytest.raises(RecipeError) as caught:
        plan_of(EXAMPLES / "llama-270m" / "tst.yaml", *overrides)
    for said, wanted in zip(caught.value.problems, problems, strict=True):
        assert said.startswith(wanted)


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (EXAMPLES / "llama-600m" / "baseline.yaml", "has 560,886,720 parameters"),
        (EXAMPLES / "llama-270m" / "tst.yaml", "has superposition"),
    ],
)
def test_baseline_of_another_model_or_with_superposition_is_refused(baseline, message):
    with pytest.raises(ValueError, match=f"--baseline: .*{message}"):
        plan_of(EXAMPLES / "llama-270m" / "tst.yaml", baseline=baseline)


# --- the command ----------------------------------------------------------------------------------


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tst_megatron", "plan", *map(str, arguments)],
        env=tiny.environment(COLUMNS="80"),
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_command_prints_tables_of_80_columns():
    options = ["--tokens-available", "300B", "--gpus", "512", "--advise", "--max-days", "3"]
    ended = command(TEN_B / "tst.yaml", *options)
    assert ended.returncode == 0, ended.stderr
    assert max(map(len, ended.stdout.splitlines())) <= 80
    for words in (
        *("Data-bound: do not use TST", "10,489,144,832", "days on 512 GPUs", "EXTRAPOLATED"),
        *("equal FLOPs", "equal loss", "equal data", "stops paying", "Assumed", "[1] Peng"),
    ):
        assert words in ended.stdout, words


def test_command_prints_json_alone(tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**tiny.TINY, "tst": {"bag-size": 4}}))
    ended = command(tmp_path / "r.yaml", "--json", "--price", "2")
    plan = json.loads(ended.stdout)
    assert plan["cost"]["dollars per gpu hour"] == 2
    assert plan["verdict"]["kind"] == "too short"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "v100"], "--gpu: v100 is none of"),
        (["--mfu", "13"], "--mfu: 13 is no fraction"),
        (["--tokens-available", "lots"], "--tokens-available: lots is no number of tokens"),
        (["--max-days", "3"], "--max-days: is a limit for --advise"),
        (["--gpu", "gb200"], "--price: no price"),
        (["--baseline", "absent.yaml"], "absent.yaml: there is no such recipe"),
        (["num-layers=0"], "Megatron refuses the recipe"),
    ],
)
def test_bad_input_gives_one_error_and_status_2(options, message):
    ended = command(EXAMPLES / "llama-270m" / "tst.yaml", *options)
    assert ended.returncode == 2
    assert message in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr
