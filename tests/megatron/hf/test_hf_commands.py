"""``export``, ``import`` and ``generate`` as typed: what they print, and what they refuse."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from damage import flip, overwrite, with_a_command, without, without_a_part
from hf_checkpoints import save_once, with_arguments
from typer.testing import CliRunner

from tst_megatron.checkpoint.reader.process import in_one_process
from tst_megatron.cli.app import app
from tst_megatron.hf.export import export
from tst_megatron.hf.export_warnings import export_warnings
from tst_megatron.hf.families.family import OPPOSITE, recipe_key
from tst_megatron.hf.families.known import FAMILIES
from tst_megatron.megatron.arguments import argument_parser
from tst_megatron.megatron.names import TESTED_MEGATRON


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_once(tmp_path_factory.getbasetemp())


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, ValueError), result.output
    return str(result.exception)


def test_export_generate_and_import_say_what_they_did(saved: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("import json\n\n\ndef f(x):\n    return json.dumps(x)\n")
    said = run("export", saved / "ep2", tmp_path / "hf", "--dtype", "fp32", "--text", text)
    assert "step 3: " in said
    assert f"tokenizer: SentencePiece, from {saved / 'tokenizer.model'}" in said.replace("\n", " ")
    assert "tensors bit for bit, logits within" in said

    said = run("generate", tmp_path / "hf", "--prompt", "def f(x):\n", "--num-tokens", "4")
    assert said.startswith("def f(x):\n")
    assert len(said) > len("def f(x):\n\n")

    said = run("import", tmp_path / "hf", tmp_path / "imported")
    assert "Qwen3-MoE: " in said
    assert "tokenizer.json" in said
    assert "model.yaml" in said
    # The tokenizer goes all the way.
    run("export", tmp_path / "imported", tmp_path / "again", "--dtype", "fp32")
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    configs = [
        json.loads((tmp_path / each / "config.json").read_text()) for each in ("hf", "again")
    ]
    assert configs[0] == configs[1]


def test_export_without_verification_says_nothing_of_it(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        result = CliRunner().invoke(app, ["export", str(saved / "ep2"), str(tmp_path / "hf")])
        assert "0.0 GB are free, the export needs 0." in str(result.exception)
        assert list(tmp_path.iterdir()) == []
    said = run("export", saved / "ep2", tmp_path / "hf", "--no-verify")
    assert "not verified, as asked" in said
    assert "bit for bit" not in said
    assert "nothing: the export was not verified" in (tmp_path / "hf" / "README.md").read_text()


def test_model_card_has_the_facts_of_training(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = [[16, 12_483], [1, 37_500]]
    tst = {"phases": phases, "cursor": {"raw tokens": 123_456_789}, "slot-weights": "1/i"}
    run_of = {"seq_length": 8192, "global_batch_size": 1024}
    with_arguments(monkeypatch, tst=tst, **run_of)
    run("export", saved / "ep2", tmp_path / "hf")

    card = (tmp_path / "hf" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for fact in (
        "| Optimizer steps | 3 |",
        "superposition, K = 16: 12,483 steps, 1,675,439,898,624 raw tokens; next token, K = 1: "
        "37,500 steps, 314,572,800,000 raw tokens (r = 0.2497 of 49,983 steps)",
        "| Raw tokens read | 123,456,789 |",
        "| Ablation | tst.slot-weights 1/i |",
        "tensors bit for bit those of the checkpoint; logits within ",
        f"megatron-core {TESTED_MEGATRON}",
    ):
        assert fact in card


def test_export_of_a_damaged_checkpoint_is_one_error_and_leaves_nothing(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(name: str) -> Path:
        shutil.copytree(saved / "ep2", tmp_path / name)
        shutil.copyfile(saved / "tokenizer.model", tmp_path / name / "tokenizer.model")
        return tmp_path / name

    lacking = copy("lacking")
    without(lacking / "iter_0000003", "decoder.final_layernorm.weight")
    assert "decoder.final_layernorm.weight is missing" in refused(
        "export", lacking, tmp_path / "hf"
    )

    partial = copy("partial")
    without_a_part(partial / "iter_0000003", "decoder.layers.mlp.experts.experts.linear_fc2.weight")
    message = refused("export", partial, tmp_path / "hf")
    assert "the parts of decoder.layers.mlp.experts.experts.linear_fc2.weight do not" in message

    half = copy("half")
    shard = next((half / "iter_0000003").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:1000])
    message = refused("export", half, tmp_path / "hf")
    assert f"{shard.name} has 1,000 bytes of" in message

    rotten = copy("rotten-weight")
    overwrite(rotten / "iter_0000003", "decoder.final_layernorm.weight")
    message = refused("export", rotten, tmp_path / "hf")
    assert "cannot be read" in message
    assert f"tst-megatron checkpoint verify {rotten}" in message

    rotten = copy("rotten-arguments")
    overwrite(rotten / "iter_0000003", "common_state")
    assert "common_state/shard_0_1 is damaged (" in refused("export", rotten, tmp_path / "hf")

    with_arguments(monkeypatch, kv_channels=16)
    message = refused("export", saved / "ep2", tmp_path / "hf")
    assert "decoder.layers.self_attention.linear_qkv.weight is" in message
    assert "and should be" in message
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".hf", "hf"))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": None, "qk_layernorm": False, "add_qkv_bias": True}, "no Llama form"),
        (
            {"num_experts": None, "use_rope_scaling": True},
            "no Qwen3 form: use-rope-scaling is true",
        ),
        ({"mtp_num_layers": 1}, "no Qwen3-MoE form: mtp-num-layers is 1"),
        ({"heterogeneous_layers_config_path": "x"}, "not a GPT model of uniform layers"),
    ],
)
def test_export_of_another_architecture_is_one_error_that_the_recipe_would_have_foretold(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, message: str
) -> None:
    with_arguments(monkeypatch, **changes)
    refusal = refused("export", saved / "ep2", tmp_path / "hf")
    assert message in refusal
    assert list(tmp_path.iterdir()) == []
    in_one_process()
    from tst_megatron.megatron.distributed_checkpoint.model import read_saved_state

    args = read_saved_state(saved / "ep2" / "iter_0000003")["args"]
    (warning,) = export_warnings(args)
    reasons = refusal.partition(message.partition(":")[0])[2]
    assert reasons.removeprefix(": ").partition(". ")[0] in warning


def test_settings_of_the_families_are_keys_of_megatrons_parser_and_its_defaults_are_foretold() -> (
    None
):
    parser = argument_parser()
    of_key = {option: action for action in parser._actions for option in action.option_strings}
    for name in {name for family in FAMILIES for name in family.settings()}:
        action = of_key[f"--{recipe_key(name)}"]
        assert action.dest == name
        # Whether the key turns the argument off.
        assert (action.const is False) == (name in OPPOSITE)

    parsed = parser.parse_args(["--use-rotary-position-embeddings", "--normalization", "RMSNorm"])
    assert export_warnings(parsed) == [
        "export will refuse this model, which has no Llama form: swiglu is false (must be true); "
        "disable-bias-linear is false (must be true). Change that before training if you want the "
        "model in Hugging Face format"
    ]


def test_generate_refuses_what_is_no_export(saved: Path, tmp_path: Path) -> None:
    message = refused("generate", tmp_path, "--prompt", "x")
    assert "has no config.json and no tokenizer_config.json" in message
    export(saved / "ep2", tmp_path / "hf", verify=False)
    assert "--prompt: has no tokens" in refused("generate", tmp_path / "hf", "--prompt", "")
    assert "--dtype fp64 is none of" in refused(
        "generate", tmp_path / "hf", "--prompt", "x", "--dtype", "fp64"
    )


def test_export_of_a_flipped_bit_is_refused_and_leaves_nothing(saved: Path, tmp_path: Path) -> None:
    """It would be compared with what was read, and be proven bit for bit."""
    shutil.copytree(saved / "ep2", tmp_path / "ep2")
    flip(tmp_path / "ep2" / "iter_0000003", "decoder.final_layernorm.weight")
    said = refused("export", tmp_path / "ep2", tmp_path / "hf", "--no-verify")
    assert "decoder.final_layernorm.weight is damaged (" in said
    assert "tst-megatron checkpoint verify" in said
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("where", [".metadata", "common_state"])
def test_export_runs_no_command_out_of_a_checkpoint(
    saved: Path, tmp_path: Path, where: str
) -> None:
    shutil.copytree(saved / "ep2", tmp_path / "ep2")
    with_a_command(tmp_path / "ep2" / "iter_0000003", where, tmp_path / "touched")
    said = refused("export", tmp_path / "ep2", tmp_path / "hf", "--no-verify")
    assert "it names posix.system, which no checkpoint holds" in said
    assert not (tmp_path / "touched").exists()
