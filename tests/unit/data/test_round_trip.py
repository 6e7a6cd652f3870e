"""Text that does not come back from its tokens is counted, named, and refused above a share."""

import json
import shutil

import pytest
from hugging_face_tokenizers import BOS, EOS, build_hugging_face
from sentencepiece import SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from tst_megatron.cli.app import app
from tst_megatron.data.manifest import load_manifest
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.text.inputs import find_inputs
from tst_megatron.data.text.units import cut_into_units
from tst_megatron.data.tokenizer.checks import tokenizer_faults, vocabulary_gaps
from tst_megatron.data.tokenizer.load import load_tokenizer
from tst_megatron.data.tokenizer.round_trip import (
    CHARACTERS,
    LETTERS,
    OTHER,
    SPACES,
    RoundTrip,
    Sample,
    difference,
)

TEXTS = [f"def f{number}(x):\n    return  x + {number}\n" for number in range(60)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    return build_hugging_face(tmp_path_factory.mktemp("byte-level"), TEXTS)


@pytest.mark.parametrize(
    ("text", "back", "why", "lost"),
    [
        ("a", "a", None, ""),
        ("cafe\u0301 ﬁ", "café ﬁ", None, ""),
        ("ﬁ Ａ", "fi A", None, ""),
        ("a  b\n", "a b", SPACES, ""),
        ("a b", "ab", SPACES, ""),
        ("a", " a", None, ""),
        (" a", "a", SPACES, ""),
        ("a", "  a", SPACES, ""),
        ("Ab C", "ab c", LETTERS, ""),
        ("a é 中 b", "a ? ? b", CHARACTERS, "é中"),
        ("ab", "ba", OTHER, ""),
        ("a", "", CHARACTERS, "a"),
        ("aa", "a", OTHER, ""),
    ],
)
def test_reason_is_what_was_lost(text, back, why, lost):
    assert difference(text, back) == (why, lost)


def test_counts_add_up_and_survive_their_record():
    first, second = RoundTrip(), RoundTrip()
    for text, back in (("a", "a"), ("e\u0301", "é"), ("a b", "ab")):
        first.add(text, back)
    second.add("é", "?")
    first.take(RoundTrip.recorded(json.loads(json.dumps(second.record()))))
    assert first == RoundTrip(4, 1, {SPACES: 1, CHARACTERS: 1}, "é")
    assert str(first) == (
        "2 of 4 documents that were decoded again do not come back: characters are lost in 1; "
        "white space is changed in 1; lost are 'é'"
    )
    assert first.is_above(0) and not first.is_above(0.49)
    first.changed[OTHER] = 1
    assert first.is_above(0.74) and not first.is_above(0.75)


def test_documents_at_the_beginning_and_every_512th_are_compared(byte_level, monkeypatch):
    monkeypatch.setattr("tst_megatron.data.tokenizer.round_trip.FIRST_CHARACTERS", 25)
    tokenizer = load_tokenizer(byte_level)
    sample = Sample()
    for _ in range(120):
        texts = [f"{sample.num_documents + place:05d} text" for place in range(10)]
        sample.offer(tokenizer, texts, tokenizer.encode(texts))
    assert sample.num_documents == 1200
    # Three by their characters, and each 512th.
    assert sample.found == RoundTrip(compared=5)


def sentencepiece(folder, **options):
    texts = [*TEXTS, "other words, with Some letters of the alphabet: zyxwvutsrqponmlkjihgfedcba"]
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "sp"),
        minloglevel=2,
        **{"vocab_size": 400, "model_type": "bpe", "hard_vocab_limit": False, **options},
    )
    return folder / "sp.model"


def bpe(folder, *, alphabet=(), normalizer=None, unk=None, byte_level=True, texts=TEXTS):
    tokenizer = Tokenizer(models.BPE(unk_token=unk))
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.decoder = decoders.Fuse()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    special = [BOS, EOS, *([unk] if unk else [])]
    trainer = BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=list(alphabet))
    tokenizer.train_from_iterator(texts, trainer)
    names = {"bos_token": BOS, "eos_token": EOS}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def lossy(kind, folder):
    if kind == "white space that SentencePiece takes out":
        return sentencepiece(folder)
    if kind == "characters that are in no piece":
        # Trained on other text.
        return bpe(folder, byte_level=False, texts=["def f(x): return x 12345"] * 5)
    if kind == "bytes that are in no piece":
        return bpe(folder, texts=["def f(x): return x 12345"] * 5)
    return bpe(
        folder,
        normalizer=normalizers.Replace("\n", " "),
        alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )


LOSSY = (
    "white space that SentencePiece takes out",
    "characters that are in no piece",
    "bytes that are in no piece",
    "line breaks that a normaliser takes out",
)


@pytest.mark.parametrize("kind", LOSSY)
def test_text_that_does_not_come_back_is_refused_before_the_work_and_taken_if_told(
    kind, corpus, tmp_path
):
    tokenizer = lossy(kind, tmp_path)
    command = ["data", "prepare", str(corpus), "--tokenizer", str(tokenizer), "--workers", "1"]
    command += ["--output", str(tmp_path / "out"), "--held-out-fraction", "0.2"]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, ValueError)
    assert "do not come back" in str(refused.exception)
    assert "--max-changed-fraction 0.01" in str(refused.exception)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.parts").exists()
    taken = CliRunner().invoke(app, [*command, "--max-changed-fraction", "1"])
    assert taken.exit_code == 0, taken.exception
    contents = load_manifest(tmp_path / "out").contents
    assert contents.round_trip.compared == contents.round_trip.num_changed == len(TEXTS)
    assert "60 of 60 documents that were decoded again do not come back" in taken.stdout


def test_some_documents_above_the_share_are_refused_after_the_work_and_what_is_done_is_kept(
    tmp_path,
):
    texts = [*TEXTS, *("def été(x): return x",) * 3]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    tokenizer = bpe(tmp_path / "t", byte_level=False)
    call = {"held_out_fraction": 0.2, "workers": 1}
    with pytest.raises(
        ValueError, match=r"3 of 63 .* characters are lost in 3; lost are 'é'.*is kept in"
    ):
        prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out", **call)
    assert not (tmp_path / "out").exists() and (tmp_path / "out.parts").is_dir()
    call["max_changed_fraction"] = 0.05
    manifest = prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out", **call)
    assert manifest.contents.round_trip.changed == {CHARACTERS: 3}
    # Also of the finished folder.
    del call["max_changed_fraction"]
    with pytest.raises(ValueError, match="do not come back"):
        prepare([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out", **call)


def test_normal_forms_come_back(tmp_path):
    texts = [*TEXTS, *("cafe\u0301 \ufb01",) * 5]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = bpe(tmp_path / "t", normalizer=normalizers.NFKC(), alphabet=alphabet)
    manifest = prepare(
        [tmp_path / "a.jsonl"], tokenizer, tmp_path / "out", held_out_fraction=0.2, workers=1
    )
    assert manifest.contents.round_trip == RoundTrip(65, 5)


def test_of_many_small_files_some_are_decoded_again(byte_level, tmp_path):
    for number in range(300):
        (tmp_path / f"{number:03d}.jsonl").write_text(json.dumps({"text": "x" * 1000}) + "\n")
    units = cut_into_units(find_inputs([tmp_path]))
    # 300 kB in all are more than twice what is compared of one text.
    assert sum(unit.is_sampled for unit in units) == 150
    assert sum(unit.is_sampled for unit in cut_into_units(find_inputs([tmp_path]) * 20)) == 131


# --- tokenizers ----------------------------------------------------------------------------------


def with_config(folder, copy, **settings):
    shutil.copytree(folder, copy)
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return copy


def test_class_that_gives_other_ids_than_the_file_is_refused(byte_level, corpus, tmp_path):
    folder = with_config(byte_level, tmp_path / "qwen", tokenizer_class="Qwen2Tokenizer")
    with pytest.raises(ValueError, match=r"other ids than its tokenizer\.json.*PreTrainedTok"):
        prepare([corpus], folder, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast"])
def test_class_is_refused_where_this_version_of_transformers_gives_other_ids(
    name, byte_level, tmp_path
):
    """Up to 5.14 it lost spaces, and 5.24 reads the file."""
    folder = with_config(byte_level, tmp_path / "llama", tokenizer_class=name)
    of_class = AutoTokenizer.from_pretrained(folder)(TEXTS[0])["input_ids"]
    of_file = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXTS[0]).ids
    faults = tokenizer_faults(folder, load_tokenizer(folder))
    assert ["other ids than its tokenizer.json" in fault for fault in faults] == [True] * (
        of_class != of_file
    )


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "GPT2Tokenizer"])
def test_class_that_gives_the_same_ids_is_taken(name, byte_level, tmp_path):
    folder = with_config(byte_level, tmp_path / "same", tokenizer_class=name)
    assert tokenizer_faults(folder, load_tokenizer(folder)) == []


def test_config_of_a_model_beside_a_tokenizer_does_not_hide_what_its_copy_reads(
    byte_level, corpus, tmp_path
):
    folder = with_config(byte_level, tmp_path / "deep", tokenizer_class="Qwen2Tokenizer")
    (folder / "config.json").write_text('{"model_type": "deepseek_v3"}')
    with pytest.raises(ValueError, match=r"deep: the class .* other ids than its tokenizer\.json"):
        prepare([corpus], folder, tmp_path / "out", workers=1)


def test_class_that_differs_in_spaces_before_a_text_alone_is_taken(tmp_path):
    """As the files of Llama 2 and the class that transformers takes for them."""
    names = ("<unk>", "<s>", "</s>")
    pieces = [*names, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted("\u2581xy")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([*names])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    own = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **own).save_pretrained(tmp_path / "a")
    folder = with_config(tmp_path / "a", tmp_path / "b", tokenizer_class="LlamaTokenizer")
    loaded = load_tokenizer(folder)
    assert tokenizer_faults(folder, loaded) == []
    assert difference("x  y", loaded.decode(loaded.encode(["x  y"])[0][:-1].tolist()))[0] is None


def test_folder_with_a_sentencepiece_model_alone_is_refused(corpus, tmp_path):
    (tmp_path / "folder").mkdir()
    model = sentencepiece(tmp_path)
    shutil.copy(model, tmp_path / "folder" / "tokenizer.model")
    config = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "bos_token": "<s>"}
    (tmp_path / "folder" / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"no tokenizer\.json.*Give the model itself"):
        prepare([corpus], tmp_path / "folder", tmp_path / "out", workers=1)


def test_eos_that_the_vocabulary_lacks_is_refused(byte_level, corpus, tmp_path):
    folder = with_config(byte_level, tmp_path / "other", eos_token="<|nowhere|>")
    with pytest.raises(ValueError, match=r"EOS '<\|nowhere\|>' is not in its vocabulary"):
        prepare([corpus], folder, tmp_path / "out", workers=1)


@pytest.mark.parametrize("unk", [None, "<unk>"])
def test_alphabet_without_latin_letters_is_taken(tmp_path, unk):
    """Its file has no decoder either."""
    texts = ["АБВ ГДЕ жзи", "ГАБВ"] * 20
    folder = bpe(tmp_path / "t", byte_level=False, unk=unk, texts=texts)
    form = json.loads((folder / "tokenizer.json").read_text())
    form["decoder"] = None
    template = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    backend = Tokenizer.from_str(json.dumps(form))
    backend.post_processor = template
    backend.save(str(folder / "tokenizer.json"))
    loaded = load_tokenizer(folder)
    assert loaded.facts.bos_id == 0
    (ids,) = loaded.encode(["АБВ ГДЕ"])
    assert ids[0] == 0 and loaded.decode(ids[1:-1].tolist()) == "АБВ ГДЕ"


def test_gaps_of_a_vocabulary_are_named_with_counts(byte_level, tmp_path):
    assert vocabulary_gaps(load_tokenizer(byte_level)) == []
    (gap,) = vocabulary_gaps(load_tokenizer(bpe(tmp_path / "bytes")))
    assert gap.startswith("the vocabulary lacks 2") and "of the 243 bytes of UTF-8" in gap
    letters = sorted(set("".join(TEXTS)))
    (gap,) = vocabulary_gaps(load_tokenizer(bpe(tmp_path / "letters", byte_level=False)))
    assert gap.startswith(f"the vocabulary has {len(letters)} single characters")
    assert gap.endswith("all others vanish")
    (gap,) = vocabulary_gaps(load_tokenizer(bpe(tmp_path / "unk", byte_level=False, unk="<unk>")))
    assert gap.endswith("all others become '<unk>'")
    (gap,) = vocabulary_gaps(load_tokenizer(sentencepiece(tmp_path)))
    assert "no byte fallback" in gap
    assert vocabulary_gaps(load_tokenizer(sentencepiece(tmp_path, byte_fallback=True))) == []
