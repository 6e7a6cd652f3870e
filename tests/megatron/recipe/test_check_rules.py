"""One test for each rule of ``check``: the recipe that breaks it, and what is said."""

import json
import shutil

import pytest

from tst_megatron.megatron.cpu import host

host.install()

from checks import check, problems

from tst_megatron.data.manifest import load_manifest

TST = {"bag-size": 4, "superposition-fraction": 0.4}


def only_problem(text, tst=None, **changes):
    (problem,) = problems(text, tst, **changes)
    return problem


# --- combinations --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"mtp_num_layers": 1}, "mtp-num-layers", "means nothing for a bag"),
        ({"rampup_batch_size": [2, 2, 9]}, "rampup-batch-size", "constant global-batch-size"),
        ({"step_batch_size_schedule": "0:8"}, "rampup-batch-size", "step-batch-size-schedule"),
        ({"cuda_graph_impl": "full_iteration"}, "cuda-graph-impl", "Use local"),
        ({"context_parallel_size": 2}, "context-parallel-size", "which the CPU host"),
        ({"hybrid_context_parallel": True}, "hybrid-context-parallel", "packed sequences"),
        ({"iterations_to_skip": [3]}, "iterations-to-skip", "count of raw tokens"),
        (
            {"result_rejected_tracker_filename": "rejected.txt"},
            "iterations-to-skip",
            "result-rejected-tracker-filename",
        ),
        ({"fp16": True}, "fp16", "Use bf16, as the paper and every GPU profile do"),
        ({"fp16": True, "initial_loss_scale": 65536}, "fp16", "passes over every step"),
        ({"fp16": True, "fp16_lm_cross_entropy": True}, "fp16", "lag behind the steps"),
        ({"loss_scale": 4096}, "loss-scale", "passed over without a word"),
        ({"bf16": True, "loss_scale": 1}, "loss-scale", "Remove it"),
        ({"decrease_batch_size_if_needed": True}, "decrease-batch-size-if-needed", "one size"),
        ({"freeze_all_layers": True}, "freeze-all-layers", "no step would change a weight"),
        ({"phase_transition_iterations": "9"}, "phase-transition-iterations", "ends the job"),
        ({"train_samples": 100}, "train-samples", "Use train-iters"),
        (
            {"overlap_moe_expert_parallel_comm": True},
            "overlap-moe-expert-parallel-comm",
            "the CPU host has none",
        ),
        ({"full_validation": True}, "full-validation", "Remove it"),
        ({"multiple_validation_sets": True}, "full-validation", "multiple-validation-sets"),
        ({"reset_position_ids": True}, "reset-position-ids", "latent positions"),
        ({"reset_attention_mask": True}, "reset-position-ids", "reset-attention-mask"),
        (
            {"dataloader_inter_document_masking": True},
            "reset-position-ids",
            "dataloader-inter-document-masking",
        ),
        ({"dataloader_type": "cyclic"}, "dataloader-type", "read in order"),
        ({"hybrid_layer_pattern": "M*"}, "hybrid-layer-pattern", "only GPT models"),
        ({"sft": True}, "sft", "pre-training tool"),
        ({"ckpt_format": "torch"}, "ckpt-format", "proven whole"),
        ({"non_persistent_save_interval": 5}, "non-persistent-save-interval", "save-interval"),
        ({"no_load_optim": True}, "no-load-optim", "would not be exact"),
        ({"no_load_rng": True}, "no-load-optim", "no-load-rng"),
        ({"no_save_optim": True}, "no-load-optim", "no-save-optim"),
        ({"no_save_rng": True}, "no-load-optim", "no-save-rng"),
        ({"use_checkpoint_args": True}, "use-checkpoint-args", "the recipe says"),
        ({"fim_data": True}, "sft", "fim-data"),
        ({"perform_rl_step": True}, "sft", "perform-rl-step"),
        ({"hidden_dropout": 0.1}, "hidden-dropout", "would not be exact"),
        ({"attention_dropout": 0.1}, "hidden-dropout", "attention-dropout"),
        ({"rerun_mode": "report_stats"}, "rerun-mode", "Use validate_results or disabled"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_combination_that_cannot_be_is_refused_with_the_reason(text, changes, key, said):
    problem = only_problem(text, TST, **changes)
    assert problem.startswith(key)
    assert said in problem


def test_what_is_refused_with_bags_alone_is_let_through_without(text):
    (warning,) = check(text, mtp_num_layers=1).warnings
    assert warning.startswith("export will refuse this model")
    assert check(text, TST, dataloader_type="single", cuda_graph_impl="none").warnings == ()


def test_dropout_is_refused_on_the_cpu_host_alone(text):
    assert check(text, TST, profile=None, hidden_dropout=0.1).schedule.num_steps == 20


# --- keys that are decided elsewhere -------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "save",
            "here",
            "the run folder decides where a run is kept. Remove the key and use --run-folder",
        ),
        (
            "load",
            "here",
            "the run folder decides where a run is kept. Remove the key and use --run-folder",
        ),
        (
            "tensorboard-dir",
            "here",
            "the run folder decides where a run is kept. Remove the key and use --run-folder",
        ),
        ("data-path", ["a"], "the text of a run is named by `data:`. Remove the key"),
        ("train-data-path", ["a"], "the text of a run is named by `data:`. Remove the key"),
        ("data-args-path", "a", "the text of a run is named by `data:`. Remove the key"),
        ("mock-data", True, "the text of a run is named by `data:`. Remove the key"),
        ("split", "99,1", "the text of a run is named by `data:`. Remove the key"),
        ("tokenizer-type", "NullTokenizer", "comes with the prepared data. Remove the key"),
        ("tokenizer-model", "a", "comes with the prepared data. Remove the key"),
    ],
)
def test_key_that_is_decided_elsewhere_is_refused(text, key, value, said):
    problem = only_problem(text, **{key: value})
    assert problem.startswith(f"{key}: ")
    assert problem.endswith(said)


# --- parallel sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["tensor", "pipeline", "expert"])
@pytest.mark.parametrize("number", [0, -2])
def test_parallel_size_below_1_is_refused(text, size, number):
    problem = only_problem(text, **{f"{size}_model_parallel_size": number})
    assert problem == f"{size}-model-parallel-size: {number} is below 1"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (
            {"tensor_model_parallel_size": 4, "sequence_parallel": True},
            ["tensor-model-parallel-size: 4 does not divide num-query-groups 2"],
        ),
        (
            {
                "tensor_model_parallel_size": 3,
                "sequence_parallel": True,
                "group_query_attention": False,
                "num_query_groups": None,
            },
            [
                f"tensor-model-parallel-size: 3 does not divide {key}"
                for key in ("seq-length 32", "moe-ffn-hidden-size 64", "num-attention-heads 4")
            ],
        ),
        (
            {"tensor_model_parallel_size": 2},
            [
                "sequence-parallel: Megatron trains experts beside tensor-model-parallel-size 2 "
                "with it alone. Set it to true"
            ],
        ),
        (
            {"expert_tensor_parallel_size": 2, "moe_ffn_hidden_size": 63, "world_size": 2},
            ["expert-tensor-parallel-size: 2 does not divide moe-ffn-hidden-size 63"],
        ),
        (
            {
                "num_layers": 4,
                "pipeline_model_parallel_size": 2,
                "num_layers_per_virtual_pipeline_stage": 1,
                "global_batch_size": 6,
            },
            [
                "global-batch-size: 3 micro-batches for each data-parallel rank cannot be "
                "interleaved over 2 pipeline stages in groups of 2. Use a multiple of 2 "
                "micro-batches, and leave microbatch-group-size-per-virtual-pipeline-stage out"
            ],
        ),
        (
            {"pipeline_model_parallel_size": 4},
            ["pipeline-model-parallel-size: 4 does not divide num-layers 2"],
        ),
        (
            {"expert_model_parallel_size": 8, "global_batch_size": 16},
            ["expert-model-parallel-size: 8 does not divide num-experts 4"],
        ),
        (
            {"expert_model_parallel_size": 2, "num_experts": None},
            ["expert-model-parallel-size: 2 without num-experts"],
        ),
        (
            {"expert_model_parallel_size": 4, "world_size": 2},
            [
                "expert-model-parallel-size: 2 ranks do not divide into expert 4 x expert-tensor 1 "
                "x pipeline 1 = 4. Use a multiple of 4 ranks"
            ],
        ),
        (
            {"world_size": 3},
            [
                "global-batch-size: 8 is not a multiple of micro-batch-size 2 x 3 data-parallel "
                "ranks = 6"
            ],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_parallel_size_that_does_not_divide_is_refused(text, changes, wanted):
    assert problems(text, **changes) == wanted


def test_ranks_that_do_not_divide_into_the_model_are_refused(text):
    sizes = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    sizes |= {"sequence_parallel": True}
    model, experts = problems(text, world_size=5, **sizes)
    assert "5 ranks do not divide into tensor 2 x pipeline 2 x context 1 = 4" in model
    assert "Use a multiple of 4 ranks" in model
    assert "5 ranks do not divide into expert 1 x expert-tensor 2 x pipeline 2 = 4" in experts


# --- schedule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tst", "wanted"),
    [
        ({**TST, "bag-size": 0}, "tst: bag size 0: a bag holds 1 token or more"),
        ({**TST, "bag-size": -4}, "tst: bag size -4: a bag holds 1 token or more"),
        (
            {"bag-size": 1, "superposition-fraction": 1.5},
            "tst.superposition-fraction: 1.5 is a share of steps, 0-1",
        ),
        (
            {"bag-size": 1, "superposition-fraction": -0.5},
            "tst.superposition-fraction: -0.5 is a share of steps, 0-1",
        ),
        (
            {**TST, "stream-unit-bags": 6},
            "tst.stream-unit-bags: bag size 4 does not divide the stream unit of 6 bags. Set "
            "tst.stream-unit-bags to a multiple of every bag size",
        ),
        (
            {**TST, "superposition-steps": 5},
            "tst: superposition-fraction, superposition-steps and schedule say the same thing. "
            "Give one of them",
        ),
        ({"schedule": []}, "tst: the schedule is empty. End it with bag size 1"),
        (
            {"bag-size": 4, "superposition-steps": 20},
            "tst: bag size 1 gets no step: 20 of 20 steps are taken by the phases before the last. "
            "Give every phase at least one step",
        ),
    ],
)
def test_schedule_that_is_none_is_refused(text, tst, wanted):
    assert only_problem(text, tst) == wanted


@pytest.mark.parametrize(
    ("tst", "key"),
    [
        ({"bag-size": 0}, "tst"),  # no phase has it, so nothing else would look at it
        ({"bag-size": 4}, "tst"),  # neither share nor steps: superposition would silently be off
        ({**TST, "superposition-steps": 0}, "tst"),  # two that disagree
        ({"bag-size": 8, "schedule": [[4, 0.5], [1, 0.5]]}, "tst"),
        ({**TST, "stream-unit-bags": 0}, "tst.stream-unit-bags"),
        ({**TST, "max-epochs": 0}, "tst.max-epochs"),
        ({**TST, "stream-unit-bags": -4}, "tst.stream-unit-bags"),
        ({**TST, "keep-last-checkpoints": 0}, "tst.keep-last-checkpoints: 0 is below 1"),
    ],
)
def test_tst_value_that_would_be_passed_over_is_refused(text, tst, key):
    assert only_problem(text, tst).startswith(key)


def test_log_interval_that_would_mix_two_losses_is_refused(text):
    assert only_problem(text, TST, log_interval=3) == (
        "log-interval: 3 does not divide step 8, where the bag size changes: a line of "
        "Megatron's log would mix two losses. Use 1"
    )
    assert check(text, TST, log_interval=4).warnings == ()
    assert check(text, log_interval=3).warnings == ()


@pytest.mark.parametrize(
    "key", ["seq-length", "train-iters", "global-batch-size", "micro-batch-size", "log-interval"]
)
@pytest.mark.parametrize("number", [0, -8])
def test_size_below_1_is_named_by_its_key(text, key, number):
    found = problems(text, TST, **{key: number})
    assert any(problem.startswith(f"{key}: {number}") for problem in found)


# --- data ----------------------------------------------------------------------------------------


def test_data_block_is_needed(text):
    missing = "data: is missing. Name a folder made by `tst-megatron data prepare`"
    assert only_problem(text, data={}) == missing


@pytest.fixture(scope="module")
def other_text(text, tmp_path_factory):
    """Another prepared folder with the same tokenizer, and one with another tokenizer."""
    from tst_megatron.data.prepare.prepare import prepare
    from tst_megatron.data.tokenizer.train import train_sentencepiece

    folder = tmp_path_factory.mktemp("other")
    corpus = text.parent / "corpus.jsonl"
    prepare([corpus], text / "tokenizer.model", folder / "same", held_out_fraction=0.2, workers=1)
    texts = (json.loads(line)["text"] for line in corpus.read_text().splitlines())
    train_sentencepiece(texts, folder / "other.model", vocab_size=400)
    fractions = {"held_out_fraction": 0.1, "test_fraction": 0.1}
    prepare([corpus], folder / "other.model", folder / "different", workers=1, **fractions)
    return folder


def test_several_corpora_share_out_the_run_by_weight(text, other_text):
    checked = check(text, TST, data={str(text): 3.0, str(other_text / "same"): 1.0})
    names = [corpus.name for corpus in checked.stream.corpora]
    wanted = dict(zip(names, checked.stream.raw_tokens_of_corpora(), strict=True))
    assert wanted == {str(text): 8448, str(other_text / "same"): 2816}
    for name, line in zip(names, checked.plan()[-3:-1], strict=True):
        assert line.startswith(f"{name}: ")


def test_text_that_another_corpus_holds_out_is_warned_of(text, other_text, tmp_path):
    with_others = check(text, TST, data={str(text): 1.0, str(other_text / "same"): 1.0})
    (warning,) = [each for each in with_others.warnings if each.startswith("data: ")]
    assert "1 of their files in common (corpus.jsonl) and hold out other shares" in warning
    # The same documents are held out of both.
    shutil.copytree(text, tmp_path / "copy")
    copied = check(text, TST, data={str(text): 1.0, str(tmp_path / "copy"): 1.0})
    assert not [each for each in copied.warnings if each.startswith("data: ")]


def test_corpora_that_do_not_fit_together_are_all_named(text, other_text):
    folders = {str(text): 1.0, str(other_text / "different"): 1.0, f"{text}/../text": 1.0}
    found = "\n".join(problems(text, TST, data=folders))
    assert "was prepared with another tokenizer than" in found
    assert "has a test split and the other has none" in found


def test_folder_that_is_named_twice_is_refused(text):
    assert "is named twice" in only_problem(text, TST, data={str(text): 1.0, f"{text}/.": 2.0})
    roundabout = {str(text): 1.0, f"{text}/../{text.name}": 2.0}
    assert "is the same folder as" in only_problem(text, TST, data=roundabout)


def test_corpus_that_is_too_small_for_its_weight_is_named_alone(text, other_text):
    data = {str(text): 0.01, str(other_text / "same"): 1000.0}
    tokens = load_manifest(other_text / "same").train.tokens
    problem = only_problem(text, train_iters=tokens // 256 + 9, data=data)
    assert f"raw tokens of {other_text / 'same'}, which holds" in problem


def test_folder_that_is_not_prepared_is_named(text, tmp_path):
    problem = only_problem(text, data={str(tmp_path): 1.0})
    assert problem.startswith(f"data: {tmp_path / 'manifest.json'}: no such manifest.")
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 0}))
    assert "not a manifest of prepared data" in only_problem(text, data={str(tmp_path): 1.0})


def test_vocabulary_smaller_than_the_tokenizers_is_refused(text):
    assert only_problem(text, vocab_size=100) == (
        "vocab-size: 100 is smaller than the tokenizer's 512"
    )
    assert check(text, vocab_size=640).warnings == ()


def test_run_longer_than_the_text_is_refused_with_its_epochs(text):
    manifest = load_manifest(text)
    held = (manifest.train.tokens - 1) // 32 * 32
    steps = held // (8 * 32) + 1
    problem = only_problem(text, train_iters=steps)
    assert problem == (
        f"data: the run reads {steps * 256:,} raw tokens of {text}, which holds {held:,} in whole "
        f"units: {steps * 256 / held:.2f} epochs, and tst.max-epochs is 1. Use more text or fewer "
        "steps, or allow more epochs"
    )
    assert check(text, train_iters=steps - 1).schedule.num_steps == steps - 1
    assert check(text, {"max-epochs": 2}, train_iters=steps).stream.epochs_of(0) == 2


def test_evaluation_longer_than_the_held_out_text_is_refused(text):
    held_out = (load_manifest(text).validation.tokens - 1) // 32
    most = held_out // 8
    problem, _, enough = only_problem(text, eval_iters=most + 1).partition(" (")
    assert problem == (
        f"eval-iters: an evaluation reads {(most + 1) * 8:,} sequences of the validation text "
        f"of {text}, which has {held_out:,}. Lower eval-iters, or prepare with a larger held-out "
        "fraction"
    )
    assert enough.startswith("--held-out-fraction 0.")
    assert check(text, eval_iters=most).warnings == ()
    assert only_problem(text, eval_iters=most, eval_global_batch_size=16).startswith("eval-iters")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lr_warmup_iters": 20}, "lr-warmup-iters: 20 of the schedule's 20 steps leave none"),
        ({"lr_wsd_decay_iters": 30}, "lr-wsd-decay-iters: 30 of the schedule's 20 steps"),
        (
            {"moe_router_topk": 5},
            "moe-router-topk: 5 of num-experts 4 experts. Use 4 or less",
        ),
        ({"eval_interval": 0}, "eval-interval: 0 is below 1"),
        ({"save_interval": 0}, "save-interval: 0 is below 1"),
        ({"save_retain_interval": -3}, "save-retain-interval: -3 is below 1"),
        ({"eval_iters": -1}, "eval-iters: -1 is below 0"),
        ({"tensorboard_log_interval": 10}, "tensorboard-log-interval: each step is recorded"),
        ({"finetune": True}, "finetune: the run folder decides"),
    ],
)
def test_what_megatron_would_find_only_after_its_start_is_refused(text, changes, problem):
    assert only_problem(text, **changes).startswith(problem)
