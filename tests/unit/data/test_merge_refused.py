"""What is refused to be merged, and what a merge that fails leaves: nothing."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from merge_shards import TEXTS, contents, edit, flip_last_byte, write_jsonl

from tst_megatron.data.prepare import merge as merging
from tst_megatron.data.prepare.merge import merge
from tst_megatron.data.prepare.output_folder import built_beside
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.tokenizer.train import train_sentencepiece


def test_all_mismatches_are_named_at_once(
    tokenizer_model: Path, training_texts: list[str], shards: list[Path], tmp_path: Path
) -> None:
    train_sentencepiece(training_texts, tmp_path / "other.model", vocab_size=900)
    source = write_jsonl(tmp_path / "different.jsonl", TEXTS[::2], key="body")
    prepare(
        [source],
        tmp_path / "other.model",
        tmp_path / "different",
        text_key="body",
        held_out_fraction=0.3,
        workers=1,
    )
    edit(shards[1] / "manifest.json", lambda values: values["rules"].update(split="by chance"))
    edit(shards[1] / "manifest.json", lambda values: values.update(dtype="int32"))
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "precious").write_text("")
    (shards[0] / "test.idx").unlink()
    absent = tmp_path / "absent"
    given = [*shards, tmp_path / "different", absent, shards[0] / ".." / "part0"]
    with pytest.raises(ValueError) as caught:
        merge(given, tmp_path / "output")
    lines = str(caught.value).splitlines()
    starts = [
        f"{absent}: no such manifest.",
        f"{shards[1]}: token type is 'int32', in {shards[0]} it is 'uint16'.",
        f"{shards[1]}: its split rule is 'by chance', this version's is",
        f"{tmp_path / 'different'}: tokenizer's sha256 is ",
        f"{tmp_path / 'different'}: tokenizer's vocab_size is 900, in",
        f"{tmp_path / 'different'}: splits is ['train', 'validation'], in",
        f"{tmp_path / 'different'}: text_key is 'body', in",
        f"{tmp_path / 'different'}: held_out_fraction is 0.3, in",
        f"{tmp_path / 'different'}: test_fraction is 0.0, in",
        f"{given[-1]}: is the same folder as {shards[0]}.",
        f"{tmp_path / 'output'}: exists and is not a prepared folder",
        f"{shards[0] / 'test.idx'}: no such file.",
        f"{given[-1] / 'test.idx'}: no such file.",
    ]
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    assert list(contents(tmp_path / "output")) == ["precious"]


def test_same_text_twice_is_refused(
    tokenizer_model: Path, shards: list[Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in contents(shards[0]).items():
        (copy / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        merge([*shards, copy], tmp_path / "merged")
    (same,) = str(caught.value).splitlines()
    assert same.startswith(
        f"{copy}: holds the same tokens as {shards[0]}. Each text is merged once"
    )
    assert not (tmp_path / "merged").exists()


def test_damaged_files_are_all_named_and_nothing_is_left(
    shards: list[Path], tmp_path: Path
) -> None:
    # Sizes stay, so only the content tells; the last id of a .bin becomes one of no vocabulary.
    damaged = [shards[0] / "train.bin", shards[1] / "train.idx", shards[1] / "test.bin"]
    for path in damaged:
        flip_last_byte(path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError) as caught:
        merge(shards, tmp_path / "merged")
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(path) for path in damaged]
    assert all("differs from its sha256 in manifest.json" in line for line in lines)
    assert sorted(tmp_path.iterdir()) == before


def test_missing_and_mixed_files_are_named_before_anything_is_copied(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "built_beside", lambda output: pytest.fail("it was begun"))
    (shards[0] / "train.bin").unlink()
    (shards[0] / "tokenizer.model").write_bytes(b"another")
    (shards[1] / "tokenizer.model").unlink()
    with (shards[1] / "test.bin").open("ab") as file:
        file.write(b"x")
    for end in ("bin", "idx"):
        (shards[1] / f"train.{end}").write_bytes((shards[1] / f"validation.{end}").read_bytes())
    with pytest.raises(ValueError) as caught:
        merge(shards, tmp_path / "merged")
    names = [line.split(": ")[0] for line in str(caught.value).splitlines()]
    assert names == [
        *(str(shards[0] / name) for name in ("tokenizer.model", "train.bin")),
        *(str(shards[1] / name) for name in ("tokenizer.model", "train.idx", "test.bin")),
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_merge_that_stops_half_way_leaves_nothing(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    copied: list[Path] = []

    def stop_at_the_third(*arguments: object, **options: object) -> Path | None:
        copied.append(tmp_path)
        if len(copied) == 3:
            assert (tmp_path / "merged.partial").is_dir()
            raise error
        return append(*arguments, **options)

    append = merging.append
    monkeypatch.setattr(merging, "append", stop_at_the_third)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error):
        merge(shards, tmp_path / "merged")
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.setattr(merging, "append", append)
    assert not merge(shards, tmp_path / "merged").reused


def test_what_killed_merges_left_is_deleted_by_the_next_one_before_it_needs_space(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir())
    for _ in range(2):
        pid = os.fork()
        if not pid:
            merging.append = lambda *arguments, **options: os._exit(9)
            merge(shards, tmp_path / "merged")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        partial = tmp_path / "merged.partial"
        assert sorted(tmp_path.iterdir()) == sorted([*before, partial])
        (partial / "joined" / "large").write_bytes(b"x")
    there = []

    def disk_usage(path: Path) -> SimpleNamespace:
        there.extend(tmp_path.rglob("large"))
        return SimpleNamespace(free=10**9)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert not merge(shards, tmp_path / "merged").reused
    assert there == [] and sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "merged"])
    # Killed when the output had its name already.
    partial.mkdir()
    (partial / "unfinished").touch()
    assert merge(shards, tmp_path / "merged").reused and not partial.exists()


def test_two_merges_into_one_output_are_refused_and_the_first_goes_on(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []

    def with_another_beside(*arguments: object, **options: object) -> Path | None:
        with pytest.raises(ValueError) as caught:
            merge(shards, tmp_path / "merged")
        refused.append(str(caught.value))
        return append(*arguments, **options)

    append = merging.append
    monkeypatch.setattr(merging, "append", with_another_beside)
    assert not merge(shards, tmp_path / "merged").reused
    (problem,) = set(refused)
    assert problem.startswith(f"{tmp_path}/merged.partial: in use by process {os.getpid()} on ")
    monkeypatch.undo()
    assert merge(shards, tmp_path / "merged").reused


def test_folder_of_someone_else_under_that_name_is_refused(
    shards: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "merged.partial").mkdir()
    (tmp_path / "merged.partial" / "precious").touch()
    with pytest.raises(ValueError) as caught:
        merge(shards, tmp_path / "merged")
    assert str(caught.value) == (
        f"{tmp_path}/merged.partial: exists and is no unfinished folder of a merge (no "
        "unfinished). Move it away, or give another output folder."
    )
    assert (tmp_path / "merged.partial" / "precious").exists()
    with pytest.raises(ValueError, match="Move it away"), built_beside(tmp_path / "merged"):
        pytest.fail("it was begun")
    assert (tmp_path / "merged.partial" / "precious").exists()


def test_every_file_is_on_disk_before_the_merged_folder_has_its_name(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shards[0] / "rejected.jsonl").write_text("{}\n")
    flushed: set[str] = set()

    def fsync(descriptor: int) -> None:
        if not (tmp_path / "merged").exists():
            flushed.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "fsync", fsync)
    merge(shards, tmp_path / "merged")
    # The token files were flushed under the names that they had while they were written too.
    assert flushed >= {path.name for path in (tmp_path / "merged").iterdir()}


def test_link_to_an_empty_folder_is_followed(shards: list[Path], tmp_path: Path) -> None:
    (tmp_path / "disk" / "data").mkdir(parents=True)
    (tmp_path / "merged").symlink_to(tmp_path / "disk" / "data")
    merge(shards, tmp_path / "merged")
    assert (tmp_path / "merged").is_symlink()
    assert (tmp_path / "disk" / "data" / "manifest.json").is_file()
    assert list((tmp_path / "disk").iterdir()) == [tmp_path / "disk" / "data"]


def test_too_little_space_is_said_before_anything_is_copied(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [*shards[0].glob("*.*"), *shards[1].glob("*.*")]
    needed = sum(path.stat().st_size for path in files if path.suffix in (".bin", ".idx"))
    usage = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"GB are free, the merged folder needs .*another disk") as e:
        merge(shards, tmp_path / "merged")
    assert e.value.errno == errno.ENOSPC and not (tmp_path / "merged").exists()
    usage.free = needed
    merge(shards, tmp_path / "merged")


def test_nothing_to_merge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folders to merge"):
        merge([], tmp_path / "merged")
