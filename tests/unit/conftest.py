"""One small tokenizer for all tests of this folder: training it takes about a second.

And the fixtures that several files on one subject share.
"""

import sysconfig
from pathlib import Path

import pytest
from doctor_facts import doctor  # noqa: F401 - a fixture
from hugging_face_tokenizers import hugging_face  # noqa: F401 - a fixture
from merge_shards import shards  # noqa: F401 - a fixture
from sentencepiece import SentencePieceProcessor
from status_folders import folder, running  # noqa: F401 - fixtures
from text_folder import texts  # noqa: F401 - a fixture

from tst_megatron.data.tokenizer.sentencepiece import load_sentencepiece
from tst_megatron.data.tokenizer.train import train_sentencepiece

VOCAB_SIZE = 800
LITERALS = "</s> <s> <unk> <0x0A>\n"


def library_texts(first_letters: str) -> list[str]:
    """Return the top-level standard-library files whose names start with one of the letters."""
    library = Path(sysconfig.get_paths()["stdlib"])
    return [
        path.read_text(encoding="utf-8")
        for path in sorted(library.glob("*.py"))
        if path.name.startswith(tuple(first_letters))
    ]


@pytest.fixture(scope="session")
def training_texts() -> list[str]:
    """About 1 MB of real text, with special-token strings and characters of several scripts."""
    return [*library_texts("abct"), LITERALS * 200, "na\u00efve \u4e2d\u6587 \u0416\n" * 200]


@pytest.fixture(scope="session")
def held_out_texts() -> list[str]:
    """Real text the tokenizer was not trained on."""
    return library_texts("ds")


@pytest.fixture(scope="session")
def tokenizer_model(training_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained .model file."""
    model = tmp_path_factory.mktemp("tokenizer") / "small.model"
    train_sentencepiece(training_texts, model, vocab_size=VOCAB_SIZE)
    return model


@pytest.fixture(scope="session")
def processor(tokenizer_model: Path) -> SentencePieceProcessor:
    """The trained tokenizer, loaded."""
    return load_sentencepiece(tokenizer_model)
