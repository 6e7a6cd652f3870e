"""Lengths of documents, against numpy on all of them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tst_megatron.data.tokens.format import idx_path
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.tokens.writer import IndexedWriter
from tst_megatron.data.verify import lengths as measuring
from tst_megatron.data.verify.lengths import Lengths, count_lengths, octaves


class Documents:
    """As much of a reader as lengths need."""

    def __init__(self, lengths) -> None:
        self.prefix = Path("train")
        self.document_lengths = np.array(lengths, dtype=np.int32)
        self.num_documents = len(lengths)


def counted(lengths, monkeypatch: pytest.MonkeyPatch, limit: int = 8, step: int = 3) -> Lengths:
    monkeypatch.setattr(measuring, "LONGEST_COUNTED", limit)
    monkeypatch.setattr(measuring, "DOCUMENTS_PER_STEP", step)
    return count_lengths(Documents(lengths))


some_lengths = st.lists(st.integers(1, 30) | st.integers(1, 2**31 - 1), min_size=1, max_size=40)


@settings(deadline=None)
@given(lengths=some_lengths, limit=st.integers(1, 40), step=st.integers(1, 9))
def test_numbers_are_those_of_the_whole_list(lengths, limit: int, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found = counted(lengths, patch, limit, step)
        edges = octaves(found), octaves(found, parts=4)
    assert found.num_documents == len(lengths)
    assert found.num_tokens == sum(lengths)
    assert found.longest == max(lengths)
    for percent in (0, 1, 50, 90, 99, 100):
        expected = np.percentile(lengths, percent, method="inverted_cdf")
        assert found.percentile(percent) == expected
    for length in range(1, limit + 2):
        assert found.fraction_below(length) == sum(n < length for n in lengths) / len(lengths)
    for each in edges:
        assert each[0] <= min(lengths) and max(lengths) < each[-1]
        inside = [
            [n for n in lengths if low <= n < high]
            for low, high in zip(each, each[1:], strict=False)
        ]
        assert list(found.bins(each)) == [(len(part), sum(part)) for part in inside]


def test_edges_are_powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    assert octaves(counted([3, 9, 16], monkeypatch)) == [2, 4, 8, 16, 32]


def test_memory_does_not_depend_on_the_number_of_documents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = []

    class Recorded(np.ndarray):
        def __getitem__(self, part):
            steps.append((part.start, part.stop))
            return np.asarray(super().__getitem__(part))

    monkeypatch.setattr(measuring, "DOCUMENTS_PER_STEP", 100)
    documents = Documents([7] * 250)
    documents.document_lengths = documents.document_lengths.view(Recorded)
    assert count_lengths(documents).counts[7] == 250
    assert steps == [(0, 100), (100, 200), (200, 300)]


def test_damaged_index_is_named(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "train", vocab_size=500) as writer:
        for _ in range(3):
            writer.add_document([5, 2])
        writer.finish()
    path = idx_path(tmp_path / "train")
    content = bytearray(path.read_bytes())
    content[34 + 4 : 34 + 8] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.idx: document 1 has -1 tokens.*data verify"):
        count_lengths(IndexedReader(tmp_path / "train"))
