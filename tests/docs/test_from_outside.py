"""docs/from-outside.md: each row of its tables is built, and does what the row says."""

import gzip
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import zstandard
from hugging_face_tokenizers import build_hugging_face
from pyarrow import parquet
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.text.inputs import find
from tst_megatron.hf.model_folder.configuration import read_config
from tst_megatron.hf.model_folder.soundness import check_numbers
from tst_megatron.hf.model_folder.whole_model import check_model
from tst_megatron.hf.weights import rules, shapes

PAGE = (Path(__file__).parents[2] / "docs" / "from-outside.md").read_text()
LINE = b'{"text": "a text"}\n'
TEXTS = [f"def f{number}(x):\n    return  x + {number}\n" for number in range(40)]


def rows(section):
    """(what it is, what happens, reason) of a section's table."""
    part = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    cells = (line.strip("|").split("|") for line in part.splitlines() if line.startswith("|"))
    found = [tuple(cell.strip() for cell in row) for row in cells]
    assert len(found) > 5
    return found[2:]


# --- files ---------------------------------------------------------------------------------------


def write(path):
    name = path.name.lower()
    data = LINE
    if name.endswith((".gz", ".zstd")):
        data = gzip.compress(LINE) if name.endswith("gz") else zstandard.compress(LINE)
    path.write_bytes(data)
    if name.endswith(".parquet"):
        parquet.write_table(pa.table({"text": ["a text"]}), path)


@pytest.mark.parametrize(("name", "verdict", "reason"), rows("Files of text"))
def test_file_of_a_folder_is_read_refused_or_listed_as_the_page_says(
    name, verdict, reason, tmp_path
):
    (tmp_path / "other.jsonl").write_bytes(LINE)
    name = name.strip("`")
    write(tmp_path / name)
    if verdict == "refused":
        with pytest.raises(ValueError, match=re.escape(reason)):
            find([tmp_path])
        return
    found = find([tmp_path])
    assert (name in [each.name for each in found.files]) == (verdict == "read")
    assert (verdict == "listed") == ((name, reason) in [(n.name, n.reason) for n in found.not_read])


# --- tokenizers ----------------------------------------------------------------------------------


def of_other_texts(folder, texts):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    trainer = BpeTrainer(vocab_size=300, special_tokens=["<|begin|>", "<|end|>", "<unk>"])
    tokenizer.train_from_iterator(texts, trainer)
    names = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def sentencepiece(folder):
    folder.mkdir()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(folder / "tokenizer"),
        minloglevel=2,
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
    )
    return folder / "tokenizer.model"


def with_config(folder, **settings):
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return folder


def model_alone(folder):
    sentencepiece(folder)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def without_eos(folder):
    build_hugging_face(folder, TEXTS)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    return with_config(folder, eos_token=None)


def byte_level(folder, **settings):
    return with_config(build_hugging_face(folder, TEXTS), **settings)


BUILDERS = {
    "SentencePiece model of `data tokenizer`": None,
    "folder with `tokenizer.json`": byte_level,
    "folder with `tokenizer.json` of another alphabet": lambda folder: of_other_texts(
        folder, ["ACGT TGCA", *(f"G{n}" for n in "ACGT")]
    ),
    "folder whose `tokenizer_class` gives other ids": lambda folder: byte_level(
        folder, tokenizer_class="Qwen2Tokenizer"
    ),
    "folder with `tokenizer.model` alone": model_alone,
    "folder whose EOS is in no vocabulary": lambda folder: byte_level(folder, eos_token="<|no|>"),
    "folder without EOS": without_eos,
    "SentencePiece model that takes out white space": sentencepiece,
    "vocabulary without bytes of the text": lambda folder: of_other_texts(folder, ["xyz"]),
}


def test_every_row_has_a_builder():
    assert [name for name, _, _ in rows("Tokenizers")] == list(BUILDERS)


@pytest.mark.parametrize(("name", "verdict", "reason"), rows("Tokenizers"))
def test_tokenizer_is_taken_or_refused_as_the_page_says(name, verdict, reason, text, tmp_path):
    build = BUILDERS[name]
    tokenizer = text / "tokenizer.model" if build is None else build(tmp_path / "tokenizer")
    texts = ["ACGT TGCA", "G A"] * 20 if "alphabet" in name else TEXTS
    lines = (json.dumps({"text": f"{each}"}) + "\n" for each in texts)
    (tmp_path / "a.jsonl").write_text("".join(lines))
    call = {"workers": 1, "held_out_fraction": 0.5, "allow_empty_splits": True}
    if verdict == "taken":
        assert prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out", **call)
        return
    assert verdict == "refused" and reason
    with pytest.raises(ValueError, match=re.escape(reason)):
        prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out", **call)
    shutil.rmtree(tmp_path / "out.parts", ignore_errors=True)
    assert not (tmp_path / "out").exists()


# --- models --------------------------------------------------------------------------------------

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
TIED = CONFIG | {"tie_word_embeddings": True}


def model(folder, config=CONFIG, *, without=(), **more):
    folder.mkdir()
    whole = complete_config(folder, CONFIG | {"tie_word_embeddings": config["tie_word_embeddings"]})
    torch.manual_seed(0)
    tensors = {
        name: torch.randn(shape)
        for rule in rules(whole)
        for name, shape in zip(rule.hf, shapes(rule, whole), strict=True)
    }
    tensors |= {name: make(tensors) for name, make in more.items()}
    save_file({k: v for k, v in tensors.items() if k not in without}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def complete_config(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    return read_config(folder)


def cut_short(folder):
    path = model(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def elsewhere(folder):
    path = model(folder) / "model.safetensors"
    path.rename(folder.parent / path.name)
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MODELS = {
    "weights that fit their `config.json`": model,
    "`rotary_emb.inv_freq` beside the weights": lambda folder: model(
        folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": lambda _: torch.ones(2)}
    ),
    "tied tables, stored twice": lambda folder: model(
        folder, TIED, **{HEAD: lambda tensors: tensors[TABLE].clone()}
    ),
    "tied tables, and an output layer of its own": lambda folder: model(
        folder, TIED, **{HEAD: lambda tensors: tensors[TABLE] + 1}
    ),
    "a number that is none among the weights": lambda folder: model(
        folder, **{"model.norm.weight": lambda tensors: torch.full((16,), torch.nan)}
    ),
    "a model without attention heads": lambda folder: model(
        folder, CONFIG | {"num_attention_heads": 0}
    ),
    "a safetensors file that is cut short": cut_short,
    "an index that names a file elsewhere": elsewhere,
    "a weight that is missing": lambda folder: model(folder, without=["model.norm.weight"]),
}


def test_every_model_folder_has_a_builder():
    assert [name for name, _, _ in rows("Model folders")] == list(MODELS)


@pytest.mark.parametrize(("name", "verdict", "reason"), rows("Model folders"))
def test_model_folder_is_taken_or_refused_as_the_page_says(name, verdict, reason, tmp_path):
    MODELS[name](tmp_path / "model")
    if verdict == "taken":
        check_numbers(check_model(tmp_path / "model"))
        return
    assert verdict == "refused" and reason
    with pytest.raises(ValueError, match=re.escape(reason)):
        check_numbers(check_model(tmp_path / "model"))
