"""Exactly once, disjoint, resumable, the same for every layout: over any run that can be made."""

import itertools
import math
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import corpus_of, inputs_of, make_plan, open_stream, write_split

from tst_megatron.data.stream import sample_order
from tst_megatron.data.stream.cursor import cursor

SIDES = [("bags", "bags"), ("bags", "tokens"), ("tokens", "bags")]
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=60)


@st.composite
def runs(draw):
    """(corpora as (weight, document lengths), schedule entries, sizes) of a run that fits."""
    length = draw(st.integers(1, 6))
    unit_chunks = draw(st.sampled_from([1, 2, 4, 6, 12]))
    bag_sizes = [k for k in range(2, unit_chunks + 1) if unit_chunks % k == 0]
    phases = draw(st.lists(st.sampled_from(bag_sizes), max_size=3)) if bag_sizes else []
    phases = [k for k, _ in itertools.groupby(phases)]
    inputs, targets = draw(st.sampled_from(SIDES))
    batch = draw(st.sampled_from([8, 16]))
    corpora = draw(
        st.lists(st.tuples(st.sampled_from([0.2, 0.5, 1.0, 3.0]), LENGTHS), min_size=1, max_size=3)
    )
    return {
        "corpora": corpora,
        "entries": [(k, draw(st.integers(1, 3))) for k in phases] + [(1, 1.0)],
        "length": length,
        "batch": batch,
        "unit_chunks": unit_chunks,
        "seed": draw(st.integers(0, 2**31)),
        "last_steps": draw(st.integers(1, 4)),
        "max_epochs": 10**4,
        "inputs": inputs,
        "targets": targets,
    }


def build(run, folder):
    options = {k: v for k, v in run.items() if k not in ("corpora", "entries", "last_steps")}
    # Long enough for a unit; the text itself does not matter here.
    shortest = run["unit_chunks"] * (run["length"] + 1)
    corpora = [
        corpus_of(write_split(folder / f"{number}" / "train", [*lengths, shortest]), weight=weight)
        for number, (weight, lengths) in enumerate(run["corpora"])
    ]
    steps = sum(count for _, count in run["entries"][:-1]) + run["last_steps"]
    plan = make_plan(corpora, run["entries"], num_steps=steps, **options)
    return plan, corpora


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)
@given(runs())
def test_each_raw_token_is_an_input_once_per_epoch_and_phases_are_disjoint(run):
    with tempfile.TemporaryDirectory() as folder:
        plan, corpora = build(run, Path(folder))
        stream = open_stream(plan, corpora)
        places = np.concatenate([inputs_of(stream, i) for i in range(plan.num_samples)])
        assert len(np.unique(places, axis=0)) == len(places)
        for number, corpus in enumerate(corpora):
            of_corpus = places[places[:, 0] == number]
            wanted = plan.raw_tokens_of_corpora()[number]
            assert len(of_corpus) == wanted
            per_epoch = plan.units_per_epoch[number] * plan.unit_chunks * run["length"]
            assert plan.num_tail_tokens(number) == corpus.manifest.train.tokens - per_epoch
            counts = [int((of_corpus[:, 1] == e).sum()) for e in range(plan.epochs_of(number))]
            # Whole epochs are read to their last token, unless a later phase's bags do not fit
            # into what a partly read unit has left.
            if len(run["entries"]) == 1 or run["inputs"] == "tokens":
                assert counts[:-1] == [per_epoch] * (len(counts) - 1)
            assert max(counts, default=0) <= per_epoch


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=40)
@given(runs(), st.data())
def test_resumed_reads_equal_uninterrupted_reads_index_by_index(run, data):
    with tempfile.TemporaryDirectory() as folder:
        plan, corpora = build(run, Path(folder))
        uninterrupted = open_stream(plan, corpora)
        reads = [uninterrupted.tokens(i).tolist() for i in range(plan.num_samples)]
        step = data.draw(st.integers(0, plan.schedule.num_steps))
        first = step * run["batch"]
        again, _ = build(run, Path(folder) / "other")
        resumed = open_stream(again, corpora)
        assert [resumed.tokens(i).tolist() for i in range(first, plan.num_samples)] == reads[first:]
        # In any order, as loader workers ask for them.
        order = np.random.RandomState(step).permutation(plan.num_samples)
        assert all(resumed.tokens(int(i)).tolist() == reads[i] for i in order)


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=40)
@given(runs())
def test_cursor_counts_what_was_read_and_each_phase_keeps_the_weights(run):
    with tempfile.TemporaryDirectory() as folder:
        plan, _ = build(run, Path(folder))
        total = sum(corpus.weight for corpus in plan.corpora)
        for step in range(plan.schedule.num_steps + 1):
            counted = [0] * len(plan.corpora)
            for sample in range(step * run["batch"]):
                place = plan.place(sample)
                counted[place.corpus] += place.num_inputs
            at = cursor(plan, step)
            assert at["chunks of corpora"] == counted
            assert at["raw tokens"] == sum(counted) * run["length"]
        for number, phase in enumerate(plan.schedule.phases):
            samples = range(phase.first_step * run["batch"], phase.last_step * run["batch"])
            places = [plan.place(sample) for sample in samples]
            assert {place.phase for place in places} == {number}
            assert {place.num_inputs for place in places} == {phase.num_inputs}
        # What reads alike is dealt as one.
        for _, alike in itertools.groupby(plan.schedule.phases, lambda phase: phase.num_inputs):
            phases = list(alike)
            first, last = phases[0].first_step, phases[-1].last_step
            samples = range(first * run["batch"], last * run["batch"])
            places = [plan.place(sample) for sample in samples]
            for number, corpus in enumerate(plan.corpora):
                share = corpus.weight / total * len(places)
                bound = (1 + corpus.weight / total * len(plan.corpora)) / 2
                dealt = sum(place.corpus == number for place in places)
                assert abs(dealt - share) <= bound + 1e-9


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=40)
@given(runs(), st.sampled_from([2, 3, 6]))
def test_bags_of_targets_alone_read_exactly_the_baseline_s_tokens(run, last_bag):
    """Sample by sample, of every corpus and epoch: only the look-ahead is longer."""
    sizes = {**run, "unit_chunks": 12, "inputs": "tokens", "targets": "bags"}
    with tempfile.TemporaryDirectory() as folder:
        steps = sum(count for _, count in run["entries"][:-1]) + run["last_steps"] + 3
        arms = [
            build({**sizes, "entries": entries, "last_steps": last}, Path(folder) / name)
            for name, entries, last in (
                ("output", [(last_bag, 2), *[(12, 1)], (1, 1.0)], steps - 3),
                ("baseline", [(1, 1.0)], steps),
            )
        ]
        output, baseline = (open_stream(plan, corpora) for plan, corpora in arms)
        assert output.plan.num_samples == baseline.plan.num_samples
        for sample in range(output.plan.num_samples):
            read = output.tokens(sample)
            bag_size = output.plan.schedule.phase_at(sample // run["batch"]).bag_size
            assert len(read) == run["length"] + bag_size
            assert (read[: run["length"] + 1] == baseline.tokens(sample)).all()
            assert (inputs_of(output, sample) == inputs_of(baseline, sample)).all()


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=30)
@given(
    st.sampled_from([[(12, 2), (1, 1.0)], [(6, 1), (2, 3), (1, 1.0)], [(4, 4), (1, 1.0)]]),
    st.integers(0, 99),
    st.sampled_from([1, 2, 3]),
)
def test_arms_of_one_unit_size_read_one_permutation(entries, seed, units_per_block):
    """Every arm reads the units in one order, from the first, and all but a part of one block."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(sample_order, "UNITS_PER_BLOCK", units_per_block),
    ):
        corpus = corpus_of(write_split(Path(folder) / "train", [50, 7, 90, 31, 64, 23] * 20))
        sizes = {"length": 4, "batch": 2, "seed": seed}
        arm = make_plan([corpus], entries, num_steps=8, **sizes)
        chunks = arm.raw_tokens_of_corpora()[0] // 4
        baseline = make_plan([corpus], [(1, 1.0)], num_steps=math.ceil(chunks / 2), **sizes)
        for plan in (arm, baseline):
            read = {
                12 * place.unit + place.chunk + k
                for place in map(plan.place, range(plan.num_samples))
                for k in range(place.num_inputs)
            }
            block = 12 * units_per_block
            passed_over = set(range(max(read) + 1)) - read
            assert len(passed_over) < block
            assert max(read) < len(read) + block
