"""The example in tst_megatron/data/README.md and in the docstring of plan.py."""

from pathlib import Path

from streams import make_corpora, make_plan, open_stream


def test_the_worked_example_is_what_the_code_does(tmp_path: Path) -> None:
    corpora = make_corpora(tmp_path, (1.0, [38]))
    plan = make_plan(
        corpora, [(2, 1), (1, 2)], num_steps=3, length=4, batch=2, unit_chunks=4, seed=3
    )
    stream = open_stream(plan, corpora)
    assert plan.units_per_epoch == (2,) and plan.num_tail_tokens(0) == 6
    samples = [stream.tokens(sample).tolist() for sample in range(plan.num_samples)]
    assert samples == [
        [*range(8, 16), 16, 17],
        [*range(16, 24), 24, 25],
        [*range(0, 4), 4],
        [*range(28, 32), 32],
        [*range(24, 28), 28],
        [*range(4, 8), 8],
    ]
    places = [(place.unit, place.chunk) for place in map(plan.place, range(plan.num_samples))]
    assert places == [(1, 2), (0, 0), (1, 0), (0, 3), (0, 2), (1, 1)]
