"""What is refused anyway is refused before the inputs are read, which can take hours."""

from pathlib import Path

import pytest
from text_folder import OPTIONS

from tst_megatron.data.prepare import prepare as preparing
from tst_megatron.data.prepare.parts import parts_folder
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.tokenizer import fast
from tst_megatron.system.processes.lock import held


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the inputs takes hours, so nobody may begin it in vain."""
    monkeypatch.setattr(preparing, "_hash", lambda *_: pytest.fail("the inputs were read"))


def test_other_settings_are_refused_before_the_inputs_are_read(
    texts: Path, tokenizer_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare([texts], tokenizer_model, tmp_path / "output", **OPTIONS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    monkeypatch.setattr(preparing, "_hash", lambda *_: pytest.fail("the inputs were read"))
    options = {**OPTIONS, "held_out_fraction": 0.2}
    with pytest.raises(ValueError, match=r"was prepared differently; held_out_fraction: .*0\.2 wa"):
        prepare([texts], tokenizer_model, tmp_path / "output", **options)
    with pytest.raises(ValueError, match="other: exists and is not a prepared folder"):
        prepare([texts], tokenizer_model, tmp_path / "other", **OPTIONS)


def test_preparation_that_is_at_work_is_noticed_before_the_inputs_are_read(
    unread: None, texts: Path, tokenizer_model: Path, tmp_path: Path
) -> None:
    parts = parts_folder(tmp_path / "output")
    parts.mkdir()
    with held(parts), pytest.raises(ValueError, match=str(parts)):
        prepare([texts], tokenizer_model, tmp_path / "output", **OPTIONS)


def test_fast_encoder_that_there_is_not_is_said_before_the_inputs_are_read(
    unread: None,
    texts: Path,
    tokenizer_model: Path,
    hugging_face: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match="a SentencePiece model has no fast form"):
        prepare([texts], tokenizer_model, tmp_path / "output", fast=True, **OPTIONS)
    monkeypatch.setattr(fast, "import_if_there", lambda name: None)
    with pytest.raises(ImportError, match="gigatoken is not installed"):
        prepare([texts], hugging_face, tmp_path / "output", fast=True, **OPTIONS)
    assert not (tmp_path / "output").exists()
