from pathlib import Path

import pytest

from tst_megatron.data.manifest import load_manifest


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
