import shutil
from pathlib import Path

import pytest
from forged_folders import whole_once  # noqa: F401
from merge_shards import edit

from tst_megatron.data.manifest import load_manifest
from tst_megatron.data.verify.recorded_files import changed_files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("junk", r"manifest\.json: not a manifest of prepared data"),
        ("[]", r"manifest\.json: not a manifest of prepared data"),
        ('{"format_version": 99}', r"manifest format 99, this version reads 3"),
        ('{"format_version": 3}', r"manifest is incomplete or damaged \(KeyError"),
    ],
)
def test_foreign_manifest_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_manifest(tmp_path)


def test_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest\.json: no such manifest.*`prepare`"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("end", ["", ".bin", ".idx"])
def test_pair_of_token_files_is_no_prepared_folder(tmp_path: Path, end: str) -> None:
    for name in ("train.bin", "train.idx"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"train{end}: a \.bin/\.idx pair.*data adopt"):
        load_manifest(tmp_path / f"train{end}")


def test_folder_may_have_the_name_of_a_pair(tmp_path: Path) -> None:
    for name in ("out", "out.bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "other.bin").write_bytes(b"")
    (tmp_path / "other").mkdir()
    for name in ("out.bin", "other"):
        with pytest.raises(FileNotFoundError, match=rf"{name}/manifest\.json: no such manifest"):
            load_manifest(tmp_path / name)


@pytest.mark.parametrize("name", ["../other/train", "/elsewhere/train", "", "..", "a/train", 5])
def test_names_that_lead_to_another_folder_are_refused(whole_once, tmp_path, name):  # noqa: F811
    folder = tmp_path / "own"
    shutil.copytree(whole_once, folder)
    for change in (
        lambda manifest: manifest["splits"]["train"].update(prefix=name),
        lambda manifest: manifest["tokenizer"].update(name=name),
    ):
        before = (folder / "manifest.json").read_text()
        edit(folder / "manifest.json", change)
        with pytest.raises(ValueError, match="which is outside its folder"):
            load_manifest(folder)
        (folder / "manifest.json").write_text(before)


def test_files_may_be_links_to_another_disk(whole_once, tmp_path):  # noqa: F811
    folder, disk = tmp_path / "own", tmp_path / "disk.bin"
    shutil.copytree(whole_once, folder)
    (folder / "train.bin").rename(disk)
    (folder / "train.bin").symlink_to(disk)
    assert changed_files(load_manifest(folder)) == []
