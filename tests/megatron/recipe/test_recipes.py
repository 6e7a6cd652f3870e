"""The recipes of the paper's models: whole on many GPUs, in small on the CPU, arm against arm."""

import json
import math
from pathlib import Path

import pytest
import tiny

from tst_megatron.megatron.cpu import host

host.install()

from tst_megatron.data.manifest import FILE_NAME
from tst_megatron.megatron import arguments
from tst_megatron.recipe.check.plain import with_profile
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.parameters import build_on_meta, model_arguments
from tst_megatron.recipe.profiles import GPU_PROFILES
from tst_megatron.recipe.recipe import load_recipe
from tst_megatron.training.check.check_recipe import check_recipe

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
FLAGS = Flags(arguments.argument_parser())
NUM_GPUS = {"llama-270m": 8, "llama-600m": 8, "llama-3b": 64, "qwen3-10b-a1b": 64}
MODELS = tuple(NUM_GPUS)
LLAMAS = MODELS[:3]
ARMS = [(model, arm) for model in MODELS for arm in ("baseline", "tst")]
MOE = "qwen3-10b-a1b"


def path_of(model, arm):
    return EXAMPLES / model / f"{arm}.yaml"


pytestmark = pytest.mark.usefixtures("outside_a_job")


# --- whole ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(text, tmp_path_factory):
    """A folder in which the recipes' corpora are, as far as their manifests say: two trillion."""
    manifest = json.loads((text / FILE_NAME).read_text())
    for name, tokens in (("train", 10**12), ("validation", 10**9)):
        manifest["splits"][name]["tokens"] = tokens
    folder = tmp_path_factory.mktemp("prepared")
    for model, arm in ARMS:
        recipe = load_recipe(path_of(model, arm))
        manifest["tokenizer"]["vocab_size"] = recipe.megatron["vocab-size"]
        for corpus in recipe.data:
            (folder / corpus).mkdir(parents=True, exist_ok=True)
            (folder / corpus / FILE_NAME).write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def in_prepared(prepared, monkeypatch):
    monkeypatch.chdir(prepared)


@pytest.mark.parametrize(("model", "arm"), ARMS)
@pytest.mark.parametrize("profile", GPU_PROFILES)
def test_recipe_passes_for_its_gpus_in_every_profile(in_prepared, model, arm, profile):
    recipe = load_recipe(path_of(model, arm), [f"profile={profile}"])
    # The arms and the dense models are built alike, and each takes a second or more.
    is_rehearsed = arm == "tst" and model in (MOE, "llama-270m")
    checked = check_recipe(recipe, world_size=NUM_GPUS[model], is_rehearsed=is_rehearsed)
    assert not [note for note in checked.notes if note.startswith("not known")]
    assert checked.warnings == ()
    assert checked.world_size == NUM_GPUS[model]
    without_apex = load_recipe(
        path_of(model, arm), [f"profile={profile}", "gradient-accumulation-fusion=false"]
    )
    assert check_recipe(without_apex, world_size=NUM_GPUS[model]).warnings == ()


@pytest.mark.parametrize(
    ("model", "arm", "num_steps", "switch_step", "raw_tokens"),
    [
        *((model, "baseline", 20_000, 0, 20_000 * 2**21) for model in LLAMAS),
        *((model, "tst", 20_000, 6_000, (6_000 * 6 + 14_000) * 2**21) for model in LLAMAS),
        (MOE, "baseline", 125_000, 0, 125_000 * 2**23),
        (MOE, "tst", 49_983, 12_483, (12_483 * 16 + 37_500) * 2**23),
    ],
)
def test_steps_and_tokens_are_the_papers(
    in_prepared, model, arm, num_steps, switch_step, raw_tokens
):
    schedule = check_recipe(load_recipe(path_of(model, arm))).schedule
    assert (schedule.num_steps, schedule.switch_step) == (num_steps, switch_step)
    assert schedule.latent_positions_before(1) == (8_388_608 if model == MOE else 2_097_152)
    assert schedule.raw_tokens_before(num_steps) == raw_tokens
    published = {
        LLAMAS: {"baseline": 42e9, "tst": 105e9},
        (MOE,): {"baseline": 1.05e12, "tst": 2e12},
    }
    (tokens,) = (arms[arm] for models, arms in published.items() if model in models)
    assert raw_tokens == pytest.approx(tokens, rel=0.01)


def test_two_corpora_of_the_moe_share_the_run_in_halves(in_prepared):
    checked = check_recipe(load_recipe(path_of(MOE, "tst")))
    assert [corpus.weight for corpus in checked.corpora] == [0.5, 0.5]
    assert all(" epochs over " in line for line in checked.stream.corpus_lines())


@pytest.mark.parametrize(("model", "arm"), ARMS)
def test_recipe_builds_at_full_shape_with_megatrons_layers(model, arm):
    recipe = load_recipe(path_of(model, arm))
    shape = recipe.megatron
    flags, problems = FLAGS.convert(model_arguments(recipe, FLAGS))
    assert problems == []
    args = arguments.validate_arguments(
        [*flags, "--max-position-embeddings", str(shape["seq-length"])], world_size=1
    )
    built = build_on_meta(args)
    assert len(built.decoder.layers) == shape["num-layers"]
    layer = built.decoder.layers[-1]
    heads = shape["num-attention-heads"] + 2 * shape["num-query-groups"]
    assert layer.self_attention.linear_qkv.weight.shape == (
        heads * shape["kv-channels"],
        shape["hidden-size"],
    )
    assert layer.self_attention.linear_qkv.bias is None
    assert hasattr(layer.self_attention.q_layernorm, "weight") is shape["qk-layernorm"]
    assert layer.input_layernorm.eps == shape["norm-epsilon"]
    assert built.output_layer.weight is not built.embedding.word_embeddings.weight
    assert built.output_layer.weight.shape == (shape["vocab-size"], shape["hidden-size"])
    if model == MOE:
        assert len(layer.mlp.experts.local_experts) == layer.mlp.router.weight.shape[0] == 128
        first = layer.mlp.experts.local_experts[0].linear_fc1
        assert first.weight.shape == (2 * shape["moe-ffn-hidden-size"], shape["hidden-size"])
    else:
        wide = (2 * shape["ffn-hidden-size"], shape["hidden-size"])
        assert layer.mlp.linear_fc1.weight.shape == wide


# --- arm against arm ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_arms_of_a_pair_differ_in_what_they_should_alone(model):
    baseline, tst = (load_recipe(path_of(model, arm)).resolved() for arm in ("baseline", "tst"))
    differing = {key for key in baseline | tst if baseline.get(key) != tst.get(key)}
    # At 10B the paper compares runs of equal loss; everywhere else runs of equal steps.
    assert differing == ({"tst", "train-iters"} if model == MOE else {"tst"})
    of_tst = {key for key in tst["tst"] if baseline["tst"][key] != tst["tst"][key]}
    amount = "superposition-steps" if model == MOE else "superposition-fraction"
    assert of_tst == {"bag-size", amount}
    # One permutation of the text in both arms; written out, not the default of one of them.
    unit = tst["tst"]["bag-size"]
    assert baseline["tst"]["stream-unit-bags"] == tst["tst"]["stream-unit-bags"] == unit
    assert baseline["tst"]["bag-size"] == 1


# --- in small -------------------------------------------------------------------------------------

SMALL = {
    "num-layers": 2,
    "hidden-size": 64,
    "num-attention-heads": 4,
    "num-query-groups": 2,
    "kv-channels": 16,
    "ffn-hidden-size": 96,
    "vocab-size": tiny.VOCABULARY,
    "seq-length": 32,
    "micro-batch-size": 2,
    "global-batch-size": 8,
    "train-iters": 7,
    "lr-warmup-iters": 1,
    "lr-wsd-decay-iters": 2,
    "eval-interval": 7,
    "eval-iters": 1,
    "save-interval": 7,
}
"""The shape and the lengths. Everything else of a recipe is trained with as it is."""

SMALL_MOE = {
    "num-experts": 8,
    "moe-router-topk": 2,
    "moe-ffn-hidden-size": 32,
    "expert-model-parallel-size": 2,
    "tst.superposition-steps": 2,
}

OF_THE_HOST = {
    "attention-backend",
    "bias-dropout-fusion",
    "bias-swiglu-fusion",
    "distributed-backend",
    "masked-softmax-fusion",
    "no-persist-layer-norm",
    "rope-fusion",
    "transformer-impl",
    "use-cpu-initialization",
}
OF_THE_PROFILE = {"bf16", "overlap-grad-reduce", "overlap-param-gather"}


@pytest.mark.parametrize(("model", "arm"), ARMS)
def test_cpu_host_changes_these_keys_of_a_recipe_and_no_other(model, arm):
    on_gpu, on_cpu = (
        with_profile(load_recipe(path_of(model, arm), [f"profile={profile}"]), FLAGS)
        for profile in ("bf16", "cpu")
    )
    changed = {key for key in on_gpu | on_cpu if on_gpu.get(key) != on_cpu.get(key)}
    grouped = {"moe-grouped-gemm"} if model == MOE else set()
    assert changed == OF_THE_HOST | OF_THE_PROFILE | grouped


def overrides(text, small):
    return [
        *(f"{key}={value}" for key, value in small.items()),
        f"data={json.dumps({str(text): 1.0})}",
        "profile=cpu",
    ]


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory):
    """Every superposed recipe and a baseline, two ranks at a time, which are forked."""
    folder = tmp_path_factory.mktemp("recipes")
    pairs = (
        [("llama-270m", "tst"), ("llama-600m", "tst")],
        [("llama-3b", "tst"), ("llama-270m", "baseline")],
        [(MOE, "tst")],
    )
    found = {}
    for pair in pairs:
        started = []
        for model, arm in pair:
            found[model, arm] = run = folder / f"{model}-{arm}"
            small = SMALL | (SMALL_MOE if model == MOE else {})
            arguments = ("train", str(path_of(model, arm)), *overrides(text, small))
            log = run.with_suffix(".log")
            num_ranks = small.get("expert-model-parallel-size", 1)
            arguments = (*arguments, "--run-folder", str(run))
            started.append((tiny.fork_ranks(*arguments, num_ranks=num_ranks, log=log), log))
        for ranks, log in started:
            tiny.wait(ranks, log)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_recipe_trains_through_both_phases_in_small(runs, model):
    run = runs[model, "tst"]
    assert tiny.state(run)["status"] == "finished"
    rows = tiny.metrics(run)
    named = [next(name for name in ("bag loss", "lm loss") if name in row) for row in rows]
    assert named == ["bag loss"] * 2 + ["lm loss"] * 5
    losses = [row[name] for row, name in zip(rows, named, strict=True)]
    # An untrained model knows nothing of 512 pieces.
    assert losses[0] == pytest.approx(math.log(tiny.VOCABULARY), abs=0.2)
    assert all(math.isfinite(loss) for loss in losses)
    (validation,) = tiny.metrics(run, "validation")
    assert 3 < validation["lm loss validation"] < 7


def test_baseline_trains_in_small_and_has_no_bags(runs):
    rows = tiny.metrics(runs["llama-270m", "baseline"])
    assert len(rows) == 7
    assert all("lm loss" in row and "bag loss" not in row for row in rows)


# --- where each value is from ---------------------------------------------------------------------


@pytest.mark.parametrize(("model", "arm"), ARMS)
def test_every_value_says_where_it_is_from(model, arm):
    lines = path_of(model, arm).read_text().splitlines()
    values = [
        line for line in lines if ": " in line and not line.lstrip().startswith(("#", "base:"))
    ]
    assert len(values) >= 2
    for line in values:
        _, _, source = line.partition("  # ")
        assert source.startswith(("paper: ", "card: ", "ours: ")), line
