"""One Hugging Face tokenizer: the same ids in prepared text, in training and in evaluation.

For a template that puts BOS before a text, one that adds nothing, and one that appends EOS; the
text spells special tokens, which stay text.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import transformers
import yaml
from hugging_face_tokenizers import BOS, EOS, OTHER, PLAIN_ADDED, build_hugging_face
from interrupted import interrupted_at
from tokenizers import Tokenizer
from typer.testing import CliRunner

from tst_megatron.megatron.cpu import host

host.install()

import recording

from tst_megatron.checkpoint.reader.process import in_one_process
from tst_megatron.cli.app import app
from tst_megatron.data.manifest import load_manifest
from tst_megatron.data.prepare.prepare import prepare
from tst_megatron.data.tokens.reader import IndexedReader
from tst_megatron.hf.export import export

TEMPLATES = {"BOS": f"{BOS} $A", "none": None, "EOS": f"$A {EOS}"}
CONTEXT, CONTINUATION = f"def f({BOS}):\n  {EOS}", f" {PLAIN_ADDED}{OTHER}{EOS} end {{}}"
FED = 2
"""Number of the document that evaluation is asked about."""
VOCABULARY = 1000
"""Of the recipe, which the tokenizer does not fill and Megatron pads to 1,024."""
STEPS, SAVED = 12, 8


@pytest.fixture(scope="module")
def source(text, tmp_path_factory) -> Path:
    """Documents of code, every second of them the text that evaluation gets."""
    file = tmp_path_factory.mktemp("source") / "documents.jsonl"
    lines = (text.parent / "corpus.jsonl").read_text().splitlines()
    documents = [
        document
        for number, line in enumerate(lines)
        for document in (json.loads(line)["text"][:300], CONTEXT + CONTINUATION.format(number))
    ]
    file.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents * 2))
    return file


def make(folder: Path, source: Path, name: str) -> SimpleNamespace:
    """Text prepared with one template, a run on it, and the run's export."""
    texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    own = build_hugging_face(folder / "own", texts, single=TEMPLATES[name], vocab_size=400)
    prepare([source], own, folder / "text", held_out_fraction=0.1, workers=1)
    tst = {"bag-size": 4, "superposition-steps": 4}
    recipe = tiny.write_recipe(
        folder / "tst.yaml",
        folder / "text",
        tst,
        vocab_size=VOCABULARY,
        eod_mask_loss=True,
        train_iters=STEPS,
        save_interval=4,
    )
    made = SimpleNamespace(folder=folder, recipe=recipe, run=folder / "run", name=name)
    made.manifest = load_manifest(folder / "text")
    train(made, made.run, tokens=folder / "tokens")
    export(made.run / "checkpoints", folder / "hf", verify=False)
    return made


def train(made: SimpleNamespace, run: Path, *, tokens: Path | None = None, status: int = 0) -> str:
    log = run.with_suffix(".log")
    arguments = ("train", str(made.recipe), "--run-folder", str(run))
    tiny.wait(tiny.fork_ranks(*arguments, num_ranks=1, log=log, tokens=tokens), log, status)
    return log.read_text()


@pytest.fixture(scope="module")
def cases(source, tmp_path_factory) -> dict[str, SimpleNamespace]:
    folder = tmp_path_factory.mktemp("templates")
    return {name: make(folder / name.replace(" ", "-"), source, name) for name in TEMPLATES}


@pytest.fixture(params=TEMPLATES)
def case(request, cases) -> SimpleNamespace:
    return cases[request.param]


@pytest.fixture(scope="module")
def fed(cases) -> dict[str, list[int]]:
    """What lm-eval feeds each export for the text."""
    script = Path(__file__).parents[1].joinpath("fed_ids.py")
    folders = [str(case.folder / "hf") for case in cases.values()]
    done = subprocess.run(
        [sys.executable, str(script), CONTEXT, CONTINUATION.format(FED), *folders],
        env=tiny.environment(PYTHONPATH=str(Path(__file__).parents[3]), HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))


def document_of(case: SimpleNamespace, text: str) -> list[int]:
    """A document by hand: the text as `tokenizers` encodes it, and what the template has."""
    tokenizer = Tokenizer.from_file(str(case.folder / "own" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert not {0, 1, 2}.intersection(ids)
    return [*([0] if case.name == "BOS" else []), *ids, 1]


def contains(tokens: list[int], part: list[int]) -> bool:
    return any(tokens[at : at + len(part)] == part for at in range(len(tokens) - len(part) + 1))


def test_text_has_the_same_ids_in_preparation_training_and_evaluation(case, fed):
    prepared = IndexedReader(case.manifest.train.prefix)
    documents = [prepared.tokens(n, 0).tolist() for n in range(case.manifest.train.documents)]
    samples = [s for batch in recording.batches(case.folder / "tokens").values() for s in batch]
    spelled = [document_of(case, CONTEXT + CONTINUATION.format(n)) for n in range(120)]
    read = [each for each in spelled if any(contains(sample, each) for sample in samples)]
    assert len(read) > 10
    assert all(each in documents for each in read)
    assert spelled[FED] in documents
    # Evaluation has no place for the last token of a document, its EOD.
    assert fed[case.name] == spelled[FED][:-1]


def test_training_reads_what_was_prepared_and_knows_its_end(case):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    whole = [int(each) for text in IndexedDataset(str(case.manifest.train.prefix)) for each in text]
    ids = "".join(f",{each}" for each in whole) + ","
    read = recording.batches(case.folder / "tokens")
    assert sorted(read) == list(range(STEPS))
    pieces = [
        sample[at : at + 8]
        for batch in read.values()
        for sample in batch
        for at in range(0, len(sample) - 8, 8)
    ]
    # Documents come in another order: a piece is one of the text unless it crosses their border.
    inside = [piece for piece in pieces if 1 not in piece[:-1]]
    assert len(inside) > len(pieces) / 4
    assert all("," + ",".join(map(str, piece)) + "," in ids for piece in inside)
    assert recording.ends_of_documents(case.folder / "tokens") == {1}
    assert case.manifest.tokenizer.eod_id == 1


def test_vocabulary_is_the_recipes_and_padded_whatever_the_tokenizers(case):
    assert case.manifest.tokenizer.vocab_size == 401
    newest = case.run / "checkpoints" / f"iter_{STEPS:07d}"
    in_one_process()
    from tst_megatron.megatron.distributed_checkpoint.model import read_saved_state

    args = read_saved_state(newest)["args"]
    assert (args.vocab_size, args.tokenizer_type) == (VOCABULARY, "HuggingFaceTokenizer")
    table = tiny.saved_weights(newest)["embedding.word_embeddings.weight"]
    assert len(table) == 1024


def test_export_has_the_tokenizer_and_its_ids(case):
    exported = case.folder / "hf"
    for file in (case.folder / "own").iterdir():
        assert (exported / file.name).read_bytes() == file.read_bytes()
        assert (case.run / "checkpoints" / "tokenizer" / file.name).read_bytes() == (
            file.read_bytes()
        )
    for name in ("config.json", "generation_config.json"):
        found = json.loads((exported / name).read_text())
        assert (found["bos_token_id"], found["eos_token_id"]) == (0, 1)
    config = json.loads((exported / "config.json").read_text())
    assert config["vocab_size"] == VOCABULARY
    assert config["transformers_version"] == transformers.__version__


def test_trace_shows_text(case):
    result = CliRunner().invoke(app, ["data", "trace", str(case.recipe), "--step", "9"])
    assert result.exit_code == 0, result.output
    rows = result.output.splitlines()[2:]
    assert len(rows) == 8
    samples = recording.batches(case.folder / "tokens")[9]
    tokenizer = Tokenizer.from_file(str(case.folder / "own" / "tokenizer.json"))
    for row, sample in zip(rows, samples, strict=True):
        shown = tokenizer.decode(sample[:16], skip_special_tokens=False)
        assert row.endswith(repr(shown)), row


def test_run_goes_on_exactly_and_with_no_other_tokenizer(cases):
    case, other = cases["BOS"], cases["none"]
    stopped = case.folder / "stopped"
    interrupted_at(SAVED, case.run, stopped)
    shutil.rmtree(stopped / "checkpoints" / "tokenizer")
    recipe = yaml.safe_load(case.recipe.read_text())
    changed = SimpleNamespace(recipe=case.folder / "other.yaml")
    changed.recipe.write_text(yaml.safe_dump(recipe | {"data": {str(other.folder / "text"): 1.0}}))
    said = train(changed, stopped, status=2)
    assert "training text: this run was started with" in said
    assert "tokenizer: the checkpoint was trained with" in said
    train(case, stopped)
    assert tiny.loss_bits(stopped) == tiny.loss_bits(case.run)
    assert (stopped / "checkpoints" / "tokenizer" / "tokenizer.json").is_file()
