"""Whole recipes checked by Megatron's own parser: all mistakes at once, the plan, the warnings."""

import sys

import pytest
import tiny
import yaml

from tst_megatron.megatron.cpu import host

host.install()

from checks import check, problems

from tst_megatron.cli import app
from tst_megatron.data.manifest import load_manifest
from tst_megatron.megatron import arguments
from tst_megatron.recipe import padding
from tst_megatron.recipe.rules.defaults import DANGEROUS_DEFAULTS, DANGEROUS_MOE_DEFAULTS, NEEDED

TST = {"bag-size": 4, "superposition-fraction": 0.4}

pytestmark = pytest.mark.usefixtures("outside_a_job")


# --- every problem at once -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def five_mistakes(tmp_path_factory):
    """A recipe with five mistakes of five kinds, and what must be said of each."""
    folder = tmp_path_factory.mktemp("wrong")
    recipe = tiny.write_recipe(
        folder / "wrong.yaml",
        folder / "no-text",
        {"bag-size": 0, "superposition-fraction": 0.4},
        num_layer=2,
        adam_beta2="high",
        tensor_model_parallel_size=3,
    )
    return recipe, [
        "num-layer: there is no such key. Did you mean num-layers?",
        "adam-beta2: 'high' is not a number",
        "tst: bag size 0: a bag holds 1 token or more",
        f"data: {folder / 'no-text'}: no such manifest.",
        "tensor-model-parallel-size: 3 does not divide num-attention-heads 4",
    ]


@pytest.mark.parametrize("command", ["check", "train"])
def test_five_mistakes_are_all_named_in_one_run_with_status_2(five_mistakes, tmp_path, command):
    recipe, said = five_mistakes
    more = ("--run-folder", str(tmp_path / "run")) if command == "train" else ()
    printed = tiny.run(command, str(recipe), "--nproc", "3", *more, log=tmp_path / "log", status=2)
    for line in said:
        assert f"  - {line}" in printed
    # The fifth breaks two rules: 3 divides neither the heads nor the query groups.
    assert printed.splitlines()[0] == "8 problems:"
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


def test_problems_of_every_part_come_together(text):
    found = problems(
        text,
        {"bag-size": 4, "superposition-fraction": 0.4, "stream-unit-bags": 6},
        without=("lr",),
        save="x",
        mtp_num_layers=1,
        vocab_size=100,
        eval_iters=10**6,
        log_interval=3,
        world_size=3,
    )
    assert [problem.split(":")[0] for problem in found] == [
        "lr",
        "save",
        "global-batch-size",
        "mtp-num-layers",
        "tst.stream-unit-bags",
        "log-interval",
        "vocab-size",
        "eval-iters",
    ]


@pytest.mark.parametrize("key", NEEDED)
@pytest.mark.parametrize("how", ["absent", "empty"])
def test_needed_key_that_is_missing_is_named(text, key, how):
    changes = {"without": (key,)} if how == "absent" else {key.replace("-", "_"): None}
    assert f"{key}: is missing" in problems(text, TST, **changes)


@pytest.mark.parametrize("error", [AssertionError("heads are odd"), ValueError("heads are odd")])
def test_what_megatron_refuses_is_passed_on(text, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(arguments, "validate_arguments", refuse)
    assert problems(text) == ["Megatron refuses the recipe: heads are odd"]


def test_refusal_without_words_names_at_least_its_kind_and_place(text):
    """An assertion without a message; its line of source is the best there is."""
    (problem,) = problems(text, ckpt_convert_format="torch")
    assert problem.startswith("Megatron refuses the recipe: ")
    assert "ckpt_convert_save" in problem


# --- a recipe that passes ------------------------------------------------------------------------


def test_plan_of_two_phases_tells_steps_tokens_switch_and_epochs(text):
    num_tokens = load_manifest(text).train.tokens
    assert check(text, TST).plan() == [
        "superposition: steps 1-8, bag size 4, 8,192 raw tokens",
        "recovery: steps 9-20, bag size 1, 3,072 raw tokens",
        "the switch comes after step 8",
        "11,264 raw tokens in 5,120 latent positions over the whole run",
        f"{text}: {11264 / num_tokens:.2f} epochs over {num_tokens:,} tokens, of which an epoch "
        f"leaves out {(num_tokens - 4) % 128 + 4}",
        "learning rate: ▁▅██████████████▇▅▄▂ 0.00e+00 at step 1, 1.00e-02 at the switch (step 9), "
        "1.00e-02 when its decay starts (step 16), 2.08e-03 at the last step (20)",
    ]


def test_plan_of_ordinary_training_has_one_phase_and_no_switch(text):
    num_tokens = load_manifest(text).train.tokens
    plan = check(text, seq_length=64, train_iters=30).plan()
    assert plan.pop().startswith("learning rate: ▁▅██")
    assert plan == [
        "training: steps 1-30, bag size 1, 15,360 raw tokens",
        "15,360 raw tokens in 15,360 latent positions over the whole run",
        f"{text}: {15360 / num_tokens:.2f} epochs over {num_tokens:,} tokens, of which an epoch "
        f"leaves out {(num_tokens - 1) % 64 + 1}",
    ]


def test_plan_of_a_schedule_has_a_line_for_each_phase(text):
    plan = check(text, {"schedule": [[8, 0.25], [4, 3], [1, 1.0]]}).plan()
    assert plan[:4] == [
        "superposition: steps 1-5, bag size 8, 10,240 raw tokens",
        "superposition: steps 6-8, bag size 4, 3,072 raw tokens",
        "recovery: steps 9-20, bag size 1, 3,072 raw tokens",
        "the switch comes after step 8",
    ]


def test_flags_say_what_the_recipe_the_host_and_the_data_say(text):
    checked = check(text, TST, rope_fusion=True, exit_duration_in_mins=30)
    args = arguments.argument_parser().parse_args(list(checked.flags))
    assert (args.num_layers, args.lr, args.layernorm_epsilon) == (2, 0.01, 1e-6)
    assert args.transformer_impl == "local"  # the CPU host's
    assert args.apply_rope_fusion is False  # the CPU host's, against the recipe
    assert args.tokenizer_model == str(load_manifest(text).tokenizer_path)
    assert args.max_position_embeddings == 32
    assert args.dataloader_type == "single"
    assert args.create_attention_mask_in_dataloader is False
    assert args.exit_duration_in_mins == 30


def test_what_a_recipe_may_leave_out_is_filled_in(text):
    checked = check(text, TST, without=("vocab-size",))
    args = arguments.argument_parser().parse_args(list(checked.flags))
    assert args.vocab_size == args.padded_vocab_size == tiny.VOCABULARY
    assert args.exit_duration_in_mins == 5256000


def test_model_has_the_rows_of_the_recipe_not_of_the_tokenizer(text):
    wide = {"vocab_size": 600, "make_vocab_size_divisible_by": 100}
    assert check(text, TST, **wide).arguments.padded_vocab_size == 600
    halves = check(text, TST, vocab_size=600, tensor_model_parallel_size=2, sequence_parallel=True)
    assert halves.arguments.padded_vocab_size == 768
    stated = check(text, TST, vocab_size=600, padded_vocab_size=610)
    assert stated.arguments.padded_vocab_size == 610


@pytest.mark.parametrize(
    ("sizes", "ranks"),
    [
        ({}, 1),
        ({"expert_model_parallel_size": 4}, 4),
        ({"tensor_model_parallel_size": 2, "sequence_parallel": True}, 2),
        ({"pipeline_model_parallel_size": 2, "expert_model_parallel_size": 2}, 4),
    ],
)
def test_ranks_are_the_fewest_that_fit_unless_the_job_has_more(text, monkeypatch, sizes, ranks):
    assert check(text, **sizes).world_size == ranks
    # A shell in a job has it too, and is none of its ranks.
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert check(text, **sizes).world_size == ranks
    monkeypatch.setenv("WORLD_SIZE", str(2 * ranks))
    assert check(text, global_batch_size=16, **sizes).world_size == 2 * ranks
    assert check(text, global_batch_size=16, world_size=2 * ranks, **sizes).world_size == 2 * ranks


# --- warnings ------------------------------------------------------------------------------------


def test_padding_of_the_vocabulary_is_warned_of_with_its_cost(text, tmp_path):
    halves = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    (said,) = check(text, TST, vocab_size=600, **halves).warnings
    assert "make-vocab-size-divisible-by: 128 x tensor-model-parallel-size 2 pads" in said
    assert "168 columns" in said and "make-vocab-size-divisible-by: 1 gives none" in said
    assert check(text, TST, vocab_size=600, make_vocab_size_divisible_by=4, **halves).warnings == ()
    padding.write_facts(tmp_path, vocab_size=600, log_sum_exp=0.0)
    (said,) = check(
        text, TST, vocab_size=600, padded_vocab_size=601, pretrained_checkpoint=str(tmp_path)
    ).warnings
    assert said.startswith("padded-vocab-size: 601") and "about 0.69 higher" in said


def test_recipe_that_sets_every_dangerous_default_has_no_warning(text):
    assert check(text, TST).warnings == ()


@pytest.mark.parametrize("key", [*DANGEROUS_DEFAULTS, *DANGEROUS_MOE_DEFAULTS])
def test_dangerous_default_left_alone_is_warned_of_alone(text, key):
    default = {**DANGEROUS_DEFAULTS, **DANGEROUS_MOE_DEFAULTS}[key]
    if "dropout" in key:  # refused on the CPU host, where 0.1 would not resume exactly
        said = problems(text, TST, without=(key,))
        assert "hidden-dropout" in said[0] and "Set" in said[0]
        return
    # Without WSD nothing of its decay has an effect, which would be told too.
    more = ("lr-wsd-decay-iters", "lr-wsd-decay-style") if key == "lr-decay-style" else ()
    warnings = check(text, TST, without=(key, *more)).warnings
    assert warnings == (f"{key}: not set, so Megatron's default holds ({default})",)


def test_dangerous_defaults_are_megatrons_own():
    """The text of a warning says Megatron's default; this holds it to the parser."""
    parser = arguments.argument_parser()
    defaults = {
        option.removeprefix("--"): action.default
        for action in parser._actions
        for option in action.option_strings
    }
    none_or_zero = {"none": None, "0": 0}
    for key, said in {**DANGEROUS_DEFAULTS, **DANGEROUS_MOE_DEFAULTS}.items():
        if key == "vocab-size":
            assert defaults[key] is None
            continue
        word = said.split(";")[0].split(":")[0]
        wanted = none_or_zero[word] if word in none_or_zero else yaml.safe_load(word)
        wanted = float(wanted) if word == "1e-5" else wanted
        assert defaults[key] == wanted, key


def test_expert_defaults_are_no_danger_to_a_dense_model(text):
    experts = [key for key in tiny.TINY if key.startswith("moe-") or key == "num-experts"]
    assert check(text, TST, without=tuple(experts)).warnings == ()


# --- the command ---------------------------------------------------------------------------------


def test_check_announces_the_plan_and_the_warnings(text, monkeypatch, capsys):
    check(text, TST, without=("weight-decay",))
    monkeypatch.setattr(sys, "argv", ["tst-megatron", "check", str(text.parent / "checked.yaml")])
    with pytest.raises(SystemExit) as caught:
        app.main()
    lines = capsys.readouterr().out.splitlines()
    assert not caught.value.code
    assert lines[0] == "superposition: steps 1-8, bag size 4, 8,192 raw tokens"
    assert lines[-3] == "warning: weight-decay: not set, so Megatron's default holds (0.01)"
    assert lines[-2] == "this machine could run it, with 1 rank"
    assert lines[-1] == "No problem found."


def test_training_alone_a_recipe_for_two_ranks_is_refused(text, monkeypatch, tmp_path, capsys):
    """Without --nproc and outside a job this process is the only rank."""
    import tst_megatron.training.pretrain as training
    import tst_megatron.training.train as train

    monkeypatch.setattr(training, "pretrain", lambda *_, **__: 0)
    monkeypatch.setattr(train, "redirect_output_to", lambda path: None)
    check(text, TST, expert_model_parallel_size=2)
    arguments = ["train", str(text.parent / "checked.yaml"), "--run-folder", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["tst-megatron", *arguments])
    with pytest.raises(SystemExit) as caught:
        app.main()
    assert caught.value.code == 2
    assert "expert-model-parallel-size: 1 ranks do not divide" in capsys.readouterr().err


def test_export_refuses_an_unknown_dtype(monkeypatch, capsys, tmp_path):
    arguments = ["export", str(tmp_path), str(tmp_path / "out"), "--dtype", "fp8"]
    monkeypatch.setattr(sys, "argv", ["tst-megatron", *arguments])
    with pytest.raises(SystemExit) as caught:
        app.main()
    assert caught.value.code == 2
    assert "--dtype fp8 is none of fp32, bf16" in capsys.readouterr().err
