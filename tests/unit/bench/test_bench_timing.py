"""Timing in turns, with a clock of the test's own."""

import pytest

from tst_megatron.bench.timing import Contender, Spread, measure


class FakeMeter:
    """Each run says how long it took; the machine gets slower from round to round."""

    def __init__(self, names):
        self.order, self.freed, self.names = [], 0, names

    def seconds(self, run):
        name, seconds = run()
        self.order.append(name)
        return seconds * (1 + (len(self.order) - 1) // len(self.names))

    def peak_bytes(self, run):
        run()
        return 300, 100

    def free(self):
        self.freed += 1


def contender(name, seconds, **more):
    return Contender(name=name, version="1", run=lambda: (name, seconds), **more)


def test_ratio_is_that_within_rounds_however_the_machine_drifts():
    meter = FakeMeter("ab")
    first, second = measure([contender("a", 2.0), contender("b", 3.0)], meter, rounds=5)
    assert first.seconds == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert second.spread == Spread(median=9.0, p20=5.4, p80=12.6)
    assert second.ratio == Spread(median=1.5, p20=1.5, p80=1.5)
    assert first.ratio == Spread(median=1.0, p20=1.0, p80=1.0)
    assert (first.peak_bytes, first.extra_bytes) == (300, 100)


def test_each_round_has_every_contender_once_in_a_seeded_order():
    orders = []
    for seed in (1, 1, 2):
        meter = FakeMeter("abcd")
        measure([contender(name, 1.0) for name in "abcd"], meter, rounds=20, seed=seed)
        rounds = [meter.order[i : i + 4] for i in range(0, 80, 4)]
        assert all(sorted(names) == list("abcd") for names in rounds)
        assert len({tuple(names) for names in rounds}) > 10
        orders.append(rounds)
    assert orders[0] == orders[1] != orders[2]


def test_baseline_is_the_one_that_is_named():
    meter = FakeMeter("ab")
    first, second = measure(
        [contender("a", 2.0), contender("b", 4.0)], meter, rounds=3, baseline="b"
    )
    assert (first.ratio.median, second.ratio.median) == (0.5, 1.0)


def test_contender_that_fails_says_why_and_does_not_end_the_others():
    def fails():
        raise RuntimeError("CUDA out of memory. Tried to allocate 80.00 GiB\nmore lines")

    meter = FakeMeter("a")
    broken = Contender(name="b", version="1", run=fails)
    absent = Contender(name="c", version="", run=None)
    first, second, third = measure([contender("a", 2.0), broken, absent], meter, rounds=3)
    assert first.failure is None and len(first.seconds) == 3
    assert second.failure == "RuntimeError: CUDA out of memory. Tried to allocate 80.00 GiB"
    assert (second.seconds, second.spread, second.ratio, meter.freed) == ([], None, None, 1)
    assert third.failure == "not installed"


def test_baseline_that_fails_leaves_no_ratios():
    absent = Contender(name="c", version="", run=None)
    _, second = measure([absent, contender("a", 2.0)], FakeMeter("a"), rounds=3)
    assert second.spread is not None and second.ratio is None


def test_input_is_restored_before_each_run_and_not_timed():
    events = []

    def run():
        events.append("run")
        return "a", 1.0

    each = Contender(name="a", version="1", run=run, before=lambda: events.append("before"))
    measure([each], FakeMeter("a"), rounds=3, warm_up=2)
    assert events == ["before", "run"] * 6  # warm-up, memory, rounds


def test_bandwidth_and_error():
    each = contender("a", 2.0, num_bytes=4 * 10**9, error=lambda: 1e-3)
    (timing,) = measure([each], FakeMeter("a"), rounds=1)
    assert (timing.gigabytes_per_second, timing.error) == (pytest.approx(2.0), 1e-3)
