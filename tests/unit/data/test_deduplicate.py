import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merge_shards import TEXTS, contents, write_jsonl
from pyarrow import parquet

from tst_megatron.data.prepare.merge import merge
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.text import units
from tst_megatron.data.tokens import append as join
from tst_megatron.data.tokens.append import append, first_occurrences
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.data.tokens.writer import IndexedWriter

OPTIONS = {"held_out_fraction": 0.1, "test_fraction": 0.2, "workers": 1}
REPEATED = [TEXTS[0], *TEXTS, TEXTS[3], *TEXTS[100:160], TEXTS[3] + " "]
ONCE = list(dict.fromkeys(REPEATED))


@given(st.lists(st.lists(st.integers(0, 5), max_size=9), min_size=1, max_size=5))
def test_first_occurrences_are_those_of_a_loop(parts: list[list[int]]) -> None:
    seen: set[int] = set()
    expected = []
    for part in parts:
        expected.append([])
        for value in part:
            expected[-1].append(value not in seen)
            seen.add(value)
    # Equal in one half of the hash or the other, too.
    hashes = [np.array([(v // 2, v % 2) for v in p], dtype=np.uint64).reshape(-1, 2) for p in parts]
    assert [mask.tolist() for mask in first_occurrences(hashes)] == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    data=st.data(),
    block=st.integers(1, 12),
)
def test_kept_documents_are_those_of_a_loop(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject, block: int
) -> None:
    keep = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    )
    folder = tmp_path_factory.mktemp("kept")
    documents = np.split(np.arange(sum(lengths)) % 50, np.cumsum(lengths)[:-1])
    with IndexedWriter(folder / "all", vocab_size=50) as writer:
        for document in documents:
            writer.add_document(document)
        facts = writer.finish()
    counts = np.zeros(50, dtype=np.int64)
    with (
        pytest.MonkeyPatch.context() as patch,
        IndexedWriter(folder / "kept", vocab_size=50) as new,
    ):
        patch.setattr(join, "BLOCK_BYTES", 2 * block)
        sums = (facts.bin_sha256, facts.idx_sha256)
        assert append(new, folder / "all", sums, counts=counts, keep=keep) is None
        new.finish(allow_empty=True)
    reader = IndexedReader(folder / "kept")
    expected = [
        document.tolist() for document, is_kept in zip(documents, keep, strict=True) if is_kept
    ]
    assert [reader.tokens(n).tolist() for n in range(reader.num_documents)] == expected
    together = np.concatenate([np.array([], dtype=np.int64), *expected]).astype(np.int64)
    assert counts.tolist() == np.bincount(together, minlength=50).tolist()


@pytest.mark.parametrize("unit_bytes", [3000, 1 << 26])
def test_copies_are_left_out_wherever_they_are(
    tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit_bytes: int
) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", unit_bytes)
    first = write_jsonl(tmp_path / "a.jsonl", REPEATED[:80])
    second = tmp_path / "b.parquet"
    parquet.write_table(pa.table({"text": REPEATED[80:]}), second, row_group_size=20)
    found = prepare(
        [first, second], tokenizer_model, tmp_path / "found", deduplicate=True, **OPTIONS
    )
    once = write_jsonl(tmp_path / "once.jsonl", ONCE)
    expected = prepare([once], tokenizer_model, tmp_path / "expected", **OPTIONS)
    assert found.left_out.duplicates == len(REPEATED) - len(ONCE) == 62
    assert found.unigram_entropy_nats == expected.unigram_entropy_nats
    files = contents(tmp_path / "found"), contents(tmp_path / "expected")
    assert all(files[0][name] == files[1][name] for name in files[1] if name != "manifest.json")
    kept = prepare([first, second], tokenizer_model, tmp_path / "kept", **OPTIONS)
    assert kept.left_out.duplicates == 0
    assert sum(split.documents for split in kept.splits().values()) == len(REPEATED)


def test_shards_are_without_copies_each_for_itself(tokenizer_model: Path, tmp_path: Path) -> None:
    for name, texts in (("a", [*TEXTS, TEXTS[0]]), ("b", [*TEXTS[:50], "own"])):
        source = write_jsonl(tmp_path / f"{name}.jsonl", texts)
        prepare([source], tokenizer_model, tmp_path / name, deduplicate=True, **OPTIONS)
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    assert merged.left_out.duplicates == 1
    assert sum(split.documents for split in merged.splits().values()) == len(TEXTS) + 51
    values = json.loads((tmp_path / "merged" / "manifest.json").read_text())
    assert values["recipe"]["deduplicate"] == "each shard"
    prepare([tmp_path / "a.jsonl"], tokenizer_model, tmp_path / "other", **OPTIONS)
    with pytest.raises(ValueError, match=r"other: deduplicate is False, in .*a it is True"):
        merge([tmp_path / "a", tmp_path / "other"], tmp_path / "refused")
