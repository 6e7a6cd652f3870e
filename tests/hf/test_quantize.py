"""FP8 and NVFP4 of small models: what is written, its proof, and what the proof refuses."""

import json
import os
import shutil
import sysconfig
from pathlib import Path

import command
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tst_megatron.hf.generate import generate_text
from tst_megatron.hf.quantize import quantize as quantizing
from tst_megatron.hf.quantize.formats import E2M1, FORMATS
from tst_megatron.hf.quantize.proof import prove
from tst_megatron.hf.quantize.quantize import Calibration, quantize

CASES = [("qwen3_moe", "fp8"), ("qwen3_moe", "nvfp4"), ("llama", "fp8"), ("qwen3", "nvfp4")]
NUM_SEQUENCES, LENGTH = 6, 64
TOKENS = torch.randint(384, (2, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    source = (Path(sysconfig.get_paths()["stdlib"]) / "this.py").read_text()
    documents = [source[start : start + 200] for start in range(0, len(source), 200)]
    file.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return file


@pytest.fixture(scope="module")
def quantised(tmp_path_factory, text):
    """Each case once: the original, what was written, the report."""
    done = {}

    def make(family, format_):
        if (family, format_) not in done:
            folder = tmp_path_factory.mktemp(f"{family}-{format_}")
            original = save_model(folder / "hf", family, dtype=torch.bfloat16)
            report = quantize(
                *(original, folder / "quantised"),
                format=format_,
                calibration=Calibration(
                    text=text, num_sequences=NUM_SEQUENCES, sequence_length=LENGTH
                ),
                device="cpu",
            )
            assert sorted(os.listdir(folder)) == ["hf", "quantised"]
            done[family, format_] = original, folder / "quantised", report
        return done[family, format_]

    return make


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("family", "format_"), CASES)
def test_export_is_proven_and_says_how_far_it_is_off(family, format_, quantised):
    original, written, report = quantised(family, format_)
    num_per_layer = 4 + (3 * 4 if family == "qwen3_moe" else 3)
    proof = report.proof
    assert proof.num_quantised == 2 * num_per_layer
    assert proof.num_quantised + proof.num_equal == len(tensors(original))
    # Random weights come close to the largest rounding error, or the bound would be a loose one.
    assert 0.8 < proof.largest_error_share <= 1
    # Random weights of two layers, which a trained model's are not.
    assert 0.01 < proof.relative_logit_difference < (0.2 if format_ == "fp8" else 0.6)
    assert (report.num_sequences, report.num_tokens) == (NUM_SEQUENCES, NUM_SEQUENCES * LENGTH)
    assert report.num_bytes < report.num_bytes_before
    assert AutoTokenizer.from_pretrained(written)("a b") == AutoTokenizer.from_pretrained(original)(
        "a b"
    )


@pytest.mark.parametrize(("family", "format_"), CASES)
def test_files_have_the_form_that_vllm_reads(family, format_, quantised):
    """Keys, types and shapes as vLLM's ``ModelOptQuantConfigBase`` and its layers take them.

    vllm/model_executor/layers/quantization/modelopt.py: ``from_config`` reads quant_algo,
    kv_cache_quant_algo, group_size and exclude_modules (or ignore, in config.json); the layers
    allocate weight, weight_scale, weight_scale_2 and input_scale. vLLM itself is not run here.
    """
    original, written, _ = quantised(family, format_)
    own = json.loads((written / "hf_quant_config.json").read_text())
    assert own["producer"]["name"] == "modelopt"
    routers = [f"model.layers.{layer}.mlp.gate" for layer in (0, 1)]
    excluded = ["lm_head", "model.embed_tokens", *(routers if family == "qwen3_moe" else ())]
    assert own["quantization"] == {
        **{"quant_algo": format_.upper(), "kv_cache_quant_algo": None, "exclude_modules": excluded},
        **({"group_size": 16} if format_ == "nvfp4" else {}),
    }
    config = json.loads((written / "config.json").read_text())
    embedded = config.pop("quantization_config")
    assert config == json.loads((original / "config.json").read_text())
    assert (embedded["quant_method"], embedded["quant_algo"]) == ("modelopt", format_.upper())
    assert embedded["ignore"] == excluded

    found = tensors(written)
    module = "model.layers.1.mlp." + ("experts.3." if family == "qwen3_moe" else "") + "gate_proj"
    rows = 32 if family == "qwen3_moe" else 96
    parts = {
        name.removeprefix(f"{module}."): (tensor.dtype, tuple(tensor.shape))
        for name, tensor in found.items()
        if name.startswith(f"{module}.")
    }
    one_number = (torch.float32, ())
    if format_ == "fp8":
        expected = {"weight": (torch.float8_e4m3fn, (rows, 64)), "weight_scale": one_number}
    else:
        expected = {
            "weight": (torch.uint8, (rows, 32)),
            "weight_scale": (torch.float8_e4m3fn, (rows, 4)),
            "weight_scale_2": one_number,
        }
    assert parts == expected | {"input_scale": one_number}
    for name in ("lm_head", "model.embed_tokens", *excluded[2:]):
        assert found[f"{name}.weight"].dtype == torch.bfloat16


def e4m3(byte: int) -> float:
    """One float8_e4m3fn number by its bits: sign, four of exponent (bias 7), three of mantissa."""
    sign, exponent, mantissa = -1.0 if byte & 128 else 1.0, (byte >> 3) & 15, byte & 7
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


@pytest.mark.parametrize("format_", ["fp8", "nvfp4"])
def test_dequantised_numbers_are_those_of_the_bits(format_, quantised):
    original, written, _ = quantised("qwen3_moe", format_)
    module = "model.layers.0.mlp.experts.2.down_proj"
    found, before = tensors(written), tensors(original)[f"{module}.weight"].float()
    parts = {part: found[f"{module}.{part}"] for part in ("weight", *FORMATS[format_].suffixes)}
    bits = parts["weight"].view(torch.uint8)
    scale_bits = parts["weight_scale"].view(torch.uint8) if format_ == "nvfp4" else None
    by_bits = torch.empty_like(before)
    for row in range(before.shape[0]):
        for column in range(before.shape[1]):
            if format_ == "fp8":
                number = e4m3(int(bits[row, column])) * float(parts["weight_scale"])
            else:
                nibble = int(bits[row, column // 2]) >> (4 * (column % 2)) & 15
                number = E2M1[nibble & 7] * (-1 if nibble & 8 else 1)
                number *= e4m3(int(scale_bits[row, column // 16])) * float(parts["weight_scale_2"])
            by_bits[row, column] = number
    torch.testing.assert_close(FORMATS[format_].dequantise(parts), by_bits, rtol=1e-6, atol=0)
    off = (by_bits - before).norm() / before.norm()
    assert off < (0.03 if format_ == "fp8" else 0.12)


@pytest.mark.parametrize(
    ("format_", "number", "stored", "is_nearest"),
    [
        *[("nvfp4", 0.2, 0.0, True), ("nvfp4", 0.3, 0.0, False), ("nvfp4", -1.7, -1.5, True)],
        *[("nvfp4", 2.6, 3.0, True), ("nvfp4", 2.6, 2.0, False), ("nvfp4", 1.8, 1.5, False)],
        *[("nvfp4", 5.1, 6.0, True), ("nvfp4", 5.1, 4.0, False), ("nvfp4", 1.5, -1.5, False)],
        *[("fp8", 1.06, 1.0, True), ("fp8", 1.06, 1.25, False), ("fp8", 0.001, 0.001953125, True)],
        *[("fp8", 300.0, 288.0, True), ("fp8", 300.0, 256.0, False), ("fp8", 600.0, 448.0, False)],
        ("fp8", 0.0007, 0.001953125, False),
    ],
)
def test_bound_is_half_a_step_of_the_format(format_, number, stored, is_nearest):
    """One number in a block whose largest is 6, with scales of 1."""
    original = torch.tensor([[6.0, number, *[0.0] * 14]])
    if format_ == "fp8":
        stored_OI = torch.tensor([[6.0, stored, *[0.0] * 14]]).to(torch.float8_e4m3fn)
        parts = {"weight": stored_OI, "weight_scale": torch.tensor(1.0)}
    else:
        nibble = E2M1.index(abs(stored)) | (8 if stored < 0 else 0)
        parts = {
            "weight": torch.tensor([[7 | nibble << 4, *[0] * 7]], dtype=torch.uint8),
            "weight_scale": torch.ones(1, 1).to(torch.float8_e4m3fn),
            "weight_scale_2": torch.tensor(1.0),
        }
    assert (FORMATS[format_].error_share(original, parts) <= 1) == is_nearest


@pytest.mark.parametrize("format_", ["fp8", "nvfp4"])
def test_logit_difference_is_that_of_a_model_with_dequantised_weights(
    format_, quantised, text, tmp_path
):
    calibration = Calibration(text=text, num_sequences=2, sequence_length=LENGTH)
    original, written, report = quantised("qwen3_moe", format_)
    found, names = tensors(written), list(tensors(original))
    suffixes = FORMATS[format_].suffixes
    weights = {}
    for name in names:
        module = name.removesuffix(".weight")
        if f"{module}.weight_scale" in found:
            parts = {part: found[f"{module}.{part}"] for part in ("weight", *suffixes)}
            weights[name] = FORMATS[format_].dequantise(parts).contiguous()
        else:
            weights[name] = found[name].float()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(original / "config.json", tmp_path / "config.json")
    tokens_BT = quantizing._calibration_tokens(original, calibration)[:2]
    logits = [
        AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        )(tokens_BT).logits
        for folder in (original, tmp_path)
    ]
    difference = float((logits[0] - logits[1]).abs().max())
    assert report.proof.max_logit_difference == pytest.approx(difference, rel=1e-3)


def test_activation_scales_come_from_the_given_text(quantised, text):
    """448 times ``input_scale`` is the largest activation on exactly those tokens."""
    original, written, _ = quantised("llama", "fp8")
    tokenizer = AutoTokenizer.from_pretrained(original)
    tokens = []
    for line in text.read_text().splitlines():
        tokens += [*tokenizer(json.loads(line)["text"])["input_ids"], tokenizer.eos_token_id]
    tokens_BT = torch.tensor(tokens[: NUM_SEQUENCES * LENGTH]).view(NUM_SEQUENCES, LENGTH)
    model = AutoModelForCausalLM.from_pretrained(original, attn_implementation="eager")
    largest = []
    projection = model.model.layers[1].self_attn.o_proj
    projection.register_forward_pre_hook(lambda _, inputs: largest.append(inputs[0].abs().max()))
    with torch.no_grad():
        for tokens_T in tokens_BT:
            model(tokens_T[None])
    scale = tensors(written)["model.layers.1.self_attn.o_proj.input_scale"]
    assert float(scale) * 448 == pytest.approx(float(max(largest)))


def transposed_scales(found):
    name = "model.layers.0.self_attn.o_proj.weight_scale"
    found[name] = found[name].view(torch.uint8).flip(1).view(torch.float8_e4m3fn)


def swapped_nibbles(found):
    weight = found["model.layers.1.mlp.experts.0.up_proj.weight"]
    found["model.layers.1.mlp.experts.0.up_proj.weight"] = weight << 4 | weight >> 4


def other_expert(found):
    first, second = (f"model.layers.1.mlp.experts.{e}.down_proj.weight" for e in (0, 1))
    found[first], found[second] = found[second], found[first]


def smaller_scale(found):
    found["model.layers.0.self_attn.q_proj.weight_scale_2"] *= 0.8


def one_bit_of_a_norm(found):
    found["model.norm.weight"].view(torch.uint8)[0] ^= 1


def missing_scale(found):
    del found["model.layers.1.self_attn.k_proj.input_scale"]


def unreached_module(found):
    found["model.layers.1.self_attn.k_proj.input_scale"] *= 0


def quantised_router(found):
    found["model.layers.0.mlp.gate.weight_scale"] = torch.ones(())


def other_shared_scale(found):
    found["model.layers.0.self_attn.k_proj.input_scale"] *= 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (transposed_scales, r"o_proj.weight: is off by .* times the largest error"),
        (swapped_nibbles, r"experts.0.up_proj.weight: is off by"),
        (other_expert, r"experts.0.down_proj.weight: is off by"),
        (smaller_scale, r"q_proj.weight: is off by"),
        (one_bit_of_a_norm, r"model.norm.weight: is not quantised, but not bit for bit"),
        (missing_scale, r"missing \['model.layers.1.self_attn.k_proj.input_scale'\]"),
        (unreached_module, r"k_proj.input_scale: is 0: calibration never reached"),
        (quantised_router, r"unknown \['model.layers.0.mlp.gate.weight_scale'\]"),
        (other_shared_scale, r"self_attn.\*.input_scale: q_proj and .* do not share it"),
    ],
)
def test_proof_refuses_what_is_not_the_model(damage, message, quantised, tmp_path):
    original, written, _ = quantised("qwen3_moe", "nvfp4")
    shutil.copytree(written, tmp_path / "damaged")
    found = tensors(written)
    damage(found)
    save_file(found, tmp_path / "damaged" / "model.safetensors")
    with pytest.raises(RuntimeError, match=message):
        prove(original, tmp_path / "damaged", FORMATS["nvfp4"], TOKENS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exclude_modules": ["model.embed_tokens"]}, r"says \['model.embed_tokens'\] instead of"),
        ({"quant_algo": "FP8"}, r"says 'FP8' instead of 'NVFP4'"),
        ({"group_size": 32}, r"says 32 instead of 16"),
    ],
)
def test_proof_refuses_a_configuration_of_something_else(change, message, quantised, tmp_path):
    original, written, _ = quantised("qwen3_moe", "nvfp4")
    shutil.copytree(written, tmp_path / "damaged")
    file = tmp_path / "damaged" / "hf_quant_config.json"
    content = json.loads(file.read_text())
    content["quantization"] |= change
    file.write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match=message):
        prove(original, tmp_path / "damaged", FORMATS["nvfp4"], TOKENS)


def test_export_that_fails_its_proof_leaves_nothing(tmp_path, text, monkeypatch):
    original = save_model(tmp_path / "hf", "llama", dtype=torch.bfloat16)
    write = quantizing._write

    def write_damaged(model, folder):
        write(model, folder)
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found["model.layers.0.self_attn.q_proj.weight_scale"] *= 1.3
        save_file(found, folder / "model.safetensors")

    monkeypatch.setattr(quantizing, "_write", write_damaged)
    with pytest.raises(RuntimeError, match="q_proj.weight: is off by"):
        quantize(
            *(original, tmp_path / "out"),
            format="fp8",
            calibration=Calibration(text=text, num_sequences=1, sequence_length=16),
        )
    assert os.listdir(tmp_path) == ["hf"]


def test_model_in_several_files_with_tied_embeddings_is_proven(tmp_path, text):
    original = save_model(tmp_path / "hf", "qwen3_moe", tie_word_embeddings=True)
    AutoModelForCausalLM.from_pretrained(original).save_pretrained(original, max_shard_size="200KB")
    (original / "model.safetensors").unlink()
    assert len(list(original.glob("*.safetensors"))) > 1
    report = quantize(
        *(original, tmp_path / "out"),
        format="nvfp4",
        calibration=Calibration(text=text, num_sequences=1, sequence_length=16),
    )
    assert report.proof.num_quantised == 32
    assert "lm_head.weight" not in tensors(tmp_path / "out")


def test_command_says_what_it_did(tmp_path, text, monkeypatch, capsys):
    original = save_model(tmp_path / "hf", "qwen3", dtype=torch.bfloat16)
    status, printed = command.run(
        *(monkeypatch, capsys, "quantize", original, tmp_path / "out", "--format", "fp8"),
        *("--text", text, "--sequence-length", "64", "--num-sequences", "100"),
    )
    assert status == 0
    num = int(printed.split(" sequences of 64 (the text ends there)")[0].split()[-1])
    assert f"calibrating on {num * 64:,} tokens: {num} sequences" in printed
    assert f"calibrated on {num} of {num} sequences" in printed
    assert "14 weights within" in printed and "bit for bit" in printed
    assert "rounded weights alone move logits by" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "int4"), "--format int4 is none of fp8, nvfp4"),
        (("--text", "nowhere.jsonl"), "nowhere.jsonl: no such file or folder"),
        (("--sequence-length", "512"), "tokens, and one sequence has 512. Give more text"),
        (("--sequence-length", "1024"), "--sequence-length 1024: the model has 512 positions"),
        (("--device", "gpu"), "--device gpu is none of cpu, cuda, cuda:N"),
    ],
)
def test_wrong_input_is_refused_in_words(
    options, message, quantised, text, tmp_path, monkeypatch, capsys
):
    original, _, _ = quantised("llama", "fp8")
    short = tmp_path / "short.jsonl"
    short.write_text(text.read_text().splitlines()[0])
    given = {"--format": "fp8", "--text": str(short)} | dict([options])
    arguments = [word for pair in given.items() for word in pair]
    status, printed = command.run(
        monkeypatch, capsys, "quantize", original, tmp_path / "out", *arguments
    )
    assert status == 2 and message in printed
    assert os.listdir(tmp_path) == ["short.jsonl"]


def test_output_that_exists_is_refused_and_kept(quantised, text, tmp_path):
    original, _, _ = quantised("llama", "fp8")
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not empty"):
        quantize(original, tmp_path, format="fp8", calibration=Calibration(text=text))
    assert os.listdir(tmp_path) == ["mine"]


def test_incomplete_model_is_refused_with_all_that_is_missing(text, tmp_path):
    model = tmp_path / "hf"
    model.mkdir()
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "1.safetensors"}}')
    with pytest.raises(ValueError) as caught:
        quantize(model, tmp_path / "out", format="fp8", calibration=Calibration(text=text))
    for problem in ("config.json is missing", "no tokenizer", "1.safetensors missing"):
        assert problem in str(caught.value)


def test_quantised_model_is_not_quantised_again(quantised, text, tmp_path):
    _, written, _ = quantised("llama", "fp8")
    with pytest.raises(ValueError, match="it is quantised already"):
        quantize(written, tmp_path / "out", format="fp8", calibration=Calibration(text=text))
    with pytest.raises(ValueError, match="is quantised, for runtimes that transformers is not"):
        generate_text(written, "lamp", 1)


def test_shapes_without_whole_blocks_are_refused_for_nvfp4_alone(text, tmp_path):
    model = save_model(tmp_path / "hf", "llama", dtype=torch.bfloat16, intermediate_size=88)
    calibration = Calibration(text=text, num_sequences=1, sequence_length=16)
    with pytest.raises(
        ValueError, match=r"2 weights \(model.layers.0.mlp.down_proj.weight \[64, 8"
    ):
        quantize(model, tmp_path / "out", format="nvfp4", calibration=calibration)
    report = quantize(model, tmp_path / "out", format="fp8", calibration=calibration)
    assert report.proof.num_quantised == 14


NORM = "model.norm.weight"
EXPERT = "model.layers.1.mlp.experts.3.{}_proj.weight"


def fill(name, value):
    return lambda found: found[name].view(-1)[:3].fill_(value)


def kill_expert(found):
    for part in ("gate", "up", "down"):
        found[EXPERT.format(part)].zero_()


def empty_file(folder):
    (folder / "model.safetensors").write_bytes(b"")


def lying_index(folder):
    index = {"metadata": {}, "weight_map": {NORM: "model.safetensors", "x": "../y.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def no_heads(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        text.replace('"num_attention_heads": 4', '"num_attention_heads": 0')
    )


def other_output_layer(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        text.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (fill(NORM, torch.inf), rf"{NORM} (3 infinite of 64 numbers)"),
        (fill("model.embed_tokens.weight", torch.nan), "embed_tokens.weight (3 NaN of"),
        (fill(EXPERT.format("up"), torch.nan), f"{EXPERT.format('up')} (3 NaN of 2,048 numbers)"),
        (kill_expert, f"all zero in the original: {EXPERT.format('down')}, "),
        (lambda found: found[NORM].fill_(3e38), "computes NaN or infinities on the calibration's"),
        (lambda found: found.update({NORM: torch.zeros(7)}), f"{NORM} is (7,) and should be"),
        (lambda found: found.pop(NORM), f"{NORM} is missing"),
        (empty_file, "model.safetensors: cannot be read: it is empty"),
        (lying_index, "names '../y.safetensors', and a model's files lie beside its index"),
        (no_heads, "num_attention_heads=0: must be a whole number"),
        (other_output_layer, "lm_head.weight is another table than model.embed_tokens.weight"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json: holds no block"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: is not JSON"),
    ],
)
@pytest.mark.parametrize("format_", ["fp8", "nvfp4"])
def test_damaged_model_is_one_sentence_and_nothing_is_left(
    damage, message, format_, quantised, text, tmp_path, monkeypatch, capsys
):
    original, _, _ = quantised("qwen3_moe", format_)
    shutil.copytree(original, tmp_path / "hf")
    found = tensors(tmp_path / "hf")
    of_folder = damage in (empty_file, lying_index, no_heads, other_output_layer) or (
        "config.json" in message
    )
    damage(tmp_path / "hf" if of_folder else found)
    if not of_folder:
        save_file(found, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    options = ("--text", text, "--sequence-length", "32", "--num-sequences", "1")
    status, printed = command.run(
        *(monkeypatch, capsys, "quantize", tmp_path / "hf", tmp_path / "out"),
        *("--format", format_, *options, "--device", "cpu"),
    )
    assert message in printed
    assert status == 2 and os.listdir(tmp_path) == ["hf"]
    if "zero" not in message and "calibration" not in message and format_ == "fp8":
        status, printed = command.run(
            monkeypatch, capsys, "generate", tmp_path / "hf", "--prompt", "lamp"
        )
        assert status == 2 and message in printed
