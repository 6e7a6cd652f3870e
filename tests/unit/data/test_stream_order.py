"""The order of samples: what a run reads first does not depend on what follows."""

import itertools
import tracemalloc
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import make_corpora, make_plan, open_stream

from tst_megatron.data.stream import sample_order
from tst_megatron.data.stream.cursor import ORDER_VERSION, differences
from tst_megatron.data.stream.plan import CorpusSize, StreamPlan
from tst_megatron.data.stream.sample_order import allocate, of_epoch_seed, permutation
from tst_megatron.schedule import Phase, Schedule

LENGTH = 2
ALL_BAG_SIZES = (1, 2, 3, 4, 6, 8)
ENOUGH_EPOCHS = 500
EPOCHS_LOOKED_AT = 60


@st.composite
def bag_sizes_of(draw, unit_chunks, *, min_size=1, max_size=4):
    fitting = [size for size in ALL_BAG_SIZES if unit_chunks % size == 0]
    return draw(st.lists(st.sampled_from(fitting), min_size=min_size, max_size=max_size))


@st.composite
def sizes(draw):
    """Everything of a small run but its phases."""
    unit_chunks = draw(st.sampled_from([4, 6, 8, 12, 24]))
    units = draw(st.lists(st.integers(3, 40), min_size=1, max_size=3))
    weights = st.sampled_from([0.2, 0.5, 1.0, 3.0])
    return {
        "corpora": [
            CorpusSize(
                name=f"corpus {number}",
                weight=draw(weights),
                num_tokens=count * unit_chunks * LENGTH + unit_chunks,
            )
            for number, count in enumerate(units)
        ],
        "unit_chunks": unit_chunks,
        "batch": draw(st.integers(1, 8)),
        "seed": draw(st.integers(0, 2**31)),
        "units_per_block": draw(st.sampled_from([1, 2, 5, 4096])),
    }


def entries_of(draw, unit_chunks, **options):
    """(bag size, number of steps) of some phases."""
    return [(size, draw(st.integers(1, 12))) for size in draw(bag_sizes_of(unit_chunks, **options))]


def plan_of(sizes, entries, *, max_epochs=ENOUGH_EPOCHS):
    phases, first_step = [], 0
    for bag_size, num_steps in entries:
        phases.append(Phase(bag_size=bag_size, first_step=first_step, num_steps=num_steps))
        first_step += num_steps
    schedule = Schedule(
        phases=tuple(phases), num_latent_positions=LENGTH, global_batch_size=sizes["batch"]
    )
    return StreamPlan(
        sizes["corpora"],
        schedule,
        unit_chunks=sizes["unit_chunks"],
        seed=sizes["seed"],
        max_epochs=max_epochs,
    )


def blocks_of(units):
    return mock.patch.object(sample_order, "UNITS_PER_BLOCK", units)


def chunks_of(place):
    """(corpus, epoch, unit, chunk) of everything that a sample has as input."""
    return [
        (place.corpus, place.epoch, place.unit, place.chunk + number)
        for number in range(place.num_inputs)
    ]


def first_steps(entries, num_steps):
    """The phases of the first steps."""
    kept = []
    for bag_size, steps in entries:
        if num_steps > 0:
            kept.append((bag_size, min(steps, num_steps)))
            num_steps -= steps
    return kept


@settings(deadline=None, max_examples=80)
@given(st.data(), sizes())
def test_first_steps_do_not_depend_on_what_follows(data, sizes):
    entries = entries_of(data.draw, sizes["unit_chunks"])
    shared = data.draw(st.integers(1, sum(steps for _, steps in entries)))
    follows = entries_of(data.draw, sizes["unit_chunks"], min_size=0, max_size=3)
    other = [*first_steps(entries, shared), *follows]
    with blocks_of(sizes["units_per_block"]):
        one = plan_of(sizes, entries)
        two = plan_of(sizes, other, max_epochs=data.draw(st.sampled_from([400, 501, 2000])))
        num_shared = shared * sizes["batch"]
        assert [one.place(i) for i in range(num_shared)] == [
            two.place(i) for i in range(num_shared)
        ]


@settings(deadline=None, max_examples=80)
@given(st.data(), sizes())
def test_chunk_is_read_once_an_epoch_and_a_last_phase_of_single_chunks_reads_all(data, sizes):
    sizes = {**sizes, "batch": 1, "corpora": sizes["corpora"][:1]}
    unit_chunks = sizes["unit_chunks"]
    entries = entries_of(data.draw, unit_chunks, min_size=0, max_size=3)
    with blocks_of(sizes["units_per_block"]):
        units = plan_of(sizes, [(1, 1)]).units_per_epoch[0]
        before = set()
        if entries:
            before = taken_once(plan_of(sizes, entries))
        num_epochs = max((epoch for _, epoch, _, _ in before), default=0) + 1
        everything = set(
            itertools.product([0], range(num_epochs), range(units), range(unit_chunks))
        )
        left = len(everything - before)
        whole = plan_of(sizes, [*entries, (1, left)], max_epochs=num_epochs) if left else None
        assert taken_once(whole) == everything if whole else before == everything
        with pytest.raises(ValueError, match=f"and tst.max-epochs is {num_epochs}"):
            plan_of(sizes, [*entries, (1, left + 1)], max_epochs=num_epochs)


def taken_once(plan):
    """All chunks that a run has as inputs; none twice."""
    chunks = [chunk for i in range(plan.num_samples) for chunk in chunks_of(plan.place(i))]
    assert len(set(chunks)) == len(chunks)
    return set(chunks)


@settings(deadline=None, max_examples=80)
@given(st.data(), sizes())
def test_order_is_that_of_the_definition(data, sizes):
    sizes = {**sizes, "batch": 1, "corpora": sizes["corpora"][:1]}
    entries = [
        (bag_size, sum(steps for _, steps in alike))
        for bag_size, alike in itertools.groupby(
            entries_of(data.draw, sizes["unit_chunks"]), key=lambda entry: entry[0]
        )
        for alike in [list(alike)]
    ]
    with blocks_of(sizes["units_per_block"]):
        plan = plan_of(sizes, entries)
    places = map(plan.place, range(plan.num_samples))
    read = [(place.epoch, place.unit, place.chunk) for place in places]
    expected = slowly(plan.units_per_epoch[0], entries, sizes)
    assert read == expected
    assert plan.epochs_of(0) == max(epoch for epoch, _, _ in expected) + 1


def slowly(units, readings, sizes):
    """The definition: (epoch, unit, chunk) of the samples of each reading, in order."""
    everything = itertools.product(
        range(EPOCHS_LOOKED_AT), range(units), range(sizes["unit_chunks"])
    )
    free = set(everything)
    read = []
    for index, (bag_size, num_samples) in enumerate(readings):
        order = []
        for epoch in range(EPOCHS_LOOKED_AT):
            seed = of_epoch_seed(f"{sizes['seed']}/phase-{index}", epoch)
            order += shuffled(epoch_samples(free, epoch, units, bag_size, sizes), seed, sizes)
            if len(order) >= num_samples:
                break
        read += order[:num_samples]
        for epoch, unit, chunk in order[:num_samples]:
            free -= {(epoch, unit, chunk + number) for number in range(bag_size)}
    return read


def epoch_samples(free, epoch, units, bag_size, sizes):
    """Lists of the samples that each free stretch of an epoch has room for."""
    stretches = []
    for unit in range(units):
        chunks = [c for c in range(sizes["unit_chunks"]) if (epoch, unit, c) in free]
        starts = [c for c in chunks if c - 1 not in chunks]
        for start in starts:
            length = next(n for n in itertools.count() if start + n not in chunks)
            firsts = range(start, start + length - bag_size + 1, bag_size)
            stretches.append([(epoch, unit, first) for first in firsts])
    return stretches


def shuffled(stretches, seed, sizes):
    samples = [sample for stretch in stretches for sample in stretch]
    size = sizes["units_per_block"] * max(map(len, stretches), default=0)
    order = []
    for number in range(-(-len(samples) // size) if size else 0):
        block = samples[number * size : (number + 1) * size]
        order += [block[place] for place in permutation(f"{seed}/block-{number}", len(block))]
    return order


@pytest.mark.parametrize("entries", [[(1, 48)], [(4, 6), (1, 24)], [(2, 10), (1, 24)]])
def test_neighbours_in_the_text_share_a_batch_no_more_than_in_a_shuffle(entries):
    """Also where a phase starts with what the one before it left of its block."""
    sizes = {
        "corpora": [CorpusSize(name="c", weight=1.0, num_tokens=48 * 4 * LENGTH + 4)],
        "unit_chunks": 4,
        "batch": 4,
    }
    pairs = num_batches = 0
    for seed in range(40):
        plan = plan_of({**sizes, "seed": seed}, entries)
        num_batches += entries[-1][1]
        for step in range(plan.schedule.num_steps - entries[-1][1], plan.schedule.num_steps):
            starts = {
                4 * place.unit + place.chunk
                for place in map(plan.place, range(4 * step, 4 * step + 4))
            }
            pairs += len(starts & {start + 1 for start in starts})
    # Version 1 shuffled no more than what the phase takes: 4 samples of so many had this number.
    taken = 4 * entries[-1][1]
    expected = num_batches * 4 * 3 / taken
    assert pairs <= 1.2 * expected + 10


@pytest.mark.parametrize(
    "phases",
    [
        [(16, 9_000_001), (1, 100_000_000)],
        [(16, 2_000_001), (8, 3_000_017), (4, 4_000_003), (2, 7_000_001), (1, 50_000_000)],
    ],
)
def test_division_of_two_trillion_tokens_takes_little_memory(phases):
    """The corpus of the 10B recipe, of which the division looks at one block of each phase."""
    units = sample_order.count_units(2 * 10**12, unit_chunks=16, num_latent_positions=4096)
    tracemalloc.start()
    orders = allocate(units_per_epoch=units, unit_chunks=16, phases=phases, seed=1)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 4 * 2**20 and peak < 32 * 2**20
    assert [order.num_samples for order in orders] == [number for _, number in phases]


def test_run_of_an_earlier_version_has_to_be_finished_with_it():
    now = {"order version": ORDER_VERSION, "seed": 1}
    (problem,) = differences({"order version": 1, "seed": 1}, now)
    assert problem == (
        "order version: the run was begun with an earlier version of tst-megatron, which reads the "
        "text in another order (1, and this version has 2). Finish the run with that version of "
        "tst-megatron"
    )
    later, seed = differences({"order version": 3, "seed": 2}, now)
    assert "begun with a later version" in later and seed.startswith("seed: the checkpoint")
    assert "(nothing, and this version has 2)" in differences({"seed": 1}, now)[0]
    assert differences(now, dict(now)) == []


def test_corpus_that_a_run_does_not_reach_needs_no_index(tmp_path):
    corpora = make_corpora(tmp_path, (1.0, [100]), (0.001, [100]))
    plan = make_plan(corpora, [(1, 1.0)], num_steps=3, length=4, batch=2, unit_chunks=4)
    assert [plan.epochs_of(0), plan.epochs_of(1)] == [1, 0]
    assert len(open_stream(plan, corpora).tokens(5)) == 5
    assert not (corpora[1].cache).exists()
