import numpy as np
import pytest
from streams import (
    corpus_of,
    inputs_of,
    make_plan,
    open_stream,
    reader_of,
    sources,
    write_split,
)

from tst_megatron.data.stream import sample_order
from tst_megatron.data.stream.sample_order import allocate, count_units, permutation
from tst_megatron.data.stream.stream import HeldOutPositions

LENGTH = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents of many lengths."""
    lengths = np.random.RandomState(0).randint(1, 90, size=120)
    return corpus_of(write_split(tmp_path_factory.mktemp("text") / "train", lengths.tolist()))


def make_stream(corpus, *entries, num_steps, **options):
    plan = make_plan([corpus], list(entries), num_steps=num_steps, length=LENGTH, **options)
    return open_stream(plan, [corpus])


def all_inputs(stream):
    return np.concatenate([inputs_of(stream, i) for i in range(stream.plan.num_samples)])


SCHEDULES = [
    [(1, 1.0)],
    [(4, 0.5), (1, 0.5)],
    [(12, 3), (1, 1.0)],
    [(6, 3), (3, 4), (2, 2), (1, 1.0)],
    [(4, 3), (6, 2), (1, 1.0)],  # 6 does not divide what a partly read unit has left
]


@pytest.mark.parametrize("entries", SCHEDULES)
def test_every_raw_token_is_an_input_once_at_most_over_all_phases(corpus, entries):
    places = all_inputs(make_stream(corpus, *entries, num_steps=12))
    assert len(np.unique(places, axis=0)) == len(places)


@pytest.mark.parametrize("entries", SCHEDULES)
def test_run_over_the_whole_corpus_reads_everything_but_the_tail(corpus, entries):
    text = corpus.manifest.train.tokens
    units = count_units(text, unit_chunks=12, num_latent_positions=LENGTH)
    fixed, steps = steps_to_read(units * 12, entries)
    stream = make_stream(corpus, *fixed, (1, 1.0), num_steps=steps, batch=1)
    places = all_inputs(stream)
    tail = stream.plan.num_tail_tokens(0)
    assert len(np.unique(places, axis=0)) == len(places) == text - tail
    assert 12 <= tail < 12 * LENGTH + 12
    with pytest.raises(ValueError, match=r"which holds .* 1\.00 epochs, and tst.max-epochs is 1"):
        make_stream(corpus, *fixed, (1, 1.0), num_steps=steps + 1, batch=1)


def steps_to_read(num_chunks, entries):
    """The phases before the last in whole steps, and as many steps of batch 1 as read the rest."""
    from tst_megatron.schedule import resolve_phases

    superposed = resolve_phases(entries, num_steps=100)[:-1]
    fixed = [(phase.bag_size, phase.num_steps) for phase in superposed]
    taken = sum(bag_size * steps for bag_size, steps in fixed)
    return fixed, sum(steps for _, steps in fixed) + num_chunks - taken


@pytest.mark.parametrize("entries", SCHEDULES)
def test_two_epochs_read_everything_twice_and_the_first_ends_before_the_second(corpus, entries):
    units = count_units(corpus.manifest.train.tokens, unit_chunks=12, num_latent_positions=LENGTH)
    fixed, steps = steps_to_read(2 * units * 12, entries)
    stream = make_stream(corpus, *fixed, (1, 1.0), num_steps=steps, batch=1, max_epochs=2)
    places = all_inputs(stream)
    assert stream.plan.epochs_of(0) == 2
    for epoch in (0, 1):
        of_epoch = places[places[:, 1] == epoch]
        assert len(np.unique(of_epoch, axis=0)) == len(of_epoch) == units * 12 * LENGTH
    # The tail is another one, and the order too.
    assert not np.array_equal(*(places[places[:, 1] == epoch][:, 2:] for epoch in (0, 1)))
    if len(fixed) < 2:
        epochs = [stream.plan.place(i).epoch for i in range(stream.plan.num_samples)]
        assert epochs == sorted(epochs)


def test_shuffle_blocks_end_with_the_epoch(corpus):
    """A corpus smaller than a block is still read once before it is read again."""
    units = count_units(corpus.manifest.train.tokens, unit_chunks=12, num_latent_positions=LENGTH)
    steps = 3 * units * 12
    stream = make_stream(corpus, (1, 1.0), num_steps=steps, batch=1, max_epochs=3)
    epochs = [stream.plan.place(i).epoch for i in range(steps)]
    assert epochs == sorted(epochs)
    with pytest.raises(ValueError, match="3.00 epochs, and tst.max-epochs is 2"):
        make_stream(corpus, (1, 1.0), num_steps=steps, batch=1, max_epochs=2)


@pytest.mark.parametrize("entries", SCHEDULES)
def test_targets_are_the_next_raw_tokens_of_the_sample_s_own_text(corpus, entries):
    stream, reader = make_stream(corpus, *entries, num_steps=12), reader_of(corpus)
    for sample in range(stream.plan.num_samples):
        bag_size = stream.plan.schedule.phase_at(sample // 4).bag_size
        tokens, places = stream.tokens(sample), sources(stream, sample)[:, 2:]
        assert len(tokens) == len(places) == bag_size * (LENGTH + 1)
        # Each document's tokens count up, so within one document neighbours differ by one.
        same_document = places[1:, 0] == places[:-1, 0]
        assert (np.diff(tokens)[same_document] == 1).all()
        assert (np.diff(places[:, 1])[same_document] == 1).all()
        starts = places[1:][~same_document]
        assert (starts[:, 1] == 0).all()
        for token, (document, offset) in zip(tokens, places, strict=True):
            assert reader.tokens(int(document), int(offset), 1)[0] == token


@pytest.fixture
def blocks_of_two_units(monkeypatch):
    """Blocks so small that the phases of a short run end with one."""
    monkeypatch.setattr(sample_order, "UNITS_PER_BLOCK", 2)


@pytest.mark.usefixtures("blocks_of_two_units")
def test_run_that_ends_with_a_block_reads_the_first_units_of_the_permutation(corpus):
    baseline = make_stream(corpus, (1, 1.0), num_steps=48)
    tst = make_stream(corpus, (4, 9), (1, 1.0), num_steps=21)
    # 9 steps of 4 chunks and 12 of one are 48 baseline steps: four whole units of 12 chunks per
    # batch row.
    arms = [{tuple(place) for place in all_inputs(arm).tolist()} for arm in (baseline, tst)]
    assert arms[0] == arms[1]


@pytest.mark.usefixtures("blocks_of_two_units")
def test_both_phases_read_exactly_the_first_units_of_the_permutation(corpus):
    stream = make_stream(corpus, (4, 9), (1, 1.0), num_steps=21)
    lengths = reader_of(corpus).document_lengths
    places = [
        (0, 0, int(document), offset)
        for document in permutation("1/documents", len(lengths))
        for offset in range(lengths[document])
    ]
    # 9 steps of 4 samples of 4 chunks, and 12 of one: 192 chunks, 16 units of 12.
    first_units = permutation("1/units", stream.plan.units_per_epoch[0])[:16]
    unit_tokens = 12 * LENGTH
    expected = {
        place for unit in first_units for place in places[unit * unit_tokens :][:unit_tokens]
    }
    assert {tuple(place) for place in all_inputs(stream).tolist()} == expected


@pytest.mark.usefixtures("blocks_of_two_units")
def test_arms_of_one_unit_size_read_one_permutation(corpus):
    tst = make_stream(corpus, (12, 2), (1, 1.0), num_steps=3)
    baseline = make_stream(corpus, (1, 1.0), num_steps=27)
    first_units = {tuple(p) for i in range(8) for p in inputs_of(tst, i).tolist()}
    read_by_baseline = {tuple(place) for place in all_inputs(baseline).tolist()}
    assert first_units <= read_by_baseline


def test_neighbours_in_the_text_are_not_neighbours_in_the_batch(corpus):
    stream = make_stream(corpus, (1, 1.0), num_steps=24)
    ordered = sum(
        int(stream.tokens(i + 1)[0] == stream.tokens(i)[LENGTH]) for i in range(24 * 4 - 1)
    )
    assert ordered <= 5


def test_sample_does_not_depend_on_what_was_read_before(corpus):
    forward = make_stream(corpus, (4, 5), (1, 1.0), num_steps=12)
    resumed = make_stream(corpus, (4, 5), (1, 1.0), num_steps=12)
    later = [resumed.tokens(i) for i in range(17, 48)]
    for sample in range(48):
        tokens = forward.tokens(sample)
        if sample >= 17:
            assert np.array_equal(tokens, later[sample - 17])


def test_seed_changes_the_order(corpus):
    one = make_stream(corpus, (1, 1.0), num_steps=4, seed=1)
    two = make_stream(corpus, (1, 1.0), num_steps=4, seed=2)
    assert any(not np.array_equal(one.tokens(i), two.tokens(i)) for i in range(16))


def test_bag_size_that_does_not_divide_the_unit_is_refused():
    with pytest.raises(ValueError, match="bag size 5 does not divide the stream unit of 12 bags"):
        allocate(units_per_epoch=9, unit_chunks=12, phases=[(5, 1)], seed=0)


def test_phase_whose_samples_do_not_fit_into_what_is_left_is_refused():
    sizes = {"units_per_epoch": 1, "unit_chunks": 12, "seed": 0}
    with pytest.raises(ValueError, match=r"ends 1 samples before the end of phase 1 \(bag size 6"):
        allocate(**sizes, phases=[(4, 2), (6, 1)])
    assert len(allocate(**sizes, phases=[(4, 2), (1, 4)])) == 2


@pytest.mark.parametrize("sample", [-1, 16])
def test_sample_that_the_run_does_not_have_is_refused(corpus, sample):
    stream = make_stream(corpus, (1, 1.0), num_steps=4)
    with pytest.raises(IndexError, match=f"sample {sample}: this run has the samples 0 to 15"):
        stream.tokens(sample)


@pytest.mark.parametrize("sample", [-1, 5])
def test_sample_that_the_phase_does_not_have_is_refused(sample):
    (phase,) = allocate(units_per_epoch=9, unit_chunks=12, phases=[(1, 5)], seed=0)
    with pytest.raises(IndexError, match=f"sample {sample}: this phase has the samples 0 to 4$"):
        phase.place(sample)


def test_held_out_positions_are_spread_over_the_text_and_refuse_too_short_a_text(corpus):
    split = corpus.manifest.train
    positions = HeldOutPositions([split], [1.0], num_samples=20, num_latent_positions=LENGTH)
    first = [int(positions.tokens(i)[0]) for i in range(20)]
    assert first == sorted(first) and first[-1] > 0.9 * split.tokens
    assert all(len(positions.tokens(i)) == LENGTH + 1 for i in range(20))
    with pytest.raises(ValueError, match="and an evaluation reads 100000 of them: lower eval-ite"):
        HeldOutPositions([split], [1.0], num_samples=100_000, num_latent_positions=LENGTH)


def test_held_out_positions_of_several_corpora_are_shared_out_by_weight(corpus, tmp_path):
    other = write_split(tmp_path / "other", [5000])
    splits = [corpus.manifest.train, other]
    positions = HeldOutPositions(splits, [3.0, 1.0], num_samples=40, num_latent_positions=LENGTH)
    assert positions._shares == [30, 10]
    corpora = [positions._dealt[i][0] for i in range(40)]
    assert corpora.count(1) == 10 and set(corpora[:6]) == {0, 1}


def test_order_is_frozen_across_versions(corpus):
    """Pinned ids: a change here makes every checkpoint read other text than it was trained on."""
    stream = make_stream(corpus, (4, 2), (1, 1.0), num_steps=4)
    assert [int(stream.tokens(i)[0]) for i in (0, 1, 7, 8, 15)] == PINNED


PINNED = [2341, 5339, 3509, 3598, 5296]
