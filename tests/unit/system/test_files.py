import os
import resource
import socket

import pytest

from tst_megatron.system.files import (
    allow_open_files,
    file_sha256,
    folder_appearing_whole,
    write_beside,
)


def test_file_is_made_and_replaced_whole(tmp_path):
    path = tmp_path / "state.json"
    write_beside(path, "first é\n")
    assert path.read_text(encoding="utf-8") == "first é\n"
    write_beside(path, "2")
    assert path.read_text(encoding="utf-8") == "2"
    assert list(tmp_path.iterdir()) == [path]


def test_file_is_on_disk_before_it_takes_the_place_of_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    path.write_text("old")
    seen = []

    def fsync(descriptor):
        written = os.fstat(descriptor).st_size
        seen.append((path.read_text(), written))

    monkeypatch.setattr(os, "fsync", fsync)
    write_beside(path, "newer")
    # The file, then its folder: a rename is a change of the folder.
    assert seen[0] == ("old", 5)
    assert [text for text, _ in seen] == ["old", "newer"]
    assert path.read_text() == "newer"


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    path.write_text("old")

    def killed(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(OSError, match="no space left"):
        write_beside(path, "new")
    assert path.read_text() == "old"


def test_two_processes_do_not_share_the_file_beside(tmp_path, monkeypatch):
    beside = []
    monkeypatch.setattr(os, "fsync", lambda _: beside.extend(p.name for p in tmp_path.iterdir()))
    for process in (11, 12):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        write_beside(tmp_path / "a.json", "x")
    # Nor do processes of two nodes that have one number.
    host = socket.gethostname()
    names = {name for name in beside if name != "a.json"}
    assert names == {f".a.json.{host}.11", f".a.json.{host}.12"}


def test_folder_is_made_where_it_is_told_and_what_was_left_there_is_deleted(tmp_path):
    output, new = tmp_path / "output", tmp_path / "parts" / "joined"
    new.mkdir(parents=True)
    (new / "left").touch()
    with folder_appearing_whole(output, new) as folder:
        assert folder == new and list(folder.iterdir()) == [] and not output.exists()
        (folder / "a").write_text("1")
    assert (output / "a").read_text() == "1" and not new.exists()
    with pytest.raises(KeyError), folder_appearing_whole(tmp_path / "other", new):
        raise KeyError
    assert sorted(tmp_path.iterdir()) == [output, tmp_path / "parts"] and not new.exists()


def test_folder_and_all_its_files_are_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    output = tmp_path / "output"
    flushed = []

    def fsync(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        flushed.append((os.path.basename(name), output.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with folder_appearing_whole(output, tmp_path / "new") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
    assert flushed == [("a", False), ("sub", False), ("new", False), (tmp_path.name, True)]


def test_sum_of_a_file_is_that_of_its_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "a") == expected


def test_limit_of_open_files_is_raised_as_far_as_it_is_needed(monkeypatch):
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    allow_open_files(0)
    assert limits == [(1024, 4096)]
    allow_open_files(1000)
    assert limits[-1] == (2024, 4096)
    with pytest.raises(ValueError, match="4000 files .* allows a process 4096. Raise the limit"):
        allow_open_files(4000)


def test_few_files_are_opened_where_a_container_allows_no_more_than_1024(monkeypatch):
    limits = [(1024, 1024)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    allow_open_files(6)
    assert limits[-1] == (1024, 1024)
    with pytest.raises(ValueError, match="800 files .* allows a process 1024. Raise the limit"):
        allow_open_files(800)
