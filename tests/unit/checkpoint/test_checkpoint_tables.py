"""Do boxes cover a shape, and do the two tables of a description agree?"""

import copy
import itertools
import random

import pytest
import torch
from forged_checkpoints import save, weights
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from tst_megatron.checkpoint.content.tables import covers, shard_problems, table_problems


def covers_by_counting(shape, boxes):
    cells = torch.zeros(shape, dtype=torch.int64)
    for offsets, sizes in boxes:
        if any(
            start < 0 or start + size > whole
            for start, size, whole in zip(offsets, sizes, shape, strict=True)
        ):
            return False
        cells[
            tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
        ] += 1
    return bool((cells == 1).all())


def random_cut(shape, rng):
    """Boxes that cover a shape, no regular grid."""
    boxes = [((0,) * len(shape), shape)]
    for _ in range(rng.randrange(5)):
        offsets, sizes = boxes.pop(rng.randrange(len(boxes)))
        axis = rng.randrange(len(shape))
        at = rng.randrange(sizes[axis] + 1)
        for start, size in ((0, at), (at, sizes[axis] - at)):
            if size:
                new_offsets, new_sizes = list(offsets), list(sizes)
                new_offsets[axis], new_sizes[axis] = offsets[axis] + start, size
                boxes.append((tuple(new_offsets), tuple(new_sizes)))
    return boxes


def test_boxes_cover_a_shape_as_counting_its_cells_says():
    rng = random.Random(1)
    seen = {True: 0, False: 0}
    for _ in range(600):
        shape = tuple(rng.randrange(1, 5) for _ in range(rng.randrange(1, 4)))
        boxes = random_cut(shape, rng)
        rng.shuffle(boxes)
        if rng.random() < 0.6:
            number = rng.randrange(len(boxes))
            offsets, sizes = map(list, boxes[number])
            which = rng.choice([offsets, sizes])
            which[rng.randrange(len(shape))] += rng.choice([-1, 1])
            if min(sizes) < 1:
                continue
            boxes[number] = tuple(offsets), tuple(sizes)
        expected = covers_by_counting(shape, boxes)
        assert covers(shape, boxes) == expected, (shape, boxes)
        seen[expected] += 1
    assert min(seen.values()) > 100


@pytest.mark.parametrize(
    ("shape", "boxes", "expected"),
    [
        ((), [((), ())], True),
        ((), [], False),
        ((0, 3), [((0, 0), (0, 3))], True),
        ((4,), [], False),
        ((4,), [((0,), (4,)), ((0,), (4,))], False),
        ((4,), [((0,), (4,)), ((4,), (0,))], True),
        ((2, 2), [((0, 0), (2, 2, 1))], False),
        ((2, 2), [((0,), (2, 2))], False),
    ],
)
def test_boxes_of_odd_shapes(shape, boxes, expected):
    assert covers(shape, boxes) is expected


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("tables"), weights())


ROUTER = "decoder.layers.mlp.router.weight"


def _index(description, name):
    return next(index for index in description.storage_data if index.fqn == name)


def _place(description, name):
    return description.storage_data[_index(description, name)]


def _rename(description):
    place = description.storage_data.pop(_index(description, ROUTER))
    description.storage_data[MetadataIndex("another", torch.Size([0, 0, 0]))] = place


def _set(description, **values):
    for key, value in values.items():
        object.__setattr__(_place(description, ROUTER), key, value)


DAMAGE = {
    "not stored": (
        lambda d: d.storage_data.pop(_index(d, ROUTER)),
        f"{ROUTER} is described and not stored",
    ),
    "not described": (
        lambda d: d.state_dict_metadata.pop(ROUTER),
        f"{ROUTER} is stored and not described",
    ),
    "renamed": (_rename, f"{ROUTER} is described and not stored"),
    "object lost": (
        lambda d: d.state_dict_metadata.update({"x/shard_0_1": BytesStorageMetadata()}),
        "x/shard_0_1 is described and not stored",
    ),
    "shape": (
        lambda d: setattr(d.state_dict_metadata[ROUTER], "size", torch.Size([2, 3, 9])),
        f"the parts of {ROUTER} do not make up its shape (2, 3, 9)",
    ),
    "type": (
        lambda d: (
            setattr(d.state_dict_metadata[ROUTER].properties, "dtype", torch.complex128)
            or _set(d, length=700)
        ),
        f"{ROUTER} takes 700 bytes, and its values alone 768",
    ),
    "length": (lambda d: _set(d, length=90), f"{ROUTER} takes 90 bytes, and its values alone 96"),
    "start": (lambda d: _set(d, offset=_place(d, ROUTER).offset + 1), "a gap or an overlap in"),
    "another file": (lambda d: _set(d, relative_path="../x"), "'../x' is no file of a checkpoint"),
    "lost file": (lambda d: _set(d, relative_path="__9_0.distcp"), "__9_0.distcp is missing"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_tables_that_cannot_be_true_are_named(saved, name):
    description = FileSystemReader(saved).read_metadata()

    def found():
        places = description.storage_data
        return table_problems(description) + shard_problems(saved, places)

    assert found() == []
    description = copy.deepcopy(description)
    change, sentence = DAMAGE[name]
    change(description)
    assert any(sentence in problem for problem in found()), found()


def test_many_problems_of_one_kind_are_counted(saved):
    description = FileSystemReader(saved).read_metadata()
    description.storage_data.clear()
    found = table_problems(description)
    assert len(found) == 6
    assert found[-1] == f"{len(description.state_dict_metadata) - 5} more of this kind"
    assert len(list(itertools.chain(found))) == 6
