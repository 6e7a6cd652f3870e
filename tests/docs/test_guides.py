"""What documents say of recipes and profiles is what the code says, and their commands exist."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import update_readme  # noqa: E402

from tst_megatron.cli import app  # noqa: E402
from tst_megatron.compare.pairs import verdict  # noqa: E402
from tst_megatron.compare.statistics.gap import ASSUMED_NOISE  # noqa: E402
from tst_megatron.recipe.profiles import PROFILES  # noqa: E402
from tst_megatron.recipe.recipe import load_recipe  # noqa: E402

GUIDES = {path.parent.name: path for path in update_readme.EXAMPLES}
NUM_GPUS = {"llama-270m": 8, "llama-600m": 8, "llama-3b": 64, "qwen3-10b-a1b": 64}


def lines(document):
    return "\n".join(re.findall(r"```bash\n(.*?)```", document, flags=re.DOTALL)).splitlines()


def commands(document):
    """The words of every command of ours in a document."""
    return [shlex.split(line) for line in lines(document) if line.startswith("tst-megatron")]


def training_jobs(document):
    """(recipe, GPUs) of every training job: as the line says, and the script where it does not."""
    found = []
    for line in lines(document):
        if "slurm/pretrain" not in line:
            continue
        words = shlex.split(line)
        at = next(index for index, word in enumerate(words) if word.startswith("slurm/pretrain"))
        script = (ROOT / words[at]).read_text(encoding="utf-8")
        options = re.findall(r"^#SBATCH (--.*)", script, flags=re.MULTILINE) + words[:at]
        values = dict(
            word.split("=", 1) for word in options if word.startswith("--") and "=" in word
        )
        default = re.search(r"RECIPE:=([^}]*)", script)
        given = [word.removeprefix("RECIPE=") for word in words[:at] if word.startswith("RECIPE=")]
        recipe = [*words[at + 1 :], *given, *([default[1]] if default else [])][0]
        assert values["--gpus-per-node"] == values["--ntasks-per-node"], "one task for each GPU"
        found.append((recipe, int(values["--nodes"]) * int(values["--ntasks-per-node"])))
    return found


def parse(words):
    """Parse a command as the command line would, without running it."""
    words = words[words.index("tst-megatron") + 1 :]
    command = typer.main.get_command(app.app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    return command.make_context(command.name, words).params


def test_every_generated_part_is_up_to_date():
    documents = update_readme.documents()
    assert len(documents) == 2 + len(NUM_GPUS)
    for path, wanted in documents.items():
        assert path.read_text(encoding="utf-8") == wanted, path


def test_every_pair_has_a_guide():
    assert GUIDES.keys() == NUM_GPUS.keys()


@pytest.mark.parametrize("model", NUM_GPUS)
def test_commands_of_a_guide_parse_and_name_the_recipe_and_its_gpus(model):
    found = commands(GUIDES[model].read_text(encoding="utf-8"))
    parsed = [(words, parse(words)) for words in found]
    recipes = {str(params["recipe"]) for _, params in parsed if "recipe" in params}
    assert recipes == {f"examples/{model}/{arm}.yaml" for arm in ("baseline", "tst")}
    checks = [params["nproc"] for words, params in parsed if "check" in words]
    assert checks == [NUM_GPUS[model]] * 2
    assert sorted(training_jobs(GUIDES[model].read_text(encoding="utf-8"))) == [
        (f"examples/{model}/{arm}.yaml", NUM_GPUS[model]) for arm in ("baseline", "tst")
    ]


@pytest.mark.parametrize("model", NUM_GPUS)
def test_guide_prepares_the_folders_that_the_recipe_reads(model):
    found = commands(GUIDES[model].read_text(encoding="utf-8"))
    prepared = {str(parse(words)["output"]) for words in found if "prepare" in words}
    recipe = load_recipe(GUIDES[model].parent / "tst.yaml")
    assert prepared == {str(folder) for folder in recipe.data}


@pytest.mark.parametrize("model", NUM_GPUS)
def test_guide_has_a_row_for_each_value_of_ours(model):
    text = GUIDES[model].read_text(encoding="utf-8")
    marked = sum(
        line.count("# ours: ")
        for arm in ("baseline", "tst")
        for line in (GUIDES[model].parent / f"{arm}.yaml").read_text().splitlines()
    )
    generated = text.partition(update_readme.BEGIN)[2].partition(update_readme.END)[0]
    assert len(generated.splitlines()) - 2 == marked > 15


@pytest.mark.parametrize("model", NUM_GPUS)
def test_guide_says_what_has_not_been_measured(model):
    text = " ".join(GUIDES[model].read_text(encoding="utf-8").split())
    assert "Nothing here has run on a GPU" in text
    assert "FP8 and MXFP8 are untested on hardware" in text
    assert "The complete text was not prepared here" in text


TOKENIZERS = {"qwen3-10b-a1b": "data/qwen3-tokenizer"}


@pytest.mark.parametrize("model", NUM_GPUS)
def test_guide_prepares_with_the_tokenizer_that_it_fetches(model):
    text = GUIDES[model].read_text(encoding="utf-8")
    folder = TOKENIZERS.get(model, "data/llama3-tokenizer")
    assert re.search(rf"^hf download .*tokenizer.json .*--local-dir {folder}$", text, flags=re.M)
    prepared = [parse(words) for words in commands(text) if "prepare" in words]
    assert {str(params["tokenizer"]) for params in prepared} == {folder}
    # The EOS of Qwen3's tokenizer ends turns of a chat.
    end = "<|endoftext|>" if "qwen3" in model else None
    assert {params["eod_token"] for params in prepared} == {end}


@pytest.mark.parametrize(
    "name",
    [
        "data-preparation.md",
        "from-outside.md",
        "branching.md",
        "comparing.md",
        "sweeps.md",
        "audit.md",
    ],
)
def test_commands_and_links_of_a_page_lead_somewhere(name):
    path = (ROOT / "docs" / name).resolve()
    document = path.read_text(encoding="utf-8")
    assert commands(document)
    for words in commands(document):
        assert parse(words), words
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", document)
    assert [each for each in links if not (path.parent / each).exists()] == []
    for file in re.findall(r"`(tests/[\w/.]+)`", document):
        assert (ROOT / file).exists(), file


def test_guide_to_comparing_has_the_limits_of_the_verdict():
    document = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
    smallest = verdict.NOISE_OF_SINGLE_RUNS * ASSUMED_NOISE
    for limit in (
        f"fewer than {verdict.FEWEST_BLOCKS} held-out sequences",
        f"wider than {verdict.WIDEST} nats",
        f"a gap below {smallest:.3f} nats",
        f"fewer than {verdict.FEWEST_RECOVERY_STEPS:,} steps after its switch",
        f"so {ASSUMED_NOISE} nats are assumed",
    ):
        assert limit in " ".join(document.split()), limit


def test_links_of_the_guides_and_of_the_profiles_lead_somewhere():
    for path in (*GUIDES.values(), update_readme.PROFILES):
        targets = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
        assert targets, path
        assert [each for each in targets if not (path.parent / each).exists()] == [], path


def test_readme_names_every_recipe_profile_and_params():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for model in NUM_GPUS:
        assert f"examples/{model}/README.md" in readme
    for profile in PROFILES:
        assert f"`{profile}`" in readme
    assert "tst-megatron params" in readme
    assert "FP8 and MXFP8" in readme.partition("**Untested**")[2]


def test_commands_of_the_profiles_parse():
    (command,) = commands(update_readme.PROFILES.read_text(encoding="utf-8"))
    assert parse(command)["overrides"] == ["profile=tuned", "moe-token-dispatcher-type=alltoall"]


def test_commands_of_offline_exist_and_its_links_lead_somewhere():
    path = ROOT / "docs" / "offline.md"
    document = path.read_text(encoding="utf-8")
    options = re.findall(r"^\| `(--[a-z-]+)` \|", document, flags=re.MULTILINE)
    script = (ROOT / "tools" / "wheelhouse.py").read_text(encoding="utf-8")
    assert options == re.findall(r'add_argument\("(--[a-z-]+)"', script)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    used = set(re.findall(r"\bmake ([a-z-]+)", document)) & {"test-fast", "wheelhouse-check"}
    assert used == {"test-fast", "wheelhouse-check"} and used <= targets
    for script in re.findall(r"tools/[\w.]+|tests/[\w./]+\.py", document):
        assert (ROOT / script).exists(), script
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", document)
    assert [each for each in links if not (path.parent / each).exists()] == []
    assert "](offline.md)" in (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def extras_named_in(document):
    """Every extra of ours that a document installs (`--extra a`) or speaks of (extras `a`, `b`)."""
    found = re.findall(r"--extra[ =]([\w-]+)", document)
    found += ",".join(re.findall(r"tst[-_]megatron\[([\w,-]+)\]", document)).split(",")
    for row in re.findall(r"\bextras?((?:(?:,|\s|and|or)+`[\w-]+`)+)", document):
        found += re.findall(r"`([\w-]+)`", row)
    return [name for name in found if name]


def test_every_extra_that_a_document_names_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].keys()
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *GUIDES.values()]
    named = {str(path): extras_named_in(path.read_text(encoding="utf-8")) for path in paths}
    wrong = {path: unknown for path, names in named.items() if (unknown := {*names} - extras)}
    assert not wrong
    # What an image and a folder of wheels have is all of them: Transformer Engine comes otherwise.
    for name in ("image.md", "offline.md"):
        assert extras - {"gpu"} <= {*named[str(ROOT / "docs" / name)]}, name
    assert {"gpu", "eval"} <= {*named[str(ROOT / "docs" / "operations.md")]}


def test_commands_of_operations_parse_and_its_links_scripts_and_variables_exist():
    path = ROOT / "docs" / "operations.md"
    document = path.read_text(encoding="utf-8")
    found = commands(document)
    assert {words[1] for words in found} >= {"check", "data", "checkpoint"}
    for words in found:
        assert parse(words), words
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", document)
    assert [each for each in links if not (path.parent / each).exists()] == []
    for script in re.findall(r"slurm/[\w.-]+\.sbatch", document):
        assert (ROOT / script).exists(), script
    for script in (ROOT / "slurm").glob("*.sbatch"):
        assert f"`{script.name}`" in document
    defaults = (ROOT / "slurm" / "pretrain.sbatch").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| `?([^ |`]*)`? \|", document, flags=re.MULTILINE))
    declared = dict(re.findall(r'^: "\$\{([A-Z_]+):=([^}]*)\}"', defaults, flags=re.MULTILINE))
    assert rows.keys() - {"TST_ENVIRONMENT"} == declared.keys()
    assert {name: rows[name] for name in declared if declared[name]} == {
        name: value for name, value in declared.items() if value
    }


def test_every_page_that_says_untested_is_in_the_list_of_what_is():
    listed = (ROOT / "docs" / "measured.md").read_text().partition("## What is untested\n")[2]
    assert listed
    for path in [*ROOT.glob("docs/*.md"), ROOT / "README.md"]:
        if path.name != "measured.md" and re.search("untested", path.read_text(), re.IGNORECASE):
            assert f"[{path.stem}](" in listed, path
