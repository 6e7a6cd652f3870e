"""One pass over a token file, against loops over its documents."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tst_megatron.data.tokenizer.facts import TokenizerFacts
from tst_megatron.data.tokens.counts import count_tokens, entropy_nats
from tst_megatron.data.tokens.format import bin_path
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.tokens.writer import IndexedWriter
from tst_megatron.data.verify import token_scan as scanning
from tst_megatron.data.verify.token_scan import scan

BOS, EOD = 1, 2
UINT16, INT32 = 500, 200_000


def facts(vocab_size=UINT16, bos_id=None, special_tokens_in_text=False):
    return TokenizerFacts(
        kind="SentencePiece",
        sha256="",
        vocab_size=vocab_size,
        bos_id=bos_id,
        eod_id=EOD,
        special_tokens_in_text=special_tokens_in_text,
    )


def write(prefix: Path, documents, vocab_size=UINT16) -> IndexedReader:
    with IndexedWriter(prefix, vocab_size=vocab_size) as writer:
        for document in documents:
            writer.add_document(document)
        writer.finish(allow_empty=True)
    return IndexedReader(prefix)


def scanned(reader, **settings):
    """The scan, and the hash of every document in order."""
    hashes = []

    def take(first, block):
        assert first == len(hashes)
        hashes.extend(block.tolist())

    steps = []
    found = scan(reader, facts(**settings), take_hashes=take, advance=steps.append)
    assert sum(steps) == bin_path(reader.prefix).stat().st_size
    return found, hashes


def faults(found):
    """Kind of fault to how often it was found."""
    return {
        problem.split(": ", 1)[1].split(",")[0]: int(problem.split(" time")[0].split(", ")[-1])
        for problem in found.problems
    }


def expected_faults(documents, bos_id):
    kinds = Counter()
    for document in documents:
        kinds[f"no EOD ({EOD}) at the end of a document"] += document[-1] != EOD
        kinds[f"EOD ({EOD}) inside a document"] += document[:-1].count(EOD)
        if bos_id is not None:
            kinds[f"no BOS ({bos_id}) at the start of a document"] += document[0] != bos_id
    return {kind: number for kind, number in kinds.items() if number}


def hash_of(document):
    return sum(x * pow(scanning._BASE, i, 2**64) for i, x in enumerate(document)) % 2**64


ids = st.integers(0, 5) | st.integers(0, UINT16 - 1)
some_documents = st.lists(st.lists(ids, min_size=1, max_size=12), max_size=12)


@settings(deadline=None)
@given(
    documents=some_documents,
    block=st.integers(1, 9),
    vocab_size=st.sampled_from([UINT16, INT32]),
    bos_id=st.sampled_from([None, BOS]),
)
def test_any_file_is_read_as_a_loop_over_its_documents_reads_it(
    tmp_path_factory, documents, block, vocab_size, bos_id
) -> None:
    reader = write(tmp_path_factory.mktemp("any") / "train", documents, vocab_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "BLOCK_TOKENS", block)
        found, hashes = scanned(reader, vocab_size=vocab_size, bos_id=bos_id)
    assert found.sha256 == hashlib.sha256(bin_path(reader.prefix).read_bytes()).hexdigest()
    flat = [token for document in documents for token in document]
    counts = np.bincount(np.array(flat, dtype=np.int64), minlength=vocab_size)
    assert np.array_equal(found.counts, counts)
    assert faults(found) == expected_faults(documents, bos_id)
    assert hashes == [hash_of(document) for document in documents]


@pytest.mark.parametrize("block", [1, 3, 4, 5, 8, 1000])
@pytest.mark.parametrize("vocab_size", [UINT16, INT32])
def test_first_fault_of_each_kind_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, vocab_size: int
) -> None:
    monkeypatch.setattr(scanning, "BLOCK_TOKENS", block)
    documents = [[BOS, 9, 8, EOD], [7, 7], [BOS, EOD, 5, EOD, EOD], [6, EOD], [BOS, 4]]
    reader = write(tmp_path / "train", documents, vocab_size)
    found = scanned(reader, vocab_size=vocab_size, bos_id=BOS)[0].problems
    inside, start, end = sorted(found, key=lambda problem: problem.split(": ")[1])
    path = bin_path(tmp_path / "train")
    assert end == (
        f"{path}: no EOD (2) at the end of a document, 2 times, first in document 1 at raw token 5 "
        "of the file. Prepare the text again."
    )
    assert "EOD (2) inside a document, 2 times, first in document 2 at raw token 7 of" in inside
    assert "no BOS (1) at the start of a document, 2 times, first in document 1 at raw" in start


def test_eod_in_text_is_no_fault_where_text_may_spell_it(tmp_path: Path) -> None:
    reader = write(tmp_path / "train", [[EOD, 5, EOD]])
    assert scanned(reader, special_tokens_in_text=True)[0].problems == []
    assert faults(scanned(reader)[0]) == {"EOD (2) inside a document": 1}


@pytest.mark.parametrize(("dtype", "vocab_size"), [("<u2", UINT16), ("<i4", INT32)])
def test_ids_outside_the_vocabulary_are_named_and_not_counted(
    tmp_path: Path, dtype: str, vocab_size: int
) -> None:
    reader = write(tmp_path / "train", [[5, EOD], [5, 6, 7, EOD]], vocab_size)
    tokens = np.fromfile(bin_path(reader.prefix), dtype=dtype)
    tokens[3], tokens[4] = (vocab_size, 65535) if dtype == "<u2" else (-1, vocab_size)
    tokens.tofile(bin_path(reader.prefix))
    found, _ = scanned(IndexedReader(reader.prefix), vocab_size=vocab_size)
    (problem,) = found.problems
    assert f"an id outside the vocabulary (0 to {vocab_size - 1}), 2 times, first in" in problem
    assert "in document 1 at raw token 3" in problem
    assert found.counts.sum() == 4


def test_file_that_is_cut_short_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = write(tmp_path / "train", [[5, 6, EOD]] * 10)
    bin_path(reader.prefix).write_bytes(b"\x02\x00" * 29)
    with pytest.raises(OSError, match=r"train\.bin: was cut short while it was read"):
        scanned(reader)


def test_memory_of_a_scan_does_not_depend_on_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "BLOCK_TOKENS", 16)
    largest = []
    monkeypatch.setattr(
        scanning, "_check_documents", lambda block, *_: largest.append(len(block.ids))
    )
    scanned(write(tmp_path / "train", [[7] * 1000]))
    assert set(largest) == {16, 8} and len(largest) == 63


def test_entropy_of_counts() -> None:
    counts = np.zeros(8, dtype=np.int64)
    assert entropy_nats(counts) == 0.0
    assert count_tokens(np.array([1, 2, 1, 2], dtype=np.uint16), counts) == 4
    assert count_tokens(np.array([], dtype=np.uint16), counts) == 0
    assert entropy_nats(counts) == pytest.approx(np.log(2), rel=1e-15)
