"""GPU profiles on a machine that has none: what Megatron makes of their flags, field by field."""

import itertools
import tomllib
from pathlib import Path

import pytest
import tiny
import torch

from tst_megatron.megatron.cpu import host

host.install()

from checks import check, problems
from megatron.core import utils
from megatron.core.transformer.enums import CudaGraphModule

from tst_megatron.megatron import arguments, names
from tst_megatron.megatron.cpu import transformer_engine as te
from tst_megatron.megatron.repairs import gpt_config
from tst_megatron.model.gpt import TSTGPTModelConfig
from tst_megatron.recipe import profiles
from tst_megatron.recipe.keys.flags import Flags
from tst_megatron.recipe.profiles import CHAINS, GPU_PROFILES, PROFILES, given_by
from tst_megatron.recipe.rules import packages
from tst_megatron.recipe.rules.defaults import DANGEROUS_DEFAULTS, DANGEROUS_MOE_DEFAULTS
from tst_megatron.recipe.tst_config import TSTConfig

ROOT = Path(__file__).resolve().parents[3]
FLAGS = Flags(arguments.argument_parser())
TST = {"bag-size": 4, "superposition-steps": 8}
NUM_RANKS = 8
OF_A_PROFILE = ("use-distributed-optimizer", "moe-token-dispatcher-type")
OF_EXPERTS = tuple(key for key in tiny.TINY if "moe" in key or key == "num-experts")
KINDS = {
    "dense": {"without": (*OF_EXPERTS, "use-distributed-optimizer")},
    "moe": {
        "without": OF_A_PROFILE,
        "num_experts": 8,
        "expert_model_parallel_size": NUM_RANKS,
    },
}
APEX = {"apex": {}, "no-apex": {"gradient_accumulation_fusion": False}}


def wanted(kind, changes):
    without = [key for key in KINDS[kind]["without"] if key.replace("-", "_") not in changes]
    return {"global_batch_size": 32, **KINDS[kind], **changes, "without": without}


def checked(text, profile, kind="moe", **changes):
    """The tiny recipe without what a profile decides, checked for eight GPUs."""
    return check(text, TST, profile=profile, world_size=NUM_RANKS, **wanted(kind, changes))


def refusals(text, profile, kind="moe", **changes):
    return problems(text, TST, profile=profile, world_size=NUM_RANKS, **wanted(kind, changes))


def configurations(args):
    """Megatron's own: of the model, of data parallelism, of the optimizer."""
    with te.transformer_engine_of_the_job():
        model = TSTGPTModelConfig.from_arguments(args, TSTConfig())
        model.finalize()
        optimizer, _ = names.training.get_megatron_optimizer_config(args)
        return model.transformer, names.training.get_megatron_ddp_config(args), optimizer


# --- the table ------------------------------------------------------------------------------------

PRECISIONS = {
    "bf16": (None, None, False),
    "tuned": (None, None, False),
    "mxfp8": ("e4m3", "mxfp8", True),
    "fp8": ("e4m3", "blockwise", False),
}
"""Format, recipe, and whether parameters are kept and gathered in 8 bits."""


@pytest.mark.parametrize("apex", APEX)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("profile", GPU_PROFILES)
def test_every_field_that_a_profile_decides(text, profile, kind, apex):
    result = checked(text, profile, kind, **APEX[apex])
    assert result.warnings == ()
    model, parallel, optimizer = configurations(result.arguments)
    fp8, recipe, keeps_fp8 = PRECISIONS[profile]
    is_tuned, is_moe = profile != "bf16", kind == "moe"
    has_fusion = is_tuned and apex == "apex"

    assert (model.bf16, model.params_dtype) == (True, torch.bfloat16)
    assert model.transformer_impl == "transformer_engine"
    assert model.fp8 == fp8
    assert fp8 is None or model.fp8_recipe == recipe
    assert model.fp8_param is keeps_fp8
    assert model.gradient_accumulation_fusion is has_fusion
    assert model.cross_entropy_loss_fusion is is_tuned
    assert model.cross_entropy_fusion_impl == "native"
    assert model.moe_grouped_gemm is is_moe
    if is_moe:
        assert model.moe_token_dispatcher_type == ("flex" if is_tuned else "alltoall")
    if is_moe and is_tuned:
        assert model.moe_flex_dispatcher_backend == "hybridep"
        assert model.moe_flex_dispatcher_num_sms == (64 if profile == "mxfp8" else 32)
        assert model.moe_hybridep_num_sms_preprocessing == 32
    assert model.moe_permute_fusion is model.moe_router_fusion is (is_moe and is_tuned)
    assert model.overlap_moe_expert_parallel_comm is (is_moe and is_tuned)
    assert model.delay_wgrad_compute is (is_moe and is_tuned)
    assert model.cuda_graph_impl == ("transformer_engine" if is_tuned else "none")
    assert model.use_te_rng_tracker is is_tuned
    graphed = {
        (False, "dense", "apex"): [],
        (False, "dense", "no-apex"): [],
        (False, "moe", "apex"): [],
        (False, "moe", "no-apex"): [],
        (True, "dense", "apex"): ["attn", "mlp"],
        (True, "dense", "no-apex"): ["attn", "mlp"],
        (True, "moe", "apex"): ["attn", "moe_router", "moe_preprocess"],
        (True, "moe", "no-apex"): ["moe_router", "moe_preprocess"],
    }[is_tuned, kind, apex]
    assert model.cuda_graph_modules == [CudaGraphModule[module] for module in graphed]
    assert (result.arguments.manual_gc, result.arguments.manual_gc_interval) == (
        (True, 100) if is_tuned else (False, 0)
    )

    assert (parallel.overlap_grad_reduce, parallel.overlap_param_gather) == (True, True)
    assert parallel.use_distributed_optimizer is True
    assert parallel.grad_reduce_in_fp32 is True
    assert parallel.check_for_nan_in_grad is True
    assert parallel.fp8_param_gather is keeps_fp8
    assert parallel.reuse_grad_buf_for_mxfp8_param_ag is keeps_fp8

    assert (optimizer.bf16, optimizer.optimizer) == (True, "adam")
    assert optimizer.use_distributed_optimizer is True
    assert optimizer.use_precision_aware_optimizer is False
    assert optimizer.overlap_param_gather is True
    assert optimizer.fp8_recipe == result.arguments.fp8_recipe
    assert optimizer.reuse_grad_buf_for_mxfp8_param_ag is keeps_fp8
    assert optimizer.main_params_dtype == optimizer.exp_avg_dtype == torch.float32


BENCHMARK_ONLY = (
    "moe_router_force_load_balancing",
    "moe_paged_stash",
    "moe_expert_rank_capacity_factor",
    "moe_expert_capacity_factor",
    "moe_mlp_glu_interleave_size",
    "use_transformer_engine_op_fuser",
    "fp8_dot_product_attention",
)


@pytest.mark.parametrize(("profile", "kind"), itertools.product(GPU_PROFILES, KINDS))
def test_no_profile_has_what_is_for_benchmarks_alone(text, profile, kind):
    args = checked(text, profile, kind).arguments
    model, _, _ = configurations(args)
    assert not any(getattr(model, name) for name in BENCHMARK_ONLY)
    assert args.check_for_nan_in_loss_and_grad is True
    assert args.cuda_graph_impl != "full_iteration"


def test_no_profile_sets_what_a_recipe_must_say():
    dangerous = {*DANGEROUS_DEFAULTS, *DANGEROUS_MOE_DEFAULTS}
    assert profiles.keys() & dangerous == frozenset()


@pytest.mark.parametrize("profile", PROFILES)
def test_dense_recipe_gets_no_flag_of_experts(profile):
    assert not [key for key in given_by(profile, {}, FLAGS) if "moe" in key or "wgrad" in key]


# --- each step alone ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field", "value", "left_out"),
    [
        (
            {"moe_token_dispatcher_type": "alltoall"},
            "moe_token_dispatcher_type",
            "alltoall",
            {"moe-flex-dispatcher-backend", "moe-flex-dispatcher-num-sms"}
            | {"moe-hybridep-num-sms-preprocessing"},
        ),
        (
            {"moe_flex_dispatcher_backend": "deepep"},
            "moe_flex_dispatcher_backend",
            "deepep",
            {"moe-flex-dispatcher-num-sms", "moe-hybridep-num-sms-preprocessing"},
        ),
        (
            {"overlap_moe_expert_parallel_comm": False},
            "overlap_moe_expert_parallel_comm",
            False,
            {"delay-wgrad-compute"},
        ),
        ({"cuda_graph_impl": "none"}, "cuda_graph_impl", "none", {"cuda-graph-modules"}),
        ({"overlap_grad_reduce": False}, "overlap_grad_reduce", False, {"overlap-param-gather"}),
        ({"cross_entropy_loss_fusion": False}, "cross_entropy_loss_fusion", False, set()),
        ({"moe_permute_fusion": False}, "moe_permute_fusion", False, set()),
        ({"moe_router_fusion": False}, "moe_router_fusion", False, set()),
        ({"manual_gc": False}, "manual_gc", False, {"manual-gc-interval"}),
        ({"no_manual_gc_eval": True}, "manual_gc", True, set()),
        (
            {"recompute_granularity": "full", "recompute_method": "block"}
            | {"recompute_num_layers": 1},
            "recompute_granularity",
            "full",
            {"overlap-moe-expert-parallel-comm", "delay-wgrad-compute", "cuda-graph-impl"},
        ),
        (
            {"pipeline_model_parallel_size": 2, "expert_model_parallel_size": 4},
            "pipeline_model_parallel_size",
            2,
            {"overlap-moe-expert-parallel-comm", "delay-wgrad-compute"},
        ),
        (
            {"moe_shared_expert_intermediate_size": 64, "gradient_accumulation_fusion": False},
            "overlap_moe_expert_parallel_comm",
            True,
            {"delay-wgrad-compute"},
        ),
        (
            {"moe_shared_expert_intermediate_size": 64, "moe_shared_expert_overlap": True},
            "moe_shared_expert_overlap",
            True,
            {"overlap-moe-expert-parallel-comm", "delay-wgrad-compute"},
        ),
        (
            {"expert_model_parallel_size": 1},
            "moe_token_dispatcher_type",
            "alltoall",
            {"moe-flex-dispatcher-backend", "overlap-moe-expert-parallel-comm"},
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_step_that_is_switched_off_takes_along_what_it_alone_needs(
    text, changes, field, value, left_out
):
    result = checked(text, "tuned", **changes)
    assert getattr(result.arguments, field) == value
    configurations(result.arguments)
    given = given_by("tuned", result.recipe.megatron, FLAGS)
    whole = given_by("tuned", checked(text, "tuned").recipe.megatron, FLAGS)
    assert left_out <= whole.keys()
    assert not left_out & given.keys()


@pytest.mark.parametrize("changes", [{}, {"overlap_moe_expert_parallel_comm": False}])
def test_attention_is_graphed_without_apex_where_no_gradient_is_delayed(text, changes):
    args = checked(text, "tuned", gradient_accumulation_fusion=False, **changes).arguments
    assert (CudaGraphModule.attn in args.cuda_graph_modules) is bool(changes)


@pytest.mark.parametrize(
    "spelled", [{"no_gradient_accumulation_fusion": True}, {"gradient_accumulation_fusion": False}]
)
def test_both_spellings_say_that_there_is_no_apex(text, spelled):
    args = checked(text, "tuned", **spelled).arguments
    assert args.gradient_accumulation_fusion is False
    assert CudaGraphModule.attn not in args.cuda_graph_modules


def test_key_that_is_emptied_is_left_to_the_profile(text):
    emptied = {"moe_token_dispatcher_type": None, "overlap_grad_reduce": None}
    args = checked(text, "tuned", **emptied).arguments
    assert (args.moe_token_dispatcher_type, args.overlap_grad_reduce) == ("flex", True)


def test_a_profile_does_not_ask_what_is_installed(text, monkeypatch):
    given = given_by("tuned", tiny.TINY, FLAGS)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: pytest.fail("it was asked"))
    assert given_by("tuned", tiny.TINY, FLAGS) == given


@pytest.mark.parametrize("profile", PROFILES)
def test_recipe_wins_over_every_setting_of_a_profile(profile):
    """Also where the recipe says it by another spelling."""
    for setting in itertools.chain(*CHAINS[profile]):
        assert setting.key not in given_by(profile, {setting.key: setting.value}, FLAGS)
    spelled = {"no-gradient-accumulation-fusion": True}
    assert "gradient-accumulation-fusion" not in given_by(profile, spelled, FLAGS)


def test_every_setting_has_a_reason_and_a_key_of_megatrons():
    for setting in itertools.chain(*itertools.chain(*CHAINS.values())):
        assert len(setting.why) > 10, setting.key
        assert FLAGS.destination(setting.key) is not None, setting.key
    assert set(CHAINS) == set(PROFILES)


def test_cpu_host_lies_over_the_recipe_and_its_profile_under_it(text):
    over = check(text, TST, profile="cpu", without=OF_A_PROFILE, rope_fusion=True).arguments
    assert (over.moe_token_dispatcher_type, over.apply_rope_fusion) == ("alltoall", False)
    under = {"profile": "cpu", "moe_token_dispatcher_type": "allgather"}
    assert check(text, TST, **under).arguments.moe_token_dispatcher_type == "allgather"


# --- combinations that are refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "changes", "said"),
    [
        (
            "mxfp8",
            {"fp8_format": "hybrid"},
            "fp8-format: hybrid with fp8-recipe mxfp8 takes E5M2 for gradients, which diverges "
            "(Megatron-Bridge#638). Use e4m3",
        ),
        (
            "mxfp8",
            {"overlap_param_gather": False},
            "fp8-param-gather: with fp8-recipe mxfp8 and without both overlap-grad-reduce and "
            "overlap-param-gather the second step is NaN (Megatron-LM#2272). Set both to true, or "
            "fp8-param-gather to false",
        ),
        (
            "bf16",
            {"fp8_format": "hybrid"},
            "fp8-recipe: delayed scaling (Megatron's default) keeps its factors as pickles, which "
            "Transformer Engine 2.20 refuses to load, so no run could be resumed. Use blockwise "
            "(Hopper), mxfp8 (Blackwell) or tensorwise; or set "
            "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE=1 here and in the job, and then a checkpoint can "
            "run any code",
        ),
        (
            "tuned",
            {
                "gradient_accumulation_fusion": False,
                "cuda_graph_modules": ["attn", "moe_router", "moe_preprocess"],
            },
            "cuda-graph-modules: attn beside delay-wgrad-compute and overlap-grad-reduce needs "
            "gradient-accumulation-fusion (Apex), or gradients have no fixed address. Remove attn "
            "or delay-wgrad-compute, or set gradient-accumulation-fusion to true",
        ),
        (
            "tuned",
            {"moe_router_force_load_balancing": True},
            "moe-router-force-load-balancing: it routes at random, for benchmarks: the experts "
            "would learn nothing of their own. Remove it",
        ),
        (
            "tuned",
            {"no_check_for_nan_in_loss_and_grad": True},
            "no-check-for-nan-in-loss-and-grad: a NaN would go into the weights and into "
            "checkpoints unseen. Remove it",
        ),
        (
            "tuned",
            {"moe_expert_rank_capacity_factor": 1.5},
            "moe-expert-rank-capacity-factor: HybridEP drops the positions beyond it, which "
            "changes what is trained. Remove it, and moe-paged-stash with it",
        ),
        (
            "tuned",
            {"moe_paged_stash": True},
            "moe-expert-rank-capacity-factor: HybridEP drops the positions beyond it, which "
            "changes what is trained. Remove it, and moe-paged-stash with it",
        ),
        (
            "tuned",
            {"cuda_graph_impl": "full_iteration"},
            "cuda-graph-impl: a full_iteration graph cannot hold the step of both phases. Use "
            "local or transformer_engine",
        ),
        (
            "tuned",
            {"cross_entropy_fusion_impl": "te"},
            "Megatron refuses the recipe: Transformer Engine cross entropy loss fusion is disabled "
            "due to stability issues. Use --cross-entropy-fusion-impl native, or omit "
            "--cross-entropy-loss-fusion.",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_combination_is_refused_with_the_reason(text, profile, changes, said):
    assert refusals(text, profile, **changes) == [said]


def test_without_the_overlap_of_gradients_mxfp8_is_refused_too(text):
    (problem,) = refusals(text, "mxfp8", overlap_grad_reduce=False)
    assert problem.startswith("fp8-param-gather: with fp8-recipe mxfp8 and without both")
    assert checked(text, "mxfp8", overlap_grad_reduce=False, fp8_param_gather=False)


def test_what_a_models_configuration_asserts_is_said_before_the_queue(text):
    """Megatron's arguments are valid, and its configuration of the model is not."""
    changes = {"overlap_moe_expert_parallel_comm": False, "delay_wgrad_compute": True}
    assert refusals(text, "tuned", **changes) == [
        "Megatron refuses the recipe: overlap_moe_expert_parallel_comm must be enabled when "
        "enabling delay_wgrad_compute"
    ]


def test_delayed_scaling_is_there_for_whoever_trusts_the_checkpoints(text, monkeypatch):
    monkeypatch.setenv("NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE", "1")
    assert checked(text, "bf16", fp8_format="hybrid").arguments.fp8_recipe == "delayed"


# --- Transformer Engine of the job ----------------------------------------------------------------


def test_tested_version_is_the_one_that_is_installed_by_the_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extra,) = project["optional-dependencies"]["gpu"]
    assert extra.endswith(f"=={te.TESTED_TRANSFORMER_ENGINE}")


def test_version_and_kernels_are_answered_for_during_a_check_alone(monkeypatch):
    monkeypatch.setattr(te, "package_version", lambda package: None)
    before = [getattr(module, name) for module, name in te._KERNELS]
    real = utils.get_te_version()
    with te.transformer_engine_of_the_job():
        assert str(utils.get_te_version()) == te.TESTED_TRANSFORMER_ENGINE
        assert utils.is_te_min_version("2.20.2") and not utils.is_te_min_version("2.20.3")
        for module, name in te._KERNELS:
            with pytest.raises(RuntimeError, match="which Megatron did not find"):
                getattr(module, name)()
    assert utils.get_te_version() == real
    assert [getattr(module, name) for module, name in te._KERNELS] == before


def test_an_installed_version_that_is_hidden_is_answered_with(monkeypatch):
    monkeypatch.setattr(te, "package_version", {"transformer-engine": "2.14.0+4e0b4ef"}.get)
    with te.transformer_engine_of_the_job():
        assert str(utils.get_te_version()) == "2.14.0+4e0b4ef"


@pytest.mark.parametrize("has_gpu", [True, False])
def test_a_machine_that_could_run_the_job_answers_for_itself(monkeypatch, has_gpu):
    monkeypatch.setattr(host, "has_no_gpu", lambda: not has_gpu)
    monkeypatch.setattr(te, "HAVE_TE", not has_gpu)
    before = utils.get_te_version()
    with te.transformer_engine_of_the_job():
        assert utils.get_te_version() == before


@pytest.mark.parametrize("profile", GPU_PROFILES)
def test_transformer_engine_is_asked_for_where_there_is_a_gpu(text, monkeypatch, profile):
    monkeypatch.setattr(host, "is_needed", lambda: False)
    assert refusals(text, profile) == [
        f"profile: {profile} needs Transformer Engine, which is not installed. Install it (pip "
        "install --no-build-isolation 'transformer-engine[pytorch]'), or use its container"
    ]
    monkeypatch.setattr(packages, "has_transformer_engine", lambda: True)
    assert checked(text, profile).world_size == NUM_RANKS


def test_context_parallelism_of_a_gpu_profile_is_checked_without_a_gpu(text):
    assert checked(text, "bf16", "dense", context_parallel_size=2).world_size == NUM_RANKS


def test_te_rng_tracker_reaches_the_model_which_upstreams_function_forgets(text):
    args = checked(text, "tuned").arguments
    with te.transformer_engine_of_the_job():
        theirs = names.gpt_config_from_args(args)
        # When this fails, `repairs/gpt_config.py` has nothing left to do.
        assert theirs.transformer.use_te_rng_tracker is False
        assert gpt_config.gpt_config_from_args(args).transformer.use_te_rng_tracker is True
