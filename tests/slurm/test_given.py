"""What the job scripts refuse before anything starts, with stand-ins for Slurm's commands."""

import re
from pathlib import Path

import no_slurm
import pytest

from tst_megatron.cli import runs as commands
from tst_megatron.training import train as choreography

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "examples/quickstart/tst.yaml"
SCRIPTS = sorted(path.name for path in (ROOT / "slurm").glob("*.sbatch"))
TRAINING = ("pretrain.sbatch", RECIPE)
NUMBERS = (
    *("MAX_STARTS_WITHOUT_PROGRESS", "START_SECONDS", "HANG_SECONDS", "WATCH_SECONDS"),
    "PREFLIGHT_MINUTES",
)


def refused(ended):
    """The sentences of a script that ended with 2 before it started or made anything."""
    assert ended.status == 2, ended.output
    assert ended.started == [] and not (ended.folder / "runs").exists()
    # One line for each problem, and no other word of bash's or of another program's.
    assert len(ended.errors) == len(ended.output.splitlines()), ended.output
    return ended.errors


def test_stand_ins_let_a_run_come_to_its_end(checkout):
    ended = no_slurm.run(checkout, *TRAINING, PREFLIGHT="yes")
    assert ended.status == 0 and ended.errors == [], ended.output
    commands = [line.split("rank.sh ")[1].split()[1] for line in ended.started]
    assert commands == ["check", "preflight", "preflight-verdict", "train"]
    assert all("--export=ALL " in line for line in ended.started)


# --- variables ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["abc", "1.5", "1e3", "08", "-1", "0", " 3", "0x10", "9" * 20, "a[$(touch ran)]", "٣", "1\n2"],
)
def test_variable_that_is_no_number_is_refused_by_name(checkout, value):
    ended = no_slurm.run(checkout, *TRAINING, **dict.fromkeys(NUMBERS, value))
    assert [error.split("=")[0] for error in refused(ended)] == list(NUMBERS)
    assert all("must be a whole number from 1" in error for error in ended.errors)
    assert not (checkout / "ran").exists()


WRONG = {
    "PREFLIGHT": "ja",
    "TST_BASELINE": "absent.json",
    "TST_BIND": "socket",
    "TST_CORDON": "README/nodes",
    "TST_MASTER_ADDR": "node 1",
    "TST_MASTER_PORT": "65536",
    "TST_MOUNTS": "absent:/data",
    "TST_SCRATCH": "absent",
    "TST_SECRETS": "absent",
    "TST_SITE": "absent.env",
    "TST_VENV": "absent",
}


def test_all_wrong_variables_and_keys_are_named_at_once(checkout):
    (checkout / "README").touch()
    ended = no_slurm.run(checkout, *TRAINING, "lr", "--nodes=4", **WRONG)
    text = "\n".join(refused(ended))
    for name in WRONG:
        assert re.search(rf"^{name}\b", text, re.MULTILINE), name
    assert "RECIPE: 'lr' is not KEY=VALUE" in text
    assert "'--nodes=4' is not KEY=VALUE. Options of sbatch come before the script" in text


@pytest.mark.parametrize("value", ["-x", "", ".", "..", "/", "README", "README/run", "gone"])
def test_run_folder_that_cannot_be_one_is_refused(checkout, value):
    (checkout / "README").touch()
    (checkout / "gone").symlink_to("nowhere")
    if not value:
        # As where none is given.
        assert no_slurm.run(checkout, *TRAINING, RUN_FOLDER="").status == 0
        return
    (error,) = refused(no_slurm.run(checkout, *TRAINING, RUN_FOLDER=value))
    assert error.startswith(f"RUN_FOLDER='{value}': ")


@pytest.mark.parametrize(
    ("script", "arguments", "variables", "said"),
    [
        ("pretrain.sbatch", (), {}, "no recipe"),
        ("pretrain.sbatch", ("examples",), {}, "RECIPE='examples': no such file"),
        ("pretrain-10b-a1b-64gpu.sbatch", (), {"RECIPE": "absent.yaml"}, "RECIPE='absent.yaml'"),
        ("pretrain-10b-a1b-64gpu.sbatch", (), {"WATCH_SECONDS": "x"}, "WATCH_SECONDS='x'"),
        ("preflight.sbatch", (), {"PREFLIGHT_MINUTES": "1.5"}, "PREFLIGHT_MINUTES='1.5'"),
        ("preflight.sbatch", (), {"TST_BASELINE": "absent"}, "TST_BASELINE='absent': no such"),
        ("preflight.sbatch", ("--write-baseline",), {}, "--write-baseline: set TST_BASELINE"),
        ("merge-data.sbatch", ("out", "abc"), {}, "NUM_SHARDS='abc'"),
        ("merge-data.sbatch", ("out", "1e3"), {}, "NUM_SHARDS='1e3'"),
        ("merge-data.sbatch", ("out", "08"), {}, "NUM_SHARDS='08'"),
        ("merge-data.sbatch", ("out", "0"), {}, "NUM_SHARDS='0'"),
        ("merge-data.sbatch", ("out", "12"), {}, "lacks 12 of 12 shards: 0 1 2 3 4 5 6 7 8 9."),
        ("merge-data.sbatch", ("-x", "1"), {}, "OUTPUT='-x': must be a path"),
        ("prepare-data.sbatch", ("absent", "out", "t"), {}, "TOKENIZER='absent': no such"),
        ("prepare-data.sbatch", (RECIPE, "-x", "t"), {}, "OUTPUT='-x': must be a path"),
        ("prepare-data.sbatch", (RECIPE, "out", "--fast"), {}, "TEXT='--fast': is no text"),
        (
            "prepare-data.sbatch",
            (RECIPE, "out", "t"),
            {"PREPARE_OPTIONS": "--text-key 'a"},
            "PREPARE_OPTIONS='--text-key '\\''a': has a quote that is not closed",
        ),
        ("prepare-data.sbatch", (RECIPE, "out", "t"), {"SLURM_ARRAY_TASK_MIN": "1"}, "array must"),
        ("export.sbatch", ("examples", "out"), {}, "RUN_FOLDER='examples': is no run"),
        ("evaluate.sbatch", ("absent",), {}, "MODEL='absent': no such folder"),
        ("evaluate.sbatch", ("examples",), {"SLURM_ARRAY_TASK_ID": "1"}, "--array=0-0"),
        ("sweep.sbatch", (RECIPE, "slurm/ablations.txt"), {}, "no array"),
        (
            "sweep.sbatch",
            (RECIPE, "slurm/ablations.txt"),
            {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MAX": "5"},
            "has 4 variants: --array=1-4",
        ),
        (
            "sweep.sbatch",
            (RECIPE, "slurm/ablations.txt"),
            {"SLURM_ARRAY_TASK_ID": "1", "SWEEP_FOLDER": "-x"},
            "SWEEP_FOLDER='-x': must be a path",
        ),
    ],
)
def test_script_names_what_is_wrong_with_its_input(checkout, script, arguments, variables, said):
    if "SLURM_ARRAY_TASK_ID" in variables:
        variables = {"SLURM_ARRAY_JOB_ID": "6", **variables}
    (error,) = refused(no_slurm.run(checkout, script, *arguments, **variables))
    assert said in error


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_submitted_from_elsewhere_says_so(checkout, tmp_path, script):
    for variables in ({"TST_HOME": str(tmp_path)}, {"SLURM_SUBMIT_DIR": "-x"}):
        (error,) = refused(no_slurm.run(checkout, script, RECIPE, **variables))
        assert "is not the project's folder: submit from there, or set TST_HOME to it" in error


def test_site_file_that_bash_cannot_read_or_run_is_refused_without_its_words(checkout):
    site = checkout / "slurm" / "site.env"
    for text, said in (
        ("A=1\nif canary\n", "site.env: bash cannot read it"),
        ("A=1\nexport KEY=abc canary-2\n", "site.env: line 2 failed"),
        ("A=1\nKEY=abc canary-3\nB=2\n", "site.env: line 2 failed. A value with spaces needs"),
        ("A=$canary_4\n[[ -d /absent ]] && A=2\nTST_BIND=canary\n", "TST_BIND='canary'"),
    ):
        site.write_text(text)
        (error,) = refused(no_slurm.run(checkout, *TRAINING))
        assert said in error and "canary-" not in error


def test_site_file_may_set_the_scripts_variables_and_the_command_line_wins(checkout):
    (checkout / "slurm" / "site.env").write_text("HANG_SECONDS=x\nRUN_FOLDER=runs/of-the-site\n")
    (error,) = refused(no_slurm.run(checkout, *TRAINING))
    assert error.startswith("HANG_SECONDS='x'")
    assert no_slurm.run(checkout, *TRAINING, HANG_SECONDS="60").status == 0
    array = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "1", "HANG_SECONDS": "60"}
    sweep = ("sweep.sbatch", RECIPE, "slurm/ablations.txt")
    assert no_slurm.run(checkout, *sweep, **array).status == 0
    runs = {path.parent.relative_to(checkout) for path in checkout.rglob("state.json")}
    assert runs == {Path("runs/of-the-site"), Path("runs/quickstart-tst-sweep/uniform")}


# --- the job --------------------------------------------------------------------------------------


def test_number_of_tasks_follows_from_those_of_a_node(checkout):
    nodes = {"SLURM_NNODES": "3", "SLURM_NTASKS_PER_NODE": "8"}
    ended = no_slurm.run(checkout, *TRAINING, SLURM_NTASKS="unset", **nodes)
    assert ended.status == 0 and "--nproc 24" in ended.started[0]
    (checkout / "srun-lines").unlink()
    nodes = {"SLURM_NTASKS": "unset", "SLURM_NTASKS_PER_NODE": "unset"}
    for script in (TRAINING, ("preflight.sbatch",)):
        ended = no_slurm.run(checkout, *script, **nodes)
        assert ended.status == 2 and ended.started == []
        assert "Give sbatch --nodes and --ntasks-per-node" in ended.errors[0]


def test_job_of_a_thousand_nodes_starts(checkout):
    many = {"MANY": "yes", "SLURM_NNODES": "1001", "SLURM_NTASKS": "1001"}
    ended = no_slurm.run(checkout, *TRAINING, PREFLIGHT="yes", **many)
    assert ended.status == 0, ended.output
    assert "environment: MASTER_ADDR=m1" in ended.output


def test_no_script_pipes_into_a_command_that_ends_early():
    """Its writer would be ended by SIGPIPE, and by pipefail the script."""
    early = re.compile(r"(?<!\|)\|\s*(head\b|read\b|grep\s+-\w*[qm]|sed\s[^|\n]*\bq\b)")
    for path in [*(ROOT / "slurm").glob("*.sbatch"), *(ROOT / "slurm/lib").glob("*.sh")]:
        assert not early.search(path.read_text()), path


# --- the run --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["q.yml", "q.yaml", "a.b.yml", "q", "q.", ".q.yaml", ".yaml", "a b.yml"]
)
def test_run_folder_is_named_as_train_names_it(checkout, monkeypatch, name):
    recipe = checkout / "examples" / "quickstart" / name
    recipe.write_text("{}\n")
    named = []
    monkeypatch.setattr(
        choreography, "train_run", lambda recipe, overrides, folder, **_: named.append(folder) or 0
    )
    with pytest.raises(commands.typer.Exit):
        commands.train(recipe)
    ended = no_slurm.run(checkout, "pretrain.sbatch", str(recipe), STUB_CHECK="2")
    assert f"run {checkout / named[0]} on" in ended.output


def test_finished_run_refuses_what_check_refuses_and_starts_nothing(checkout):
    assert no_slurm.run(checkout, *TRAINING).status == 0
    events = checkout / "runs" / "quickstart-tst" / "slurm" / "events.tsv"
    before = events.read_text()
    for check, status in (("0", 0), ("2", 2), ("1", 75)):
        (checkout / "srun-lines").unlink()
        ended = no_slurm.run(checkout, *TRAINING, "lr=1e-4", STUB_CHECK=check)
        assert ended.status == status, ended.output
        (line,) = ended.started
        assert "tst-megatron check" in line and "lr=1e-4" in line
        assert events.read_text() == before and not (checkout / "was-requeued").exists()
        assert ("Give another RUN_FOLDER" in ended.output) == (status == 2)


def test_refused_recipe_is_not_tried_again_and_a_check_that_fails_only_so_often(checkout):
    assert no_slurm.run(checkout, *TRAINING, STUB_CHECK="2").status == 2
    assert not (checkout / "was-requeued").exists()
    limit = {"MAX_STARTS_WITHOUT_PROGRESS": "3", "RUN_FOLDER": "runs/other"}
    statuses = []
    for _ in range(3):
        (checkout / "was-requeued").unlink(missing_ok=True)
        ended = no_slurm.run(checkout, *TRAINING, STUB_CHECK="1", **limit)
        statuses.append((ended.status, (checkout / "was-requeued").exists()))
    assert statuses == [(75, True), (75, True), (93, False)]
    assert "Last: the check of the recipe ended with status 1" in ended.output


def test_wrong_options_of_the_nodes_checks_make_no_node_sick(checkout):
    ended = no_slurm.run(checkout, "preflight.sbatch", "--no-such-option", STUB_PREFLIGHT="2")
    assert ended.status == 2 and ended.errors == ["the checks were refused: see above"]
    assert not (checkout / "slurm" / "cordoned-nodes").exists()


# --- sweeps ---------------------------------------------------------------------------------------


def sweep(checkout, text, task=1, **variables):
    (checkout / "variants.txt").write_bytes(text.encode())
    array = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": str(task)}
    return no_slurm.run(checkout, "sweep.sbatch", RECIPE, "variants.txt", **array, **variables)


def test_words_of_a_variant_are_those_of_a_shell(checkout):
    text = (
        "# of two kinds\n\t# after a tab\n \t\n\n"
        "first tst.bag-size=4 # the paper's\n"
        "\tsecond\t'data={a b: 1}' wandb-exp-name=\"it's\"\tlr=1e-3 \r\n"
        "third a=$(touch${IFS}ran) b=`date>ran` c=* d=a#b"
    )
    for task, words in (
        (1, "tst.bag-size=4"),
        (2, "data=\\{a\\ b:\\ 1\\} wandb-exp-name=it\\'s lr=1e-3"),
        (3, "a=\\$\\(touch\\$\\{IFS\\}ran\\) b=\\`date\\>ran\\` c=\\* d=a#b"),
    ):
        ended = sweep(checkout, text, task, TST_HOME=".")
        assert ended.status == 0 and not (checkout / "ran").exists(), ended.output
        name = ("first", "second", "third")[task - 1]
        run = checkout / "runs" / "quickstart-tst-sweep" / name
        assert f" {RECIPE} {words} --run-folder {run}" in ended.started[-1]


def test_every_line_of_a_sweep_is_checked_by_every_task(checkout):
    wrong = ["../x a=1", "/x a=1", "-x a=1", ". a=1", ".. a=1", "a/b a=1", "lr=1e-3", '"a b" a=1']
    lines = ["one a=1", *wrong, "one a=2", "two a", "three --fresh", "four 'a=1", "five a=1"]
    for task in (1, 2):
        errors = refused(sweep(checkout, "\n".join(lines), task))
        where = [int(re.search(r"variants.txt, line (\d+): ", error)[1]) for error in errors]
        assert where == list(range(2, len(lines)))
    assert "one is the name of line 1 too" in errors[len(wrong)]
    assert "'../x' is no name" in errors[0]


# --- what a rank makes of it ----------------------------------------------------------------------


def test_run_of_another_folder_is_written_there(checkout, tmp_path):
    ended = no_slurm.run(checkout, *TRAINING, RUN_FOLDER=str(tmp_path / "a b" / "run"))
    assert ended.status == 0 and (tmp_path / "a b" / "run" / "state.json").exists()
