"""Ablation switches that no step would feel are refused, with the rule and the way out."""

import pytest
from checks import check, problems

TST = {"bag-size": 4, "superposition-fraction": 0.4}
NOTHING = (
    ": without superposition it changes nothing. Remove it, or set bag-size and "
    "superposition-fraction or superposition-steps"
)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inputs", "tokens"),
        ("targets", "tokens"),
        ("slot-weights", "1/i"),
        ("linear-cross-entropy", True),
        ("reset-embeddings", True),
        ("reset-optimizer", True),
    ],
)
def test_switch_needs_superposition(text, key, value):
    for tst in ({}, {"bag-size": 1, "superposition-fraction": 0.4}, {"schedule": [[1, 20]]}):
        assert problems(text, {**tst, key: value}) == [f"tst.{key}{NOTHING}"]
    check(text, {**TST, key: value})


@pytest.mark.parametrize(
    ("switches", "wanted"),
    [
        (
            {"inputs": "tokens", "targets": "tokens"},
            "tst.inputs: tokens with targets: tokens is ordinary training. Use bags on one side, "
            "or bag-size 1",
        ),
        (
            {"targets": "tokens", "slot-weights": "exp(-i)"},
            "tst.slot-weights: exp(-i) with targets: tokens, which has one slot. Remove one of "
            "the two",
        ),
        (
            {"targets": "tokens", "linear-cross-entropy": True},
            "tst.linear-cross-entropy: True with targets: tokens, which has one slot. Remove one "
            "of the two",
        ),
    ],
)
def test_switches_that_contradict_each_other_are_refused(text, switches, wanted):
    assert problems(text, {**TST, **switches}) == [wanted]


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("use-mup", {"use_mup": True}),
        ("fp8-output-proj", {"fp8_output_proj": True}),
        ("defer-embedding-wgrad-compute", {"defer_embedding_wgrad_compute": True}),
    ],
)
def test_linear_loss_is_refused_beside_another_output_layer(text, key, changes):
    wanted = (
        f"{key}: tst.linear-cross-entropy computes the output layer itself, without it. Remove "
        "one of the two"
    )
    assert wanted in problems(text, {**TST, "linear-cross-entropy": True}, **changes)


def test_another_output_layer_is_free_without_the_linear_loss(text):
    check(text, TST, use_mup=True)


def test_plan_says_what_a_run_with_switches_reads(text):
    def lines(**switches):
        tst = {**TST, **{key.replace("_", "-"): value for key, value in switches.items()}}
        return check(text, tst).plan()

    # 8 of 20 steps of 8 sequences of 32 latent positions.
    assert lines()[0] == "superposition: steps 1-8, bag size 4, 8,192 raw tokens"
    assert lines(targets="tokens")[0] == (
        "superposition: steps 1-8, bag size 4, 8,192 raw tokens, predicts tokens"
    )
    assert lines(linear_cross_entropy=True)[0] == (
        "superposition: steps 1-8, bag size 4, 8,192 raw tokens, logits in chunks"
    )
    assert lines(inputs="tokens", slot_weights="1/i")[0] == (
        "superposition: steps 1-8, bag size 4, 2,048 raw tokens, reads tokens, slot weights 1/i"
    )
    assert lines(reset_embeddings=True, reset_optimizer=True)[2] == (
        "the switch comes after step 8, with new embeddings and output layer and a new optimizer"
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"optimizer": "sgd"}, "optimizer: sgd"),
        ({"optimizer_cpu_offload": True}, "optimizer-cpu-offload"),
        ({"use_precision_aware_optimizer": True}, "use-precision-aware-optimizer"),
    ],
)
def test_reset_of_an_optimizer_that_it_does_not_know_is_refused(text, changes, key):
    resets = {"reset-embeddings": True, "reset-optimizer": True}
    assert (
        f"{key}: tst.reset-embeddings and tst.reset-optimizer can only reset Adam's fp32 state on "
        "the device. Remove one of the two"
    ) in problems(text, {**TST, **resets}, **changes)
