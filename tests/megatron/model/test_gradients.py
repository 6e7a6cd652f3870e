"""What the loss hands to Megatron's schedules: gradients of one model under real schedules.

All cases share one process and one process group; each builds its model anew from one seed.
"""

import math

import one_step
import pytest
import torch
from processes import run_ranks
from tiny import TINY, VOCABULARY

LENGTH, BAG, SEQUENCES, END = 8, 4, 4, 2


def raw_tokens(*, masked_rows=()):
    """[SEQUENCES, BAG * (LENGTH + 1)] tokens; a masked row is end-of-document throughout."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(3, VOCABULARY, (SEQUENCES, BAG * (LENGTH + 1)), generator=generator)
    # Uneven masks: each row has another number of targets that follow an end of document.
    tokens[1, 5:8] = END
    tokens[2, 3:23] = END
    for row in masked_rows:
        tokens[row] = END
    return tokens


CASES = {
    # name: (per-token loss, micro-batch, mask targets, fully masked rows, changes to the model)
    "mean": (False, 4, False, (), {}),
    "per token": (True, 4, False, (), {}),
    "masked, whole": (True, 4, True, (), {}),
    "masked, halves": (True, 2, True, (), {}),
    "masked, single": (True, 1, True, (), {}),
    "row masked, whole": (True, 4, True, (3,), {}),
    "row masked, single": (True, 1, True, (3,), {}),
    "row masked, mean": (False, 1, True, (3,), {}),
    "bag size 1": (False, 4, False, (), {"bag_size": 1}),
}


def gradients_of_all_cases(tokenizer):
    args = one_step.start(
        {
            **TINY,
            "seq-length": LENGTH,
            "max-position-embeddings": LENGTH,
            "micro-batch-size": SEQUENCES,
            "global-batch-size": SEQUENCES,
            # Balanced per sequence, so that the auxiliary loss does not depend on the split either.
            "moe-router-load-balancing-type": "seq_aux_loss",
            "moe-aux-loss-coeff": 0.1,
            "moe-z-loss-coeff": 0.01,
            "tokenizer-type": "SentencePieceTokenizer",
            "tokenizer-model": tokenizer,
            "use-distributed-optimizer": False,
            "rerun-mode": "disabled",  # it wants the training loop around each step
            "dataloader-type": "single",
        }
    )
    return {name: gradients(args, *case) for name, case in CASES.items()}


def gradients(args, per_token, micro_batch, mask, masked_rows, changes):
    from tst_megatron.schedule import Phase, Schedule

    bag_size = changes.get("bag_size", BAG)
    args.calculate_per_token_loss = per_token
    args.micro_batch_size = micro_batch
    args.eod_mask_loss = mask
    models = one_step.build(args)
    tokens = raw_tokens(masked_rows=masked_rows)[:, : bag_size * (LENGTH + 1)]
    batches = ({"tokens": part} for part in tokens.split(micro_batch))
    schedule = Schedule(
        phases=(Phase(bag_size=bag_size, first_step=0, num_steps=1),),
        num_latent_positions=LENGTH,
        global_batch_size=SEQUENCES,
    )
    reports = one_step.forward_backward(args, models, schedule, [iter(batches)])
    return {name: p.main_grad.clone() for name, p in models[0].module.named_parameters()}, reports


@pytest.fixture(scope="module")
def cases(text):
    (result,) = run_ranks(gradients_of_all_cases, 1, str(text / "tokenizer.model"))
    return result


def assert_same(one, two, *, only=""):
    names = [name for name in one if only in name]
    assert names
    for name in names:
        assert one[name].abs().max() > 0 or "embedding" in name
        torch.testing.assert_close(one[name], two[name], atol=2e-7, rtol=2e-5, msg=name)


def test_router_gradient_does_not_depend_on_the_per_token_flag(cases):
    """Counting K targets for each latent position would weaken balancing K times."""
    assert_same(cases["mean"][0], cases["per token"][0], only="router")
    assert_same(cases["mean"][0], cases["per token"][0])


def test_gradient_does_not_depend_on_the_micro_batch_split(cases):
    for split in ("masked, halves", "masked, single"):
        assert_same(cases["masked, whole"][0], cases[split][0])


def test_masks_change_the_gradient(cases):
    whole, unmasked = cases["masked, whole"][0], cases["per token"][0]
    assert any(not torch.allclose(whole[name], unmasked[name]) for name in whole)


def test_fully_masked_micro_batch_is_harmless(cases):
    assert_same(cases["row masked, whole"][0], cases["row masked, single"][0])
    for grads, reports in (cases["row masked, single"], cases["row masked, mean"]):
        assert all(grad.isfinite().all() for grad in grads.values())
        assert reports[3]["bag loss"] == [0.0, 0.0]


def test_report_holds_the_sum_and_the_number_of_latent_positions(cases):
    _, reports = cases["mean"]
    loss_sum, positions = reports[0]["bag loss"]
    assert positions == SEQUENCES * LENGTH
    assert loss_sum / positions == pytest.approx(math.log(VOCABULARY), rel=0.02)
    _, (recovery,) = cases["bag size 1"]
    assert list(recovery) == ["lm loss"]


def test_positions_without_a_target_are_not_counted(cases):
    _, reports = cases["masked, single"]
    counts = [report["bag loss"][1] for report in reports]
    # Row 2 has end-of-document at raw places 3-22, so the next bags of 4 at 4-23 count nowhere.
    assert counts == [8.0, 8.0, 3.0, 8.0]
