import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tst_megatron.data.tokens import reader as reading
from tst_megatron.data.tokens import writer as writing
from tst_megatron.data.tokens.format import bin_path, idx_path, token_dtype
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.tokens.writer import IndexedFacts, IndexedWriter

DOCUMENTS = [[5, 6, 7, 2], [2], [499, 0, 2]]


def write(
    prefix: Path, documents: list[list[int]] = DOCUMENTS, vocab_size: int = 500
) -> IndexedFacts:
    with IndexedWriter(prefix, vocab_size=vocab_size) as writer:
        for document in documents:
            writer.add_document(document)
        return writer.finish()


@pytest.mark.parametrize("vocab_size", [500, 200_000])
def test_reader_returns_what_the_writer_was_given(tmp_path: Path, vocab_size: int) -> None:
    facts = write(tmp_path / "v1.train", vocab_size=vocab_size)
    reader = IndexedReader(tmp_path / "v1.train")
    assert (facts.num_documents, facts.num_tokens) == (3, 8)
    assert (reader.num_documents, reader.num_tokens) == (3, 8)
    assert reader.dtype == token_dtype(vocab_size)
    assert reader.document_lengths.dtype == np.int32
    assert reader.document_lengths.tolist() == [4, 1, 3]
    assert [reader.tokens(number).tolist() for number in range(3)] == DOCUMENTS
    assert reader.tokens(0, 1, 2).tolist() == [6, 7]
    assert reader.tokens(2, 3).tolist() == []


def test_files_have_the_documented_layout(tmp_path: Path) -> None:
    write(tmp_path / "train")
    tokens = np.array([5, 6, 7, 2, 2, 499, 0, 2], dtype="<u2")
    assert bin_path(tmp_path / "train").read_bytes() == tokens.tobytes()
    index = idx_path(tmp_path / "train").read_bytes()
    assert index == b"".join(
        [
            b"MMIDIDX\x00\x00",
            np.array([1], dtype="<u8").tobytes(),
            b"\x08",
            np.array([3, 4], dtype="<u8").tobytes(),
            np.array([4, 1, 3], dtype="<i4").tobytes(),
            np.array([0, 8, 10], dtype="<i8").tobytes(),
            np.array([0, 1, 2, 3], dtype="<i8").tobytes(),
        ]
    )


def test_many_documents_at_once_give_the_same_files(tmp_path: Path) -> None:
    expected = write(tmp_path / "one")
    with IndexedWriter(tmp_path / "many", vocab_size=500) as writer:
        writer.add_documents(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32))
        tokens = np.array([token for document in DOCUMENTS for token in document])
        writer.add_documents(tokens, np.array([4, 1, 3], dtype=np.int32))
        assert writer.num_documents == 3
        assert writer.finish() == expected


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_index_written_in_blocks_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    expected = write(tmp_path / "whole")
    for module in (reading, writing):
        monkeypatch.setattr(module, "DOCUMENTS_PER_BLOCK", block)
    assert write(tmp_path / "blocks") == expected
    IndexedReader(tmp_path / "blocks").check()


def test_finishing_takes_no_memory_for_each_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "DOCUMENTS_PER_BLOCK", 1000)
    number = 2_000_000
    with IndexedWriter(tmp_path / "many", vocab_size=500) as writer:
        writer.add_documents(np.ones(number, dtype="<u2"), np.ones(number, dtype=np.int32))
        tracemalloc.start()
        writer.finish()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # The fingerprint reads the 4 MB of the .bin at once.
    assert peak < 3 * number


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(65_499, "uint16"), (65_500, "int32"), (200_000, "int32")]
)
def test_token_dtype_follows_megatron(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size).name == dtype


def test_writer_leaves_nothing_when_it_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyError), IndexedWriter(tmp_path / "train", vocab_size=500) as writer:
        writer.add_document([1, 2])
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_writer_leaves_only_the_pair_when_finished(tmp_path: Path) -> None:
    write(tmp_path / "train")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.bin", "train.idx"]


def test_writer_refuses_zero_documents(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train: no documents, at least one.*Give more text"):
        write(tmp_path / "train", documents=[])
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_an_empty_document(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train: document 1 has no tokens.*Leave empty"):
        write(tmp_path / "train", documents=[[1], []])


@pytest.mark.parametrize("token", [-1, 500])
def test_writer_refuses_ids_outside_the_vocabulary(tmp_path: Path, token: int) -> None:
    with pytest.raises(ValueError, match=r"documents from 1 on hold.*vocabulary has 0 to 499"):
        write(tmp_path / "train", documents=[[1], [3, token]])


def test_reader_names_the_missing_file(tmp_path: Path) -> None:
    write(tmp_path / "train")
    idx_path(tmp_path / "train").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.idx: no such file.*without extension"):
        IndexedReader(tmp_path / "train")


def test_reader_refuses_a_shortened_bin(tmp_path: Path) -> None:
    write(tmp_path / "train")
    bin_path(tmp_path / "train").write_bytes(b"\x00" * 10)
    with pytest.raises(ValueError, match=r"10 bytes, its index describes 8 tokens of 2 bytes"):
        IndexedReader(tmp_path / "train")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"MMIDIDX", r"7 bytes are too few for an index"),
        (b"x" * 200, r"magic b'xxxxxxxxx'.*unknown.*Prepare the text again"),
    ],
)
def test_reader_refuses_a_foreign_index(tmp_path: Path, index: bytes, message: str) -> None:
    write(tmp_path / "train")
    idx_path(tmp_path / "train").write_bytes(index)
    with pytest.raises(ValueError, match=message):
        IndexedReader(tmp_path / "train")


def test_reader_refuses_a_shortened_index(tmp_path: Path) -> None:
    write(tmp_path / "train")
    path = idx_path(tmp_path / "train")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"101 bytes, its header promises 102"):
        IndexedReader(tmp_path / "train")


def test_reader_refuses_documents_of_several_sequences(tmp_path: Path) -> None:
    write(tmp_path / "train")
    path = idx_path(tmp_path / "train")
    index = bytearray(path.read_bytes())[:-8]
    index[26:34] = (3).to_bytes(8, "little")
    path.write_bytes(index)
    with pytest.raises(ValueError, match=r"3 sequences in 2 documents.*without sentence splitting"):
        IndexedReader(tmp_path / "train")


@pytest.mark.parametrize(
    ("document", "offset", "length", "message"),
    [
        (3, 0, 1, r"document 3, the file has 0 to 2"),
        (-1, 0, 1, r"document -1, the file has 0 to 2"),
        (0, 3, 2, r"tokens \[3, 5\) of document 0, which has 4"),
        (0, -1, 2, r"tokens \[-1, 1\) of document 0"),
    ],
)
def test_reader_refuses_ranges_outside_a_document(
    tmp_path: Path, document: int, offset: int, length: int, message: str
) -> None:
    write(tmp_path / "train")
    with pytest.raises(IndexError, match=message):
        IndexedReader(tmp_path / "train").tokens(document, offset, length)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (34, "document 1 is empty or does not start where the one before it ends"),
        # An offset inside a token, which another reader would follow.
        (34 + 3 * 4 + 8, "document 1 is empty or does not start where the one before it ends"),
        (34 + 3 * 12 + 16, "its document index skips or repeats a sequence at document 2"),
    ],
)
def test_check_finds_each_part_of_the_index_that_is_wrong(
    tmp_path: Path, place: int, message: str
) -> None:
    write(tmp_path / "train")
    IndexedReader(tmp_path / "train").check()
    path = idx_path(tmp_path / "train")
    content = bytearray(path.read_bytes())
    content[place] += 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"train\.idx: {message}"):
        IndexedReader(tmp_path / "train").check()


def test_documents_are_found_by_their_place_in_the_file(tmp_path: Path) -> None:
    write(tmp_path / "train")
    reader = IndexedReader(tmp_path / "train")
    assert [reader.document_at(position) for position in range(9)] == [0, 0, 0, 0, 1, 2, 2, 2, 3]
    assert reader.starts(0, 3).tolist() == [0, 4, 5] and reader.starts(1, 2).tolist() == [4]
