"""One Slurm for all tests of this folder, and a copy of the job scripts to submit from."""

import json
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "hf")]

from cluster import Cluster, missing_programs
from jobs import Jobs

from tst_megatron.data.text import documents
from tst_megatron.data.tokenizer.train import train_sentencepiece

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if missing := missing_programs():
        pytest.skip(f"no Slurm for tests: {', '.join(missing)} not installed (apt-get install)")
    with Cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


@pytest.fixture(scope="session")
def prepared(cluster, tmp_path_factory):
    """A checkout in which the text of the quickstart's recipe was prepared: by an array of jobs."""
    jobs = Jobs(cluster, copy_of_project(tmp_path_factory.mktemp("prepared") / "checkout"))
    texts = write_texts(jobs.folder)
    tokenizer = jobs.folder / "tokenizer.model"
    train_sentencepiece(documents.texts(texts), tokenizer, vocab_size=4096)
    array = jobs.submit(
        *("prepare-data.sbatch", tokenizer.name, "quickstart/text", "text-*.jsonl"),
        options=["--array=0-2"],
        PREPARE_OPTIONS="--held-out-fraction 0.1",
    )
    merge = jobs.submit(
        *("merge-data.sbatch", "quickstart/text", "3"), options=[f"--dependency=afterok:{array}"]
    )
    jobs.ended(merge, "COMPLETED")
    return jobs


def write_texts(folder: Path) -> list[Path]:
    """Real text in three files: modules of the standard library."""
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:90]
    paths = [folder / f"text-{number}.jsonl" for number in range(3)]
    for number, path in enumerate(paths):
        texts = [module.read_text(encoding="utf-8") for module in modules[number::3]]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return paths


@pytest.fixture
def checkout(tmp_path):
    """A folder as a user submits from: the job scripts and the recipes."""
    return copy_of_project(tmp_path / "checkout")


def copy_of_project(folder: Path) -> Path:
    for name in ("slurm", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("site.env"))
    return folder
