"""Which files a model folder in Hugging Face format may name."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tst_megatron.hf.folder import INDEX, HuggingFaceWeights


def write(folder, name):
    (folder / "model").mkdir(exist_ok=True)
    save_file({"weight": torch.ones(2)}, folder / "other.safetensors")
    save_file({"weight": torch.ones(2)}, folder / "model" / "own.safetensors")
    (folder / "model" / INDEX).write_text(json.dumps({"weight_map": {"weight": name}}))
    return folder / "model"


@pytest.mark.parametrize("name", ["../other.safetensors", "{}/other.safetensors", "..", "", "a/b"])
def test_an_index_that_leads_to_another_folder_is_refused(tmp_path, name):
    folder = write(tmp_path, name.format(tmp_path))
    with pytest.raises(ValueError, match="a model's files lie beside its index"):
        HuggingFaceWeights(folder)


def test_files_may_be_links_as_in_the_cache_of_the_hub(tmp_path):
    folder = write(tmp_path, "linked.safetensors")
    (folder / "linked.safetensors").symlink_to(tmp_path / "other.safetensors")
    assert torch.equal(HuggingFaceWeights(folder).read("weight"), torch.ones(2))
