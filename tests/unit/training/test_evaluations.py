"""Losses of held-out sequences: their order, their parts, and the files that keep them."""

import io
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest

from tst_megatron.system.records import Damaged
from tst_megatron.training.report.evaluations import (
    BlockLosses,
    Parts,
    drop_evaluations_after,
    file_of,
    frequency_parts,
    list_evaluations,
    places_of_rank,
    position_edges,
    read_blocks,
    write_blocks,
)


def blocks(num_sequences=6, length=8):
    """Losses of each position, and a mask, summed up by definition."""
    generator = np.random.default_rng(3)
    losses = generator.random((num_sequences, length)) * 5
    counts = generator.random((num_sequences, length)) < 0.8
    edges = np.arange(5) * 2
    parts = [slice(first, first + 2) for first in edges[:-1]]
    return BlockLosses(
        loss_sum=(losses * counts).sum(axis=1),
        num_positions=counts.sum(axis=1),
        by_position=Parts(
            edges=edges,
            loss_sum=np.stack([(losses * counts)[:, p].sum(axis=1) for p in parts], axis=1),
            num_positions=np.stack([counts[:, p].sum(axis=1) for p in parts], axis=1),
        ),
        by_frequency=Parts(
            edges=np.array([1, 2]),
            loss_sum=(losses * counts).sum(axis=1, keepdims=True),
            num_positions=counts.sum(axis=1, keepdims=True),
        ),
    )


def assert_equal(found, wanted):
    np.testing.assert_array_equal(found.loss_sum, wanted.loss_sum)
    np.testing.assert_array_equal(found.num_positions, wanted.num_positions)
    for name in ("by_position", "by_frequency"):
        one, other = getattr(found, name), getattr(wanted, name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one.edges, other.edges)
            np.testing.assert_array_equal(one.loss_sum, other.loss_sum)
            np.testing.assert_array_equal(one.num_positions, other.num_positions)


# --- order and parts ------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_ranks", "micro_batch"), [(1, 1), (1, 4), (2, 3), (3, 2), (4, 1)])
def test_places_are_those_that_ranks_take_in_turns(num_ranks, micro_batch):
    """Dealt out one by one, as a person would: a micro-batch to each rank, then from the first."""
    num_micro_batches = 5
    hands = [[] for _ in range(num_ranks)]
    for place in range(num_ranks * micro_batch * num_micro_batches):
        hands[place // micro_batch % num_ranks].append(place)
    for rank, hand in enumerate(hands):
        places = places_of_rank(
            num_micro_batches, micro_batch_size=micro_batch, rank=rank, num_ranks=num_ranks
        )
        assert places.tolist() == hand


@pytest.mark.parametrize(
    ("length", "edges"),
    [
        (32, [0, 4, 8, 12, 16, 20, 24, 28, 32]),
        (20, [0, 4, 8, 12, 16, 20]),
        (9, [0, 3, 6, 9]),
        (11, [0, 11]),
        (5, [0, 1, 2, 3, 4, 5]),
        (1, [0, 1]),
    ],
)
def test_positions_are_divided_into_equal_parts_of_which_there_are_eight_at_most(length, edges):
    assert position_edges(length).tolist() == edges


def test_ids_are_divided_by_how_often_they_occur_at_powers_of_two():
    counts = np.array([0, 1, 2, 3, 4, 7, 8, 9])
    edges, parts = frequency_parts(counts)
    assert edges.tolist() == [1, 2, 4, 8, 16]
    assert parts.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for count, part in zip(counts[1:], parts[1:], strict=True):
        assert edges[part] <= count < edges[part + 1]


def test_large_counts_at_a_power_of_two_are_in_the_part_that_begins_there():
    counts = np.array([2**k + more for k in range(1, 45) for more in (-1, 0, 1)])
    edges, parts = frequency_parts(counts)
    assert (edges[parts] <= counts).all() and (counts < edges[parts + 1]).all()


# --- files ----------------------------------------------------------------------------------------


def test_losses_are_read_as_they_were_written(tmp_path):
    path = file_of(tmp_path / "evaluations", "validation", 250)
    assert path.name == "validation-0000250.npz"
    write_blocks(path, blocks())
    assert_equal(read_blocks(path), blocks())
    assert read_blocks(path).loss_mean == pytest.approx(
        blocks().loss_sum.sum() / blocks().num_positions.sum(), rel=1e-15
    )
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_same_losses_are_the_same_bytes(tmp_path):
    for name in ("one.npz", "other.npz"):
        write_blocks(tmp_path / name, blocks())
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()


def test_parts_are_optional(tmp_path):
    plain = replace(blocks(), by_position=None, by_frequency=None)
    write_blocks(tmp_path / "plain.npz", plain)
    assert_equal(read_blocks(tmp_path / "plain.npz"), plain)


def test_arrays_have_the_names_and_types_that_the_docstring_says(tmp_path):
    write_blocks(tmp_path / "file.npz", blocks())
    with np.load(tmp_path / "file.npz") as file:
        found = {name: (str(file[name].dtype), file[name].shape) for name in file.files}
    assert found == {
        "loss_sum": ("float64", (6,)),
        "num_positions": ("int64", (6,)),
        "position_edges": ("int64", (5,)),
        "loss_by_position": ("float64", (6, 4)),
        "num_by_position": ("int64", (6, 4)),
        "frequency_edges": ("int64", (2,)),
        "loss_by_frequency": ("float64", (6, 1)),
        "num_by_frequency": ("int64", (6, 1)),
    }


def test_losses_that_are_no_numbers_are_kept(tmp_path):
    """A run that diverges has them, and its reader must see it."""
    plain = replace(blocks(), by_position=None, by_frequency=None)
    plain.loss_sum[2] = np.nan
    write_blocks(tmp_path / "file.npz", plain)
    assert np.isnan(read_blocks(tmp_path / "file.npz").loss_sum[2])


def arrays_with(**changes):
    """Write an archive with other arrays; None leaves one out."""

    def damage(path):
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files} | changes
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})

    return damage


def write(content):
    return lambda path: path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def single_array(path):
    content = io.BytesIO()
    np.save(content, np.arange(3))
    path.write_bytes(content.getvalue())


class _Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def pickled_array(path):
    with path.open("wb") as file:
        np.savez(file, loss_sum=np.array([_Runs()], dtype=object), num_positions=np.array([1]))


DAMAGE = {
    "empty": (write(b""), "is no whole archive"),
    "cut": (cut, "is no whole archive"),
    "flipped byte": (flip, "is no whole archive"),
    "garbage": (write(bytes(range(256)) * 9), "is no whole archive"),
    "pickle": (write(pickle.dumps(_Runs())), "is no whole archive"),
    "array of pickles": (pickled_array, "is no whole archive"),
    "one array": (single_array, "is no archive of arrays"),
    "no losses": (arrays_with(loss_sum=None), "holds no 'loss_sum'"),
    "no counts": (arrays_with(num_positions=None), "holds no 'num_positions'"),
    "words": (arrays_with(loss_sum=np.array(list("abcdef"))), "no 'loss_sum' that fits"),
    "a table": (arrays_with(loss_sum=np.zeros((6, 2))), "no 'loss_sum' that fits"),
    "fractions": (arrays_with(num_positions=np.ones(6)), "no 'num_positions' that fits"),
    "other length": (arrays_with(num_positions=np.ones(5, dtype=int)), "other shapes"),
    "below 0": (arrays_with(num_positions=np.full(6, -1)), "counts less than nothing"),
    "no sequence": (
        arrays_with(loss_sum=np.zeros(0), num_positions=np.zeros(0, dtype=int)),
        "holds no sequence",
    ),
    "no edges": (arrays_with(position_edges=None), "no 'position_edges' that fits"),
    "few edges": (arrays_with(frequency_edges=np.array([1])), "no 'frequency_edges' that fits"),
    "half the parts": (arrays_with(num_by_position=None), "holds no 'num_by_position'"),
    "parts of others": (
        arrays_with(num_by_position=np.ones((6, 4), dtype=int)),
        "do not add up to 'num_positions'",
    ),
    "fewer parts": (
        arrays_with(loss_by_position=np.zeros((5, 4)), num_by_position=np.ones((5, 4), dtype=int)),
        "do not add up to 'num_positions'",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_refused_with_what_is_wrong(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "validation-0000250.npz"
    write_blocks(path, blocks())
    damage, words = DAMAGE[kind]
    damage(path)
    with pytest.raises(Damaged, match=words):
        read_blocks(path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_and_a_folder_in_its_place_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz: there is no such file"):
        read_blocks(tmp_path / "none.npz")
    with pytest.raises(Damaged, match="is a folder"):
        read_blocks(tmp_path)


# --- the folder -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Evaluations after steps 2, 4 and 12,345,678, a test after the last, and other files."""
    for event, step in (("validation", 4), ("validation", 2), ("test", 12_345_678)):
        write_blocks(file_of(tmp_path, event, step), blocks())
    write_blocks(file_of(tmp_path, "validation", 12_345_678), blocks())
    for name in (".validation-0000009.npz.host.12", "validation-9.npz", "notes-0000009.npz"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_evaluations_are_listed_by_event_and_in_the_order_of_steps(folder):
    assert list(list_evaluations(folder)) == [2, 4, 12_345_678]
    assert list_evaluations(folder)[4] == folder / "validation-0000004.npz"
    assert list(list_evaluations(folder, "test")) == [12_345_678]
    assert list_evaluations(folder / "none") == {}


def test_evaluations_of_later_steps_are_deleted_and_nothing_else(folder):
    before = {path.name for path in folder.iterdir()}
    drop_evaluations_after(folder, 4)
    gone = before - {path.name for path in folder.iterdir()}
    assert gone == {"validation-12345678.npz", "test-12345678.npz"}
    drop_evaluations_after(folder, 3)
    assert list(list_evaluations(folder)) == [2]
    drop_evaluations_after(folder / "none", 0)
