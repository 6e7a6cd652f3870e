"""What stays free against a slow loop over single chunks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tst_megatron.data.stream.free_chunks import FreeChunks, Taken, left_of


def runs_of(free, num_units, unit_chunks):
    """[first unit, units, first chunk, chunks] of each run, from a set of (unit, chunk)."""
    runs = []
    for unit in range(num_units):
        chunk = 0
        while chunk < unit_chunks:
            length = 0
            while (unit, chunk + length) in free:
                length += 1
            if (
                length
                and runs
                and runs[-1][0] + runs[-1][1] == unit
                and runs[-1][2:] == [chunk, length]
            ):
                runs[-1][1] += 1
            elif length:
                runs.append([unit, 1, chunk, length])
            chunk += length + 1
    return runs


def samples_of(runs, num_inputs):
    """[(unit, chunk)] of the first chunk of each sample, in the order of the text."""
    return [
        (first_unit + unit, first_chunk + place * num_inputs)
        for first_unit, units, first_chunk, chunks in runs
        for unit in range(units)
        for place in range(chunks // num_inputs)
    ]


@st.composite
def free_sets(draw):
    """(units, chunks of a unit, a set of free (unit, chunk)) with many alike neighbours."""
    unit_chunks = draw(st.integers(1, 8))
    patterns = st.lists(st.booleans(), min_size=unit_chunks, max_size=unit_chunks)
    units = [
        pattern
        for pattern, times in draw(
            st.lists(st.tuples(patterns, st.integers(1, 5)), min_size=1, max_size=5)
        )
        for _ in range(times)
    ]
    free = {(u, c) for u, pattern in enumerate(units) for c in range(unit_chunks) if pattern[c]}
    return len(units), unit_chunks, free


@settings(deadline=None, max_examples=400)
@given(st.data(), free_sets(), st.sampled_from([1, 2, 3, 4]))
def test_what_stays_free_is_that_of_single_chunks(data, units, num_inputs):
    num_units, unit_chunks, free = units
    runs = runs_of(free, num_units, unit_chunks)
    samples = samples_of(runs, num_inputs)
    first = data.draw(st.integers(0, len(samples)))
    is_taken = data.draw(st.lists(st.booleans(), max_size=len(samples) - first))
    numbers = [*range(first), *(first + n for n, taken in enumerate(is_taken) if taken)]
    for unit, chunk in (samples[number] for number in numbers):
        free = free - {(unit, chunk + k) for k in range(num_inputs)}

    columns = np.array(runs, dtype=np.int64).reshape(-1, 4).T
    names = ("first_unit", "num_units", "first_chunk", "num_chunks")
    taken = Taken(num_inputs=num_inputs, first=first, is_taken=np.array(is_taken, dtype=bool))
    left = left_of(FreeChunks(**dict(zip(names, columns, strict=True))), taken)
    assert np.stack(left.columns, axis=1).tolist() == runs_of(free, num_units, unit_chunks)


def test_whole_units_are_one_run():
    whole = FreeChunks.of_units(1000, 16)
    assert [column.tolist() for column in whole.columns] == [[0], [1000], [0], [16]]
    half = left_of(whole, Taken(num_inputs=16, first=0, is_taken=np.arange(10) < 4))
    assert [column.tolist() for column in half.columns] == [[4], [996], [0], [16]]
    assert (
        len(
            left_of(whole, Taken(num_inputs=1, first=16000, is_taken=half.first_unit < 0)).columns[
                0
            ]
        )
        == 0
    )
