"""Which files a model folder in Hugging Face format may name, and what they must hold."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from tst_megatron.data.tokenizer.files import copy_files, tokenizer_sha256
from tst_megatron.hf.model_folder.safetensors_files import INDEX, ONE_FILE, is_buffer
from tst_megatron.hf.model_folder.soundness import check_numbers, not_numbers
from tst_megatron.hf.model_folder.weight_files import HuggingFaceWeights
from tst_megatron.hf.model_folder.whole_model import as_transformers_reads, problems_along

OWN = "own.safetensors"


def write(folder, listed, **tensors):
    """A folder with one file, and an index of it."""
    (folder / "model").mkdir(exist_ok=True)
    save_file({"weight": torch.ones(2)}, folder / "other.safetensors")
    save_file({"weight": torch.ones(2), **tensors}, folder / "model" / OWN)
    (folder / "model" / INDEX).write_text(json.dumps({"weight_map": listed}))
    return folder / "model"


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "{}/other.safetensors", "..", "", "a/b", "..\\o", ".", 5, None]
)
def test_an_index_that_leads_to_another_folder_is_refused(tmp_path, name):
    name = name.format(tmp_path) if isinstance(name, str) else name
    folder = write(tmp_path, {"weight": name})
    with pytest.raises(ValueError, match="a model's files lie beside its index"):
        HuggingFaceWeights(folder)


def test_files_may_be_links_as_in_the_cache_of_the_hub(tmp_path):
    folder = write(tmp_path, {"weight": "linked.safetensors"})
    (folder / "linked.safetensors").symlink_to(tmp_path / "other.safetensors")
    assert torch.equal(HuggingFaceWeights(folder).read("weight"), torch.ones(2))


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"weight": OWN, "ghost": OWN}, f"ghost is not in {OWN}, where the index has it"),
        ({"ghost": OWN}, f"2 differences.*{OWN} has weight, which is nowhere by the index"),
        ({"weight": "gone.safetensors"}, "gone.safetensors missing, which"),
        ({"weight": "config.json"}, "names config.json, no safetensors file"),
        ({}, "its weight_map must name a file"),
        ([], "its weight_map must name a file"),
        (None, "its weight_map must name a file"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path, listed, message):
    with pytest.raises(ValueError, match=message):
        HuggingFaceWeights(write(tmp_path, listed))


def test_an_index_beside_one_whole_file_is_refused_unless_it_is_of_that_file(tmp_path):
    folder = write(tmp_path, {"weight": OWN})
    (folder / OWN).rename(folder / ONE_FILE)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"weight": ONE_FILE}}))
    assert HuggingFaceWeights(folder).names() == ["weight"]
    folder = write(tmp_path, {"weight": OWN})
    with pytest.raises(ValueError, match="has model.safetensors and an index of other files"):
        HuggingFaceWeights(folder)


@pytest.mark.parametrize("metadata", [{}, {"metadata": None}, {"metadata": {"total_size": 1}}])
def test_transformers_is_given_an_index_with_metadata(tmp_path, metadata):
    folder = write(tmp_path, {})
    index = {"weight_map": {"weight": OWN}, **metadata}
    (folder / INDEX).write_text(json.dumps(index))
    assert HuggingFaceWeights(folder).names() == ["weight"]
    with as_transformers_reads(folder) as given:
        assert (given == folder) == bool(metadata.get("metadata"))
        assert isinstance(json.loads((given / INDEX).read_text())["metadata"], dict)
        assert HuggingFaceWeights(given).names() == ["weight"]
    assert json.loads((folder / INDEX).read_text()) == index


def header(tensors, length=None):
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def tensor(start, end):
    return {"dtype": "F32", "shape": [2], "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"xxx", "cannot be read as safetensors"),
        (b"x" * 90, "cannot be read as safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of git-lfs"),
        (header({}, length=2**62), "cannot be read as safetensors"),
        (struct.pack("<Q", 8) + b"notjson!", "cannot be read as safetensors"),
        (header({"a": tensor(0, 8), "b": tensor(0, 8)}) + b"0" * 8, "cannot be read as"),
        (header({"a": tensor(10**9, 10**9 + 8)}) + b"0" * 8, "cannot be read as safetensors"),
        (header({"a": tensor(0, 8)}) + b"0" * 7, "cut short"),
        (header({"a": tensor(0, 8)}) + b"0" * 9, "cut short, or something else"),
    ],
)
def test_damaged_file_is_named(tmp_path, content, message):
    (tmp_path / ONE_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=f"{ONE_FILE}: .*{message}.*Fetch it again"):
        HuggingFaceWeights(tmp_path)


def test_buffers_are_no_weights_and_biases_are(tmp_path):
    there = "model.layers.0.self_attn"
    save_file(
        {
            "weight": torch.ones(2),
            f"{there}.rotary_emb.inv_freq": torch.full((2,), torch.nan),
            f"{there}.masked_bias": torch.tensor(-1e4),
            f"{there}.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
        },
        tmp_path / ONE_FILE,
    )
    assert HuggingFaceWeights(tmp_path).names() == ["weight"]
    check_numbers(HuggingFaceWeights(tmp_path))
    assert is_buffer("model.rotary_emb.original_inv_freq")
    assert not is_buffer(f"{there}.q_proj.bias", (4,))
    assert not is_buffer(f"{there}.bias", (4,))
    assert not is_buffer("model.my_rotary_emb.inv_freq.weight")


def test_what_is_no_number_is_counted_by_tensor(tmp_path):
    broken = torch.ones(10, dtype=torch.bfloat16)
    broken[2:5], broken[7] = torch.nan, -torch.inf
    save_file({"a": broken, "b": torch.zeros(3), "c.bias": torch.zeros(3)}, tmp_path / ONE_FILE)
    files = HuggingFaceWeights(tmp_path)
    with pytest.raises(ValueError, match=r"a \(3 NaN and 1 infinite of 10 numbers\)"):
        check_numbers(files)
    assert len(not_numbers(files)) == 1
    assert "all zero in the original: b (1 of its weights)." in not_numbers(files, or_zeros=True)[1]


def test_all_chat_templates_go_along_and_do_not_make_another_tokenizer(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        folder.mkdir()
    (source / "tokenizer.json").write_text("{}")
    sha256 = tokenizer_sha256(source)
    (source / "additional_chat_templates").mkdir()
    along = ["additional_chat_templates/rag.jinja", "additional_chat_templates/tool_use.jinja"]
    for name in along:
        (source / name).write_text(name)
    (source / "spiece.model").write_text("x")
    assert copy_files(source, target) == ["tokenizer.json", "spiece.model", *along]
    assert (target / along[1]).read_text() == along[1]
    assert tokenizer_sha256(source) == tokenizer_sha256(target) == sha256


def test_file_beside_the_weights_that_nobody_can_read_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("garbage")
    (tmp_path / "generation_config.json").write_text("[]")
    found = problems_along(tmp_path)
    assert [problem.split(": ")[0].rpartition("/")[2] for problem in found] == [
        "tokenizer.json",
        "generation_config.json",
    ]
