"""Our .bin/.idx pairs against Megatron's own reader and writer."""

from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import (  # type: ignore[import-untyped, unused-ignore]
    DType,
    IndexedDataset,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)

from tst_megatron.data.tokens.format import bin_path, idx_path, token_dtype
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.tokens.writer import IndexedWriter


def documents(vocab_size: int) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, vocab_size, size=n).tolist() for n in (7, 1, 300, 2)]


@pytest.fixture(params=[500, 65_499, 65_500, 128_256])
def vocab_size(request: pytest.FixtureRequest) -> int:
    """Vocabulary sizes on both sides of the change from uint16 to int32."""
    size: int = request.param
    return size


def write_ours(prefix: Path, vocab_size: int) -> None:
    with IndexedWriter(prefix, vocab_size=vocab_size) as writer:
        for document in documents(vocab_size):
            writer.add_document(document)
        writer.finish()


def write_megatrons(prefix: Path, vocab_size: int) -> None:
    builder = IndexedDatasetBuilder(
        get_bin_path(str(prefix)), dtype=DType.optimal_dtype(vocab_size)
    )
    for document in documents(vocab_size):
        builder.add_document(np.array(document), [len(document)])
    builder.finalize(get_idx_path(str(prefix)))


def test_token_dtype_is_megatrons(vocab_size: int) -> None:
    assert token_dtype(vocab_size) == np.dtype(DType.optimal_dtype(vocab_size))


def test_files_are_megatrons_byte_for_byte(tmp_path: Path, vocab_size: int) -> None:
    write_ours(tmp_path / "ours", vocab_size)
    write_megatrons(tmp_path / "theirs", vocab_size)
    for path in (bin_path, idx_path):
        assert path(tmp_path / "ours").read_bytes() == path(tmp_path / "theirs").read_bytes()


def test_megatron_reads_our_files(tmp_path: Path, vocab_size: int) -> None:
    write_ours(tmp_path / "ours", vocab_size)
    dataset = IndexedDataset(str(tmp_path / "ours"))
    assert len(dataset) == 4
    assert dataset.document_indices.tolist() == [0, 1, 2, 3, 4]
    assert [dataset[number].tolist() for number in range(4)] == documents(vocab_size)
    assert dataset.get(2, offset=5, length=9).tolist() == documents(vocab_size)[2][5:14]


def test_our_reader_reads_megatrons_files(tmp_path: Path, vocab_size: int) -> None:
    write_megatrons(tmp_path / "theirs", vocab_size)
    reader = IndexedReader(tmp_path / "theirs")
    assert reader.document_lengths.tolist() == [7, 1, 300, 2]
    assert [reader.tokens(number).tolist() for number in range(4)] == documents(vocab_size)
    assert reader.num_tokens == 310
