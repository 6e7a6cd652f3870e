"""``data index`` and ``data trace`` as a user calls them."""

import shutil

import pytest
import tiny
from typer.testing import CliRunner

from tst_megatron.megatron.cpu import host

host.install()

from tst_megatron.cli.app import app
from tst_megatron.data.tokens.reader import IndexedReader

TST = {"bag-size": 4, "superposition-fraction": 0.4}


@pytest.fixture
def recipe(text, tmp_path):
    return tiny.write_recipe(tmp_path / "tst.yaml", text, TST, data_cache_path=str(tmp_path / "i"))


def invoke(*arguments):
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_index_is_built_once_and_says_how_much_of_each_corpus_is_read(recipe, text, tmp_path):
    lines = invoke("index", recipe)
    assert lines[0].startswith(f"{text}: ") and " epochs over " in lines[0]
    assert lines[-1] == "indexes: 1 built"
    assert len(list((tmp_path / "i").iterdir())) == 1
    assert invoke("index", recipe)[-1] == "indexes: all already there and whole"
    shutil.rmtree(tmp_path / "i")


@pytest.mark.parametrize(
    ("step", "phase", "raw_tokens"), [(3, "superposition", 3072), (9, "recovery", 8448)]
)
def test_trace_names_the_document_and_offset_of_every_sample(recipe, text, step, phase, raw_tokens):
    first, header, *rows = invoke("trace", recipe, "--step", step)
    bag_size = 4 if phase == "superposition" else 1
    assert first == (
        f"after {step} steps: {phase}, bag size {bag_size}, {raw_tokens:,} raw tokens read before"
    )
    assert header.split()[:5] == ["sample", "corpus", "epoch", "document", "offset"]
    assert [int(row.split()[0]) for row in rows] == list(range(8 * step, 8 * step + 8))
    reader = IndexedReader(text / "train")
    from tst_megatron.data.tokenizer.sentencepiece import load_sentencepiece

    processor = load_sentencepiece(text / "tokenizer.model")
    for row in rows:
        _, corpus, epoch, document, offset, documents, begins = row.split(maxsplit=6)
        assert (corpus, epoch) == (str(text), "1")
        tokens = reader.tokens(int(document), int(offset))[:16].tolist()
        if int(documents) == 1:
            assert begins == repr(processor.decode(tokens))


def test_step_that_the_run_does_not_have_is_refused(recipe):
    result = CliRunner().invoke(app, ["data", "trace", str(recipe), "--step", "20"])
    assert result.exit_code != 0
    assert "step 20: this run has the steps 0 to 19" in str(result.exception)
