"""What can be said of a recipe whose text is not prepared yet."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tst_megatron.data.stream.corpora import missing_texts, needed_lines
from tst_megatron.data.stream.plan import CorpusSize, StreamPlan, raw_tokens_of, smallest_text
from tst_megatron.schedule import Schedule, resolve_phases


def schedule_of(*entries: tuple, num_steps: int = 10, length: int = 8, batch: int = 4) -> Schedule:
    phases = resolve_phases(list(entries), num_steps=num_steps, inputs="bags", targets="bags")
    return Schedule(phases=phases, num_latent_positions=length, global_batch_size=batch)


def test_missing_text_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    for name in ("empty", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    (tmp_path / "pair.bin").touch()
    names = ("damaged", "empty", "nowhere", "pair", "nowhere/manifest.json")
    data = {tmp_path / name: 1.0 for name in names}
    assert missing_texts(data) == [
        tmp_path / name for name in ("empty", "nowhere", "nowhere/manifest.json")
    ]


def test_lines_say_what_each_folder_must_hold() -> None:
    schedule = schedule_of((4, 0.5), (1, 0.5))
    data = {Path("a"): 3.0, Path("b"): 1.0}
    # 5 steps of 4 samples of 4 chunks, then 5 of 4 samples of one: 3 of 4 of them are a's.
    assert needed_lines(data, schedule, unit_chunks=4, max_epochs=1) == [
        "a: the run reads 600 raw tokens of it; for one epoch its training text must have at least "
        "612 tokens",
        "b: the run reads 200 raw tokens of it; for one epoch its training text must have at least "
        "228 tokens",
    ]
    assert needed_lines(data, schedule, unit_chunks=4, max_epochs=2)[0] == (
        "a: the run reads 600 raw tokens of it; for 2 epochs its training text must have at least "
        "324 tokens"
    )
    assert needed_lines({}, schedule, unit_chunks=4, max_epochs=1) == []


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.1, 0.5, 1.0, 3.0]), min_size=1, max_size=3),
    num_steps=st.integers(2, 20),
    batch=st.integers(1, 5),
    max_epochs=st.integers(1, 3),
)
def test_smallest_text_is_enough_and_one_token_less_is_not(
    weights: list[float], num_steps: int, batch: int, max_epochs: int
) -> None:
    schedule = schedule_of((4, 0.5), (1, 0.5), num_steps=num_steps, batch=batch)
    wanted = raw_tokens_of(weights, schedule)
    smallest = [smallest_text(-(-n // max_epochs), schedule, unit_chunks=4) for n in wanted]

    def plan(*, short_of: int | None) -> StreamPlan:
        corpora = [
            CorpusSize(name=f"c{number}", weight=weight, num_tokens=size - (number == short_of))
            for number, (weight, size) in enumerate(zip(weights, smallest, strict=True))
        ]
        return StreamPlan(corpora, schedule, unit_chunks=4, seed=1, max_epochs=max_epochs)

    assert plan(short_of=None).raw_tokens_of_corpora() == wanted
    for number, tokens in enumerate(wanted):
        if tokens:
            with pytest.raises(ValueError, match=f"c{number}"):
                plan(short_of=number)
