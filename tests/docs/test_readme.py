"""The README's commands run, and what it says of the code is what the code says."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT / "tests" / "megatron"))
sys.path.insert(0, str(ROOT / "tools"))

import tiny  # noqa: E402
import update_readme  # noqa: E402


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shape(line: str) -> str:
    """A line with every number and path replaced, since digits differ between machines."""
    return re.sub(r"[\d.,]+", "N", re.sub(r"\S*/\S*", "PATH", line))


@pytest.fixture(scope="module")
def short_quickstart(tmp_path_factory):
    """``make quickstart`` in its short form: the same command, a few steps only."""
    folder = tmp_path_factory.mktemp("quickstart")
    made = subprocess.run(
        ["make", "-n", "quickstart"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    (line,) = (line for line in made.splitlines() if "tst-megatron" in line)
    command = shlex.split(line)
    arguments = command[command.index("tst-megatron") + 1 :]
    assert arguments == ["quickstart"]
    printed = tiny.run(
        *arguments, "--short", "--folder", str(folder / "q"), log=folder / "printed.txt"
    )
    return folder / "q", printed


def test_quickstart_ends_as_the_readme_says(short_quickstart):
    _, printed = short_quickstart
    (expected,) = blocks("text")
    expected_lines = expected.strip().splitlines()
    assert len(expected_lines) >= 5
    last = printed.strip().splitlines()[-len(expected_lines) :]
    assert [shape(line) for line in last] == [shape(line) for line in expected_lines]


def test_quickstart_announces_its_plan_and_proves_its_export(short_quickstart):
    _, printed = short_quickstart
    assert "the switch comes after step 8" in printed
    assert "superposition: steps 1-8, bag size 4, 65,536 raw tokens" in printed
    assert " epochs over " in printed and " tokens, of which an epoch leaves out " in printed
    proof = re.search(r"logits up to ([\d.]+) within (\S+) of Megatron's", printed)
    assert float(proof[2]) <= 1e-5


def test_quickstart_leaves_a_whole_run_folder(short_quickstart):
    folder, _ = short_quickstart
    (run,) = folder.glob("run-*-short")
    for name in ("recipe.yaml", "resolved.yaml", "versions.json", "metrics.jsonl", "state.json"):
        assert (run / name).stat().st_size > 0
    assert (run / "report" / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert any((run / "tensorboard").iterdir())
    assert json.loads((run / "state.json").read_text())["status"] == "finished"
    assert json.loads((run / "versions.json").read_text())["device"] == "cpu"
    exported = {path.name for path in (run / "hf").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= exported


def test_second_quickstart_reuses_what_is_valid_and_says_so(short_quickstart, tmp_path):
    folder, first = short_quickstart
    second = tiny.run(
        *("quickstart", "--short", "--folder", str(folder)), log=tmp_path / "second.txt"
    )
    assert second.count("reusing") == 3  # tokenizer, text and export
    assert "this run is finished" in second
    assert second.strip().splitlines()[-5:] == first.strip().splitlines()[-5:]


def test_every_command_of_the_readme_exists():
    commands = [
        shlex.split(line.partition("#")[0])
        for block in blocks("bash")
        for line in block.splitlines()
        if line.startswith("tst-megatron")
    ]
    assert len(commands) >= 5
    for command in commands:
        names = command[1:3] if command[1] in ("data", "checkpoint") else command[1:2]
        done = subprocess.run(
            [sys.executable, "-m", "tst_megatron", *names, "--help"],
            capture_output=True,
            text=True,
            env=tiny.environment(COLUMNS="200"),
            check=True,
        )
        for option in (word for word in command if word.startswith("--")):
            assert option in done.stdout, (command, option)


def test_your_own_run_works_as_written(short_quickstart, tmp_path):
    """The README's block, line by line, with a small vocabulary, text and recipe."""
    folder, _ = short_quickstart
    shutil.copyfile(folder / "corpus.jsonl", tmp_path / "texts.jsonl")
    recipe = tiny.write_recipe(
        tmp_path / "my-recipe.yaml",
        "text",
        {"bag-size": 4, "superposition-fraction": 0.5},
        expert_model_parallel_size=2,
    )
    assert recipe.name == "my-recipe.yaml"
    (block,) = (block for block in blocks("bash") if "data tokenizer" in block)
    for line in block.splitlines():
        words = shlex.split(line.replace("--vocab-size 32000", "--vocab-size 512"))
        done = subprocess.run(
            [sys.executable, "-m", "tst_megatron", *words[1:]],
            cwd=tmp_path,
            env=tiny.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    assert (tmp_path / "exported" / "model.safetensors").exists()


def test_table_of_the_tst_block_is_generated_from_the_code():
    assert update_readme.updated(README) == README


def test_links_of_the_readme_lead_somewhere():
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_versions_of_the_readme_are_those_of_the_lock_file():
    lock = (ROOT / "uv.lock").read_text(encoding="utf-8")
    section = README.partition("## Supported versions")[2].partition("##")[0]
    for name in ("megatron-core", "torch", "transformers", "nvidia-modelopt"):
        version = re.search(rf'name = "{name}"\nversion = "([^"]+)"', lock)[1]
        assert f"{name} {version}" in section


def test_readme_is_short():
    """At most 1,500 words; the generated table is not counted."""
    before, _, rest = README.partition(update_readme.BEGIN)
    after = rest.partition(update_readme.END)[2]
    assert after
    assert len((before + after).split()) <= 1500
