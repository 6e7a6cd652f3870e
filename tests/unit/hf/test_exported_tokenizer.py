"""A tokenizer in Hugging Face format goes into an export as it is, and is proven there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hugging_face_tokenizers import BOS, EOS, OTHER, build_hugging_face
from test_hf_config import arguments
from transformers import AutoTokenizer

from tst_megatron.data.tokenizer.load import load_tokenizer, store_tokenizer
from tst_megatron.hf.export_warnings import tokenizer_warnings
from tst_megatron.hf.tokenizer.files import TokenizerFiles, write_tokenizer

FAMILIES = ("llama", "qwen3", "qwen3_moe")
TEXTS = [f"a{EOS}b {BOS}{OTHER}", "  def f(x):\n", "naïve 中文"]


def write(source: Path, folder: Path, family: str) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    write_tokenizer(TokenizerFiles(source=source, description="own"), folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("single", [None, f"{BOS} $A", f"$A {EOS}"])
def test_copy_is_byte_for_byte_and_gives_the_ids_of_the_documents(
    training_texts: list[str], tmp_path: Path, family: str, single: str | None
) -> None:
    source = build_hugging_face(tmp_path / "own", training_texts[:2], single=single)
    write(source, tmp_path / "export", family)
    for file in source.iterdir():
        assert (tmp_path / "export" / file.name).read_bytes() == file.read_bytes()
    prepared = load_tokenizer(source)
    exported = AutoTokenizer.from_pretrained(tmp_path / "export", split_special_tokens=True)
    for text in TEXTS:
        document = prepared.encode([text])[0].tolist()
        ends_itself = single is not None and EOS in single
        assert exported(text)["input_ids"] == (document if ends_itself else document[:-1])
    # A user's chat template goes on having its special tokens.
    assert AutoTokenizer.from_pretrained(tmp_path / "export").encode(EOS)[-1] == 1


def test_other_end_of_document_is_the_end_in_the_export_too(
    hugging_face: Path, tmp_path: Path
) -> None:
    stored = store_tokenizer(hugging_face, tmp_path, eod_token=OTHER)
    write(stored, tmp_path / "export", "llama")
    assert AutoTokenizer.from_pretrained(tmp_path / "export").eos_token_id == 2


@pytest.fixture
def unnamed(hugging_face: Path, tmp_path: Path) -> Path:
    """A tokenizer that does not say which class reads it, so that the model's kind decides."""
    source = tmp_path / "unnamed"
    source.mkdir()
    (source / "tokenizer.json").write_bytes((hugging_face / "tokenizer.json").read_bytes())
    config = json.loads((hugging_face / "tokenizer_config.json").read_text())
    del config["tokenizer_class"]
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    return source


def test_copy_that_is_read_otherwise_beside_a_model_is_refused_with_the_fix(
    unnamed: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError) as caught:
        write(unnamed, tmp_path / "export", "qwen3_moe")
    message = str(caught.value)
    for part in (
        "exported tokenizer: text '",
        "the tokenizer that the model was trained with gives [0",
        f"transformers reads it as Qwen2Tokenizer. Say how to read it in a copy of {unnamed} (",
    ):
        assert part in message

    moe, dense = arguments(), arguments(num_experts=None, qk_layernorm=False)
    (warning,) = tokenizer_warnings(unnamed, moe)
    assert warning.startswith(
        f"export will refuse the tokenizer {unnamed} beside a Qwen3-MoE model: its "
        "tokenizer_config.json names no tokenizer_class"
    )
    assert 'Add "tokenizer_class": "PreTrainedTokenizerFast" to it before the text' in warning
    assert tokenizer_warnings(unnamed, dense) == []
    assert "beside a Qwen3-MoE or Qwen3 model" in tokenizer_warnings(unnamed)[0]

    config = json.loads((unnamed / "tokenizer_config.json").read_text())
    named = json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    (unnamed / "tokenizer_config.json").write_text(named)
    write(unnamed, tmp_path / "again", "qwen3_moe")
    assert tokenizer_warnings(unnamed) == []


def test_tokenizer_that_names_its_class_is_judged_without_transformers(hugging_face: Path) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from tst_megatron.hf.export_warnings import tokenizer_warnings; "
        "print(tokenizer_warnings(Path(sys.argv[1])), 'transformers' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(hugging_face)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[] False\n"


def test_folder_without_a_tokenizer_is_left_to_those_who_read_it(tmp_path: Path) -> None:
    assert tokenizer_warnings(tmp_path) == []
    (tmp_path / "tokenizer_config.json").write_text("[")
    assert tokenizer_warnings(tmp_path) == []


def test_copy_that_loses_bos_or_reads_special_tokens_is_refused(
    hugging_face: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(**options):
        class Changed:
            @staticmethod
            def from_pretrained(folder, **more):
                tokenizer = AutoTokenizer.from_pretrained(folder, **more)
                call = type(tokenizer).__call__
                changed = type("Changed", (type(tokenizer),), {})
                changed.__call__ = lambda self, text, **kwargs: call(
                    self, text, **(kwargs | options)
                )
                tokenizer.__class__ = changed
                return tokenizer

        return Changed

    for number, options in enumerate(
        [{"add_special_tokens": False}, {"split_special_tokens": False}]
    ):
        with monkeypatch.context() as patch:
            patch.setattr("transformers.AutoTokenizer", reading(**options))
            with pytest.raises(RuntimeError, match=r"reads it as Changed\. Say how"):
                write(hugging_face, tmp_path / str(number), "llama")
