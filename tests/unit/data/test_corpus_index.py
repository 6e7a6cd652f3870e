"""An index that stands under its name is whole and of its text; anything else is built again."""

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from streams import make_corpora, make_plan, open_stream, reader_of

from tst_megatron.data.stream import corpus_index as index_module
from tst_megatron.data.stream.corpus_index import FACTS_NAME, CorpusIndex, ensure_index, problem_of
from tst_megatron.data.stream.stream import TokenStream, index_facts
from tst_megatron.data.tokens.fingerprint import fingerprint
from tst_megatron.data.tokens.format import bin_path, idx_path
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.training.run.indexes import make_ready, wait_until_ready

DOCUMENTS = [50, 7, 90, 31, 64, 23, 1] * 30


@pytest.fixture
def corpora(tmp_path, monkeypatch):
    corpora = make_corpora(tmp_path, (1.0, DOCUMENTS))
    # Its manifest is a stand-in without files to compare; that has tests of its own.
    monkeypatch.setattr("tst_megatron.training.run.indexes.changed_text", lambda corpora: [])
    return corpora


@pytest.fixture
def plan(corpora):
    return make_plan(corpora, [(4, 3), (1, 1.0)], num_steps=9, length=8)


def folder_of(plan, corpora):
    return corpora[0].cache / index_facts(plan, corpora, 0, 0).name


def build(plan, corpora):
    """(number of indexes built, what was said)."""
    said = []
    facts = index_facts(plan, corpora, 0, 0)
    built = ensure_index(corpora[0].cache, facts, reader_of(corpora[0]), note=said.append)
    return built, said


def tokens_of(plan, corpora):
    stream = TokenStream(plan, corpora)
    return [stream.tokens(i).tolist() for i in range(plan.num_samples)]


def test_whole_index_is_kept_and_says_nothing(plan, corpora):
    assert build(plan, corpora) == (True, [])
    before = {p.name: p.stat().st_mtime_ns for p in folder_of(plan, corpora).iterdir()}
    assert build(plan, corpora) == (False, [])
    assert {p.name: p.stat().st_mtime_ns for p in folder_of(plan, corpora).iterdir()} == before
    assert [path.name for path in corpora[0].cache.iterdir()] == [folder_of(plan, corpora).name]


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def change_facts(file):
    values = json.loads(file.read_text())
    values["made from"]["seed"] = 77
    file.write_text(json.dumps(values))


DAMAGE = {
    "half a file": ("chunk-places.npy", truncate, "chunk-places.npy has"),
    "a changed byte": ("documents.npy", flip, "the content of documents.npy is damaged"),
    "a missing file": ("units.npy", lambda file: file.unlink(), "units.npy is missing"),
    "no facts": (FACTS_NAME, lambda file: file.unlink(), "index.json is missing"),
    "empty facts": (FACTS_NAME, lambda file: file.write_text(""), "index.json is damaged"),
    "half the facts": (FACTS_NAME, truncate, "index.json is damaged"),
    "facts of another run": (FACTS_NAME, change_facts, "was made from something else"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_index_is_noticed_named_and_built_again(plan, corpora, kind):
    build(plan, corpora)
    expected = tokens_of(plan, corpora)
    name, damage, said = DAMAGE[kind]
    damage(folder_of(plan, corpora) / name)
    built, notes = build(plan, corpora)
    assert built
    assert len(notes) == 1 and said in notes[0] and notes[0].endswith("it is built again")
    assert tokens_of(plan, corpora) == expected


def test_index_that_is_missing_or_torn_is_not_opened(plan, corpora):
    with pytest.raises(FileNotFoundError, match="there is no index. Build it with"):
        TokenStream(plan, corpora)
    build(plan, corpora)
    truncate(folder_of(plan, corpora) / "units.npy")
    with pytest.raises(ValueError, match=r"units\.npy has .* bytes, not .*data index RECIPE"):
        TokenStream(plan, corpora)


@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"unit_chunks": 4}, {"length": 4}],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_have_an_index_of_their_own(plan, corpora, change):
    options = {"length": 8, "num_steps": 9, **change}
    build(plan, corpora)
    other = make_plan(corpora, [(4, 3), (1, 1.0)], **options)
    assert folder_of(other, corpora) != folder_of(plan, corpora)
    assert build(other, corpora) == (True, [])
    assert build(plan, corpora) == (False, [])


def test_rewritten_text_has_another_index(plan, corpora):
    """The same name, size and lengths, other tokens: the fingerprint tells."""
    build(plan, corpora)
    before = corpora[0].manifest.train
    content = np.fromfile(bin_path(before.prefix), dtype="<i4")
    content[1000] += 1
    content.tofile(bin_path(before.prefix))
    assert fingerprint(bin_path(before.prefix)) != before.bin_fingerprint
    assert fingerprint(idx_path(before.prefix)) == before.idx_fingerprint
    split = replace(before, bin_fingerprint=fingerprint(bin_path(before.prefix)))
    facts = replace(index_facts(plan, corpora, 0, 0), bin_fingerprint=split.bin_fingerprint)
    assert facts.name != folder_of(plan, corpora).name


def test_killed_build_leaves_nothing_under_the_name_and_is_cleaned_up(plan, corpora, monkeypatch):
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(index_module, "_put_in_place", lambda *_: os._exit(9))
    process = context.Process(target=build, args=(plan, corpora))
    process.start()
    process.join()
    assert process.exitcode == 9
    left = list(corpora[0].cache.iterdir())
    assert len(left) == 1 and left[0].name.startswith(".index-")
    monkeypatch.undo()
    # It may be another job's, still at work; a day later it is not.
    assert build(plan, corpora) == (True, [])
    assert len(list(corpora[0].cache.iterdir())) == 2
    os.utime(left[0], (1e9, 1e9))
    shutil.rmtree(folder_of(plan, corpora))
    assert build(plan, corpora) == (True, [])
    assert [path.name for path in corpora[0].cache.iterdir()] == [folder_of(plan, corpora).name]


def _build_once(plan, corpora, start):
    start.wait()
    build(plan, corpora)
    TokenStream(plan, corpora)


@pytest.mark.parametrize("before", ["nothing", "a damaged one"])
def test_jobs_that_start_at_once_all_find_a_whole_index(plan, corpora, before):
    if before != "nothing":
        build(plan, corpora)
        truncate(folder_of(plan, corpora) / "documents.npy")
    context = multiprocessing.get_context("fork")
    start = context.Barrier(6)
    jobs = [context.Process(target=_build_once, args=(plan, corpora, start)) for _ in range(6)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 6
    assert [path.name for path in corpora[0].cache.iterdir()] == [folder_of(plan, corpora).name]
    assert problem_of(folder_of(plan, corpora), index_facts(plan, corpora, 0, 0), deep=True) is None


def test_index_is_the_same_however_many_documents_are_summed_at_a_time(plan, corpora, monkeypatch):
    build(plan, corpora)
    expected = tokens_of(plan, corpora)
    shutil.rmtree(corpora[0].cache)
    monkeypatch.setattr(index_module, "DOCUMENTS_PER_STEP", 7)
    build(plan, corpora)
    assert tokens_of(plan, corpora) == expected


def test_long_document_spans_several_chunks(tmp_path):
    corpora = make_corpora(tmp_path, (1.0, [1000, 3, 500]))
    plan = make_plan(corpora, [(2, 2), (1, 1.0)], num_steps=20, length=8, unit_chunks=2, batch=2)
    stream = open_stream(plan, corpora)
    for sample in range(plan.num_samples):
        corpus, spans = stream.spans(sample)
        place = plan.place(sample)
        assert corpus == 0
        assert sum(span.num_tokens for span in spans) == place.num_tokens == place.num_inputs * 9


def test_text_whose_index_contradicts_itself_is_refused(plan, corpora):
    prefix = corpora[0].manifest.train.prefix
    index = np.memmap(idx_path(prefix), dtype=np.uint8, mode="r+")
    reader = IndexedReader(prefix)
    start = len(index) - 8 * (reader.num_documents + 1) - 8 * reader.num_documents
    index[start + 8 * 5 : start + 8 * 6].view("<i8")[0] += 4
    index.flush()
    with pytest.raises(ValueError, match=r"train\.idx: document 5 is empty or does not start"):
        build(plan, corpora)


def test_cache_that_cannot_be_written_is_named_with_the_fix(plan, corpora):
    corpora[0].cache.write_text("a file")
    with pytest.raises(OSError, match="cannot be written: File exists. Make room, or name another"):
        make_ready(plan, corpora, Console(quiet=True))


@pytest.mark.parametrize("num_bytes", [100, 700, 2000])
def test_full_disk_is_said_and_nothing_is_left(plan, corpora, num_bytes):
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    process = context.Process(target=_build_with_no_room, args=(plan, corpora, num_bytes, said))
    process.start()
    process.join()
    assert process.exitcode == 0
    error, left = said.get()
    assert "cannot be written: File too large. Make room, or name another folder" in error
    assert left == []
    assert build(plan, corpora) == (True, [])


def test_room_for_a_mapped_file_is_taken_before_it_is_written(plan, corpora, monkeypatch):
    """Writing to a mapped page that has no room on the disk would end the process by a signal."""

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(OSError, match="cannot be written: No space left on device. Make room"):
        build(plan, corpora)


def _build_with_no_room(plan, corpora, num_bytes, said):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
    try:
        build(plan, corpora)
    except OSError as error:
        said.put((str(error), [path.name for path in corpora[0].cache.iterdir()]))


def test_whole_index_that_another_job_put_there_meanwhile_is_kept(plan, corpora, monkeypatch):
    """This job has seen a damaged one, and takes a look at what it takes away."""
    build(plan, corpora)
    looks = iter(["the content of units.npy is damaged"])
    look = index_module.problem_of
    monkeypatch.setattr(
        index_module, "problem_of", lambda *a, **k: next(looks, None) or look(*a, **k)
    )
    before = {path.name: path.stat().st_ino for path in folder_of(plan, corpora).iterdir()}
    assert build(plan, corpora) == (False, [])
    after = {path.name: path.stat().st_ino for path in folder_of(plan, corpora).iterdir()}
    assert after == before
    assert [path.name for path in corpora[0].cache.iterdir()] == [folder_of(plan, corpora).name]


def test_make_ready_builds_every_epoch_and_the_others_wait_for_it(corpora):
    plan = make_plan(corpora, [(1, 1.0)], num_steps=400, length=8, max_epochs=2)
    assert plan.epochs_of(0) == 2
    with pytest.raises(RuntimeError, match="there is no index, and rank 0 did not build it"):
        wait_until_ready(plan, corpora, seconds=0.0)
    assert make_ready(plan, corpora, Console(quiet=True)) == 2
    wait_until_ready(plan, corpora, seconds=0.0)
    assert make_ready(plan, corpora, Console(quiet=True)) == 0
    first, second = (
        CorpusIndex(corpora[0].cache, index_facts(plan, corpora, 0, epoch)) for epoch in (0, 1)
    )
    assert not np.array_equal(first._documents, second._documents)


@pytest.mark.parametrize("num_bytes", [0, 1, 2**24, 2**24 + 1, 2**25])
def test_fingerprint_sees_size_and_content(tmp_path, num_bytes):
    file = tmp_path / "file"
    content = np.random.RandomState(0).bytes(num_bytes)
    file.write_bytes(content)
    first = fingerprint(file)
    assert first == fingerprint(file)
    file.write_bytes(content + b"\0")
    assert fingerprint(file) != first
    if num_bytes:
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert fingerprint(file) != first
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert fingerprint(file) != first
