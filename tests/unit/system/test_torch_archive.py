"""Every bit of an archive of torch.save is accounted for, and nothing but damage is refused."""

import io

import pytest
import torch

from tst_megatron.system.pickles.inert_pickle import Placeholder, read_inert
from tst_megatron.system.pickles.restricted_unpickler import Refused
from tst_megatron.system.pickles.torch_archive import archive_problem, record_in


def archive_of(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    "value",
    [torch.arange(9.0), torch.empty(0), [None], {"a": torch.ones(3), "b": torch.zeros(1 << 19)}],
    ids=["tensor", "empty", "object", "two"],
)
def test_what_torch_saves_is_whole_in_memory_and_in_a_file(value, tmp_path):
    data = archive_of(value)
    assert archive_problem(io.BytesIO(data)) is None
    torch.save(value, tmp_path / "named.pt")
    with (tmp_path / "named.pt").open("rb") as file:
        assert archive_problem(file) is None


@pytest.mark.parametrize("value", [torch.arange(5.0), torch.empty(0)], ids=["five", "none"])
def test_every_flipped_bit_is_noticed(value):
    data = archive_of(value)
    for position in range(8 * len(data)):
        changed = bytearray(data)
        changed[position >> 3] ^= 1 << (position & 7)
        assert archive_problem(io.BytesIO(changed)) is not None, divmod(position, 8)


def test_every_length_but_the_right_one_is_noticed():
    data = archive_of([None])
    for length in range(len(data)):
        assert archive_problem(io.BytesIO(data[:length])) is not None
    for more in (b"\0", b"PK", data):
        assert archive_problem(io.BytesIO(data + more)) is not None
        assert archive_problem(io.BytesIO(more + data)) is not None


@pytest.mark.parametrize("data", [b"", b"PK\5\6", bytes(22), bytes(200)])
def test_what_is_no_archive_is_a_problem_and_no_error(data):
    assert archive_problem(io.BytesIO(data)) is not None


def test_a_record_is_read_by_its_name():
    data = io.BytesIO(archive_of(torch.arange(4.0)))
    assert record_in(data, "data/0") == torch.arange(4.0).numpy().tobytes()
    with pytest.raises(ValueError, match="it has no data/1"):
        record_in(data, "data/1")


def test_plain_values_are_read_and_the_rest_is_a_placeholder():
    value = {"step": 3, "tensor": torch.ones(2), "dtype": torch.float32}
    read = read_inert(io.BytesIO(archive_of([value])))
    assert read[0]["step"] == 3
    assert isinstance(read[0]["tensor"], Placeholder)
    # A dtype is a global of torch, not the result of a call.
    assert issubclass(read[0]["dtype"], Placeholder)


class Touch:
    def __reduce__(self):
        return print, ("this pickle ran",)


def test_what_no_checkpoint_holds_is_refused_and_not_called(capsys):
    with pytest.raises(Refused, match="names .*print, which no checkpoint holds"):
        read_inert(io.BytesIO(archive_of([Touch()])))
    assert capsys.readouterr().out == ""
