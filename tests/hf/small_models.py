"""Models of a few thousand parameters in Hugging Face format, with a tokenizer trained here."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCAB_SIZE = 384
# Fixed, so that the tokenizer and with it every number of the tests is.
TEXT = " ".join(
    first + second
    for first in ("lamp", "river", "stone", "cloud", "garden", "hammer", "question", "answer")
    for second in ("", "s", "ed", "ing", " of", " near", " in the", " under a")
)
ANSWERS = [
    f"Answer: {answer}"
    for answer in ("lamp river", "stone", "cloud garden", "hammer", "yes", "A", "Answer", "needle")
]
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES = {
    "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, {**_EXPERTS, "norm_topk_prob": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
}


def save_model(
    folder: Path,
    family: str,
    *,
    dtype: torch.dtype = torch.float32,
    adds_bos: bool = False,
    has_words: bool = True,
    **more,
) -> Path:
    """A model of random weights, its config.json and its tokenizer; the same for each call."""
    model_class, config_class, own = FAMILIES[family]
    torch.manual_seed(0)
    config = config_class(**_SHAPE | own | {"tie_word_embeddings": False} | more)
    model = model_class(config).to(dtype)
    model.save_pretrained(folder)
    # As the export writes it; transformers 5.14 has a name of its own.
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"num_local_experts"', '"num_experts"'))
    save_tokenizer(folder, adds_bos=adds_bos, has_words=has_words)
    return folder


def save_tokenizer(folder: Path, *, adds_bos: bool, has_words: bool = True) -> None:
    """Byte-level BPE of ``TEXT``; BOS is token 0 and EOS token 1.

    Args:
        folder: where its files go.
        adds_bos: whether its template puts BOS before a text.
        has_words: parted in front of spaces, as is usual; otherwise ``ANSWERS`` are learned too,
            and some tokens span the end of a question and the start of its answer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=has_words)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] if has_words else ANSWERS, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
