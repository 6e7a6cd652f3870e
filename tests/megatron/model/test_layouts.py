"""Superposition is the same training in every parallel layout, gradient by gradient.

Megatron's compositions have had silent errors that no loss showed (its issue 7452), so each layout
is compared with one process in every parameter of every layer and expert.
"""

import shutil
from dataclasses import replace

import parity
import pytest
import torch
from layouts import (
    ALONE,
    CASES,
    LAYOUTS,
    LENGTH,
    LINEAR,
    MICRO_BATCH,
    PHASES,
    SEQUENCES,
    SWITCHES,
    TESTED,
    TOLERANCE,
    Case,
)

PER_TOKEN = tuple(Case(phase, loss="per token") for phase in PHASES)
EXPECTED = tuple(dict.fromkeys(case for cases in TESTED.values() for case in cases)) + PER_TOKEN
NUM_MICRO_BATCHES = SEQUENCES // MICRO_BATCH

every_case = pytest.mark.parametrize(
    ("layout", "case"),
    [
        pytest.param(layout.name, case, id=f"{layout.name}; {case}")
        for layout, cases in TESTED.items()
        for case in cases
    ],
)


@pytest.fixture(scope="module")
def results(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    shutil.copy(text / "tokenizer.model", folder)
    return parity.run_layouts({ALONE: EXPECTED, **TESTED}, folder)


def pair(results, layout, case):
    reference = replace(case, phase="K=4") if case.phase in LINEAR else case
    return results[layout, case], results[ALONE.name, reference]


@every_case
def test_gradient_of_every_parameter_is_that_of_one_process(results, layout, case):
    worst = parity.errors(*pair(results, layout, case))[0]
    assert worst.relative <= TOLERANCE, worst


@every_case
def test_initial_weights_are_those_of_one_process(results, layout, case):
    for part in results[layout, case].parts:
        assert part.drawn_otherwise == []


@every_case
def test_every_position_goes_to_the_same_experts(results, layout, case):
    result, reference = pair(results, layout, case)
    assert len(reference.routing) == 4 * NUM_MICRO_BATCHES
    assert parity.have_equal_routing(result, reference)


@every_case
def test_copies_of_a_gradient_agree(results, layout, case):
    assert results[layout, case].disagreement == 0.0


@every_case
def test_loss_of_every_micro_batch_is_that_of_one_process(results, layout, case):
    result, reference = pair(results, layout, case)
    assert len(result.losses) == len(reference.losses) == NUM_MICRO_BATCHES
    for reported, expected in zip(result.losses, reference.losses, strict=True):
        assert reported == {
            name: [pytest.approx(loss_sum, rel=1e-6), positions]
            for name, (loss_sum, positions) in expected.items()
        }


def test_reference_reaches_every_parameter(results):
    """Four layers of four experts, in each of which a wrong gradient would be seen."""
    for case in EXPECTED:
        gradients = results[ALONE.name, case].gradients
        experts = [name for name in gradients if "experts" in name]
        assert len(experts) == 4 * 4 * 2
        for name, gradient in gradients.items():
            assert gradient.norm() > 1e-4, (case, name)


def test_cases_differ(results):
    """Else nothing would tell a phase, a switch or a mask that has no effect."""
    embeddings = {
        case: results[ALONE.name, case].gradients["embedding.word_embeddings.weight"]
        for case in EXPECTED
        if case not in PER_TOKEN and case.phase not in LINEAR
    }
    for case, gradient in embeddings.items():
        for other, other_gradient in embeddings.items():
            if case != other:
                assert (gradient - other_gradient).norm() > 0.01 * gradient.norm(), (case, other)


@pytest.mark.parametrize("case", PER_TOKEN, ids=str)
def test_dividing_once_at_the_end_gives_the_same_gradient(results, case):
    """As many positions count in each micro-batch here, so the flag must not matter.

    The experts' losses, which Megatron scales by its own count of positions, included.
    """
    whole, mean = results[ALONE.name, case], results[ALONE.name, Case(case.phase)]
    assert parity.errors(whole, mean)[0].relative <= TOLERANCE


def raw_tokens(case):
    """Raw tokens of a sample, written out."""
    return {
        "K=4": 4 * LENGTH + 4,
        "K=1": LENGTH + 1,
        "K=4, one token in": LENGTH + 4,
        "K=4, one token out": 4 * LENGTH + 1,
        "K=4, slot weights 1/i": 4 * LENGTH + 4,
        "K=4, linear loss": 4 * LENGTH + 4,
    }[case.phase]


@every_case
def test_raw_tokens_alone_are_broadcast_to_tensor_parallel_ranks(results, layout, case):
    """Neither targets, masks nor positions, and once for each micro-batch."""
    flags = next(known.flags for known in LAYOUTS if known.name == layout)
    is_split = "tensor-model-parallel-size" in flags
    for part in results[layout, case].parts:
        batch = (torch.int64, (MICRO_BATCH, raw_tokens(case)))
        expected = [batch] * (NUM_MICRO_BATCHES // part.num_data_ranks)
        assert part.broadcasts == (expected if is_split else [])


@every_case
def test_chunks_in_the_middle_read_no_data(results, layout, case):
    for part in results[layout, case].parts:
        num_micro_batches = NUM_MICRO_BATCHES // part.num_data_ranks
        # The first stage has the first of its chunks and the last stage the last of its chunks.
        is_last = bool(part.reports)
        expected = [0] * len(part.num_reads)
        if part.tensor_rank == 0:
            expected[-1 if is_last else 0] = num_micro_batches
        assert part.num_reads == expected


def test_every_layout_of_the_table_is_tested():
    assert list(TESTED) == list(LAYOUTS)
    assert all(set(CASES) <= set(cases) for cases in TESTED.values())
    tested = {case.phase for cases in TESTED.values() for case in cases}
    assert tested == {*PHASES, *SWITCHES, *LINEAR}
