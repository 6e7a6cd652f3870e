"""Small tokenizers in Hugging Face format: byte-level BPE with Llama 3's kind of template."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, OTHER, PLAIN_ADDED = "<|begin|>", "<|end|>", "<|turn|>", "<tool>"
SPECIALS = (BOS, EOS, OTHER)


def build_hugging_face(
    folder: Path,
    texts: list[str],
    *,
    single: str | None = f"{BOS} $A",
    vocab_size: int = 700,
    **config: Any,
) -> Path:
    """Train a tokenizer and save it; ``single`` is its template for one text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([PLAIN_ADDED])
    if single is not None:
        ids = [(token, tokenizer.token_to_id(token)) for token in SPECIALS if token in single]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    specials = {"bos_token": BOS, "eos_token": EOS} | config
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hugging_face(training_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer whose template puts BOS before a text."""
    return build_hugging_face(tmp_path_factory.mktemp("hugging-face") / "own", training_texts)
