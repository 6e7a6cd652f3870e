"""Nothing here asks a network or touches a home folder."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# Before the libraries of Hugging Face are imported, which read them once.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="tst-megatron-hf-")


@pytest.fixture(scope="session", autouse=True)
def hf_home():
    """Leave no empty folder behind."""
    yield
    import shutil

    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
