"""lm-eval's tasks on local data: whole, offline, and the accuracy that a loop by hand gives."""

import contextlib
import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import command
import datasets
import pytest
import task_data
import torch
from huggingface_hub import constants
from small_models import save_model
from tokenizers import Tokenizer, normalizers
from transformers import AutoModelForCausalLM

from tst_megatron.hf.evaluate import answers, definitions, hub, paper, results, run
from tst_megatron.hf.evaluate.hub import hub_problem
from tst_megatron.hf.evaluate.run import Settings, evaluate, load_tasks

WITH_BOTH = {
    *("hellaswag", "arc_easy", "arc_challenge", "mmlu_continuation", "openbookqa", "piqa"),
}
DATA_FIELDS = {
    *("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset"),
    *("training_split", "validation_split", "test_split", "fewshot_split"),
}
OFFLINE = """
import socket, sys
def refuse(*_): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
from tst_megatron.cli.app import main
main()
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("task-data")
    task_data.write_task_data(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "hf", "qwen3_moe", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def evaluated(data, model, tmp_path_factory):
    """The command with every task of the paper: what it printed, its file, the home folder."""
    home = tmp_path_factory.mktemp("home")
    hf_names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME")
    kept = {name: value for name, value in os.environ.items() if name not in hf_names}
    arguments = ["evaluate", model, "--tasks", "paper", "--data", data, "--batch-size", "64"]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *map(str, arguments), "--compare", "10b-tst"],
        env=kept | {"HOME": str(home), "COLUMNS": "140"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((model.parent / "hf-evaluation.json").read_text()), home


def test_every_task_of_the_paper_has_its_metrics_with_errors(evaluated):
    _, found, _ = evaluated
    assert found["asked_for"] == list(paper.TASKS)
    for name in paper.TASKS:
        numbers = found["tasks"][name]
        wanted = {"acc", "acc_norm"} if name in WITH_BOTH else {"acc"}
        assert {metric for metric in results.METRICS if metric in numbers} == wanted
        for metric in wanted:
            share, error = numbers[metric], numbers[f"{metric}_stderr"]
            assert 0 <= share <= 1
            if not numbers["subtasks"]:
                by_formula = (share * (1 - share) / (task_data.NUM_ITEMS - 1)) ** 0.5
                assert error == pytest.approx(by_formula)
            else:
                assert 0.01 < error < 0.1
        assert numbers["num_fewshot"] == 0
        assert numbers["num_items"] == (2 * 57 if "mmlu" in name else task_data.NUM_ITEMS)
        assert numbers["subtasks"] or len(numbers["hash"]) == 64


def test_mmlu_is_the_mean_of_its_57_subjects(evaluated):
    _, found, _ = evaluated
    for group, metrics in (("mmlu", ["acc"]), ("mmlu_continuation", ["acc", "acc_norm"])):
        leaves = [task.task for task in definitions.data_of([group])]
        assert len(leaves) == 57
        for metric in metrics:
            numbers = [found["tasks"][leaf][metric] for leaf in leaves]
            assert found["tasks"][group][metric] == pytest.approx(sum(numbers) / 57)


def test_table_stands_beside_the_paper(evaluated):
    printed, found, _ = evaluated
    lines = {line.split()[1]: line for line in printed.splitlines() if line.startswith("│")}
    for name, number in (("hellaswag", "71.2"), ("mmlu", "39.0"), ("winogrande", "63.0")):
        assert lines[name].split()[-2] == number
        assert f" {100 * found['tasks'][name]['acc']:.1f} ± " in lines[name]
    words = " ".join(printed.split())
    assert "paper 10b-tst: 10B-A1B TST, 50k steps." in words
    assert "it says neither acc or acc_norm, nor which MMLU" in words


def test_file_says_what_the_numbers_depend_on(evaluated, data, model):
    _, found, _ = evaluated
    config = json.loads((model / "config.json").read_text())
    manifest = (data / "manifest.json").read_bytes()
    assert found["model"]["config"] == config
    assert found["model"]["num_parameters"] > 100_000
    assert found["settings"]["data"]["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert (found["settings"]["dtype"], found["settings"]["device"]) == ("bfloat16", "cpu")
    assert found["settings"]["max_length_tokens"] == config["max_position_embeddings"]
    assert found["tokenizer"]["adds_bos"] is False
    assert found["tokenizer"]["special_tokens_in_text"] is False
    assert found["versions"]["lm-eval"] == "0.4.13" and all(found["versions"].values())
    assert not any("git" in key for key in found)


def test_home_folder_is_left_alone(evaluated):
    _, _, home = evaluated
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_local_data_changes_data_set_fields_alone(data, tmp_path):
    from lm_eval.tasks import TaskManager

    names = list(paper.TASKS)
    upstream = definitions.manager(names).task_index
    definitions.write_overlay(tmp_path, names, definitions.data_of(names), data)
    ours = TaskManager(include_path=str(tmp_path), include_defaults=False).task_index
    compared = [name for name in ours if ours[name].kind.name != "TAG"]
    assert len(compared) == 7 + 2 * 57 + 1 + 4 + 1
    for name in compared:
        both = [
            {key: value for key, value in index[name].cfg.items() if key not in DATA_FIELDS}
            for index in (ours, upstream)
        ]
        assert both[0] == both[1], name


def by_hand(model: Path, items, *, adds_bos: bool) -> tuple[float, float]:
    """Accuracy of ARC items by sum of log-likelihoods, and by that per character."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    network = AutoModelForCausalLM.from_pretrained(model, experts_implementation="eager").eval()
    start = [0] if adds_bos else []
    num_right, num_right_norm = 0, 0
    for item in items:
        prompt = f"Question: {item['question']}\nAnswer:"
        sums, choices = [], item["choices"]["text"]
        for choice in choices:
            ids = tokenizer.encode(f"{prompt} {choice}", add_special_tokens=False).ids
            # Byte-level: the characters of tokens are the bytes that they hold.
            ends = [len(tokenizer.decode(ids[: i + 1]).encode()) for i in range(len(ids))]
            num_before = len(start) + sum(end <= len(prompt.encode()) for end in ends)
            tokens_T = torch.tensor(start + ids)
            with torch.no_grad():
                logits_TV = network(tokens_T[None]).logits[0].float().log_softmax(-1)
            picked_T = logits_TV[:-1].gather(1, tokens_T[1:, None])[:, 0]
            sums.append(float(picked_T[num_before - 1 :].sum()))
        gold = item["choices"]["label"].index(item["answerKey"])
        per_character = [total / len(text) for total, text in zip(sums, choices, strict=True)]
        num_right += sums.index(max(sums)) == gold
        num_right_norm += per_character.index(max(per_character)) == gold
    return num_right / len(items), num_right_norm / len(items)


@pytest.mark.parametrize(("adds_bos", "has_words"), [(False, True), (True, True), (False, False)])
def test_accuracy_is_the_one_that_a_loop_by_hand_gives(adds_bos, has_words, tmp_path):
    task_data.write_task_data(tmp_path / "data", "arc_easy", number=60)
    model = save_model(tmp_path / "hf", "llama", adds_bos=adds_bos, has_words=has_words)

    settings = Settings(tasks="arc_easy", data=tmp_path / "data", batch_size=64)
    found = evaluate(model, tmp_path / "r.json", settings, on_progress=lambda _: None)

    (task,) = definitions.data_of(["arc_easy"])
    items = task_data.read(tmp_path / "data", task, "test")
    acc, acc_norm = by_hand(model, items, adds_bos=adds_bos)
    assert (found["tasks"]["arc_easy"]["acc"], found["tasks"]["arc_easy"]["acc_norm"]) == (
        pytest.approx(acc),
        pytest.approx(acc_norm),
    )
    assert found["tokenizer"]["adds_bos"] is adds_bos
    # What the check can see: which metric is which, and a BOS too many or too few.
    assert acc != acc_norm
    assert (acc, acc_norm) != by_hand(model, items, adds_bos=not adds_bos)


def test_answer_without_a_token_is_named_before_the_model_is_loaded(model, data, tmp_path, capsys):
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    file = folder / "baber--piqa/default/validation.jsonl"
    # lm-eval puts a space in front of answers; nothing is left of it here.
    backend = Tokenizer.from_file(str(model / "tokenizer.json"))
    backend.normalizer = normalizers.Strip(left=False, right=True)
    broken = Path(shutil.copytree(model, tmp_path / "hf"))
    backend.save(str(broken / "tokenizer.json"))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[3]["sol2"] = ""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file.write_text(text)
    manifest = json.loads((folder / "manifest.json").read_text())
    name = str(file.relative_to(folder))
    manifest["files"][name]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError) as caught:
        evaluate(
            broken,
            tmp_path / "r.json",
            Settings(tasks="piqa,boolq", data=folder),
            on_progress=print,
        )
    assert str(caught.value).splitlines() == [
        "some requests of these tasks cannot be put to this model:",
        "  piqa: 1 of 12, the first for item 3: its answer ' ' has no tokens, so none that has a "
        "likelihood",
        "Leave the tasks out of --tasks, or, where items have faults, correct them.",
    ]
    assert "loading 2 tasks" in (printed := capsys.readouterr().out)
    assert str(broken) not in printed and not (tmp_path / "r.json").exists()


def test_limit_makes_a_trial_and_says_so(model, data, tmp_path, monkeypatch, capsys):
    output = tmp_path / "new" / "r.json"
    status, printed = command.run(
        *(monkeypatch, capsys, "evaluate", model, "--tasks", "openbookqa", "--limit", "2"),
        *("--data", data, "--output", output, "--dtype", "fp32", "--special-tokens-in-text"),
    )
    assert status == 0
    assert "first 2 items of each task: a trial, no result" in printed
    found = json.loads(output.read_text())
    assert found["tasks"]["openbookqa"]["num_items"] == 2
    assert found["settings"]["dtype"] == "float32"
    assert found["tokenizer"]["special_tokens_in_text"] is True
    assert sorted(os.listdir(output.parent)) == ["r.answers.json", "r.json"]


def test_missing_files_are_named_at_once_with_the_command(model, data, tmp_path, capsys):
    with pytest.raises(ValueError) as caught:
        evaluate(
            *(model, tmp_path / "r.json", Settings(tasks="piqa,arc_easy", data=tmp_path)),
            on_progress=print,
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path}: 2 files of task data are missing:"
    assert lines[1:3] == [
        "  allenai--ai2_arc/ARC-Easy/test.jsonl",
        "  baber--piqa/default/validation.jsonl",
    ]
    assert lines[3].endswith(f": tst-megatron evaluate-data {tmp_path} --tasks piqa,arc_easy")
    assert capsys.readouterr().out == ""


def test_damaged_file_is_refused(model, tmp_path, monkeypatch, capsys):
    task_data.write_task_data(tmp_path, "boolq")
    file = tmp_path / "aps--super_glue/boolq/validation.jsonl"
    file.write_text(file.read_text().replace("spring", "autumn", 1))
    arguments = (
        "evaluate",
        model,
        "--tasks",
        "boolq",
        "--data",
        tmp_path,
        "--output",
        tmp_path / "r",
    )
    status, printed = command.run(monkeypatch, capsys, *arguments)
    assert status == 2
    assert "1 files are not those of manifest.json (sha256); remove them: aps--super" in printed
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "paper,hellswag"), "hellswag: lm-eval knows no such task. Did you mean hella"),
        (("--tasks", " , "), "names no task"),
        (("--dtype", "fp8"), "--dtype fp8 is none of auto, fp32, bf16"),
        (("--device", "gpu"), "--device gpu is none of cpu, cuda, cuda:N"),
        (("--compare", "10b"), "--compare 10b: the paper's are 270m-20k-base"),
    ],
)  # fmt: skip
def test_wrong_option_is_refused_in_words(options, message, model, monkeypatch, capsys, tmp_path):
    arguments = ("evaluate", model, "--output", tmp_path / "r.json", *options)
    status, printed = command.run(monkeypatch, capsys, *arguments)
    assert status == 2 and message in printed


def test_incomplete_model_is_refused_with_all_that_is_missing(tmp_path, monkeypatch, capsys):
    status, printed = command.run(monkeypatch, capsys, "evaluate", tmp_path)
    assert status == 2
    assert (
        "config.json is missing; no *.safetensors file is there; no tokenizer is there" in printed
    )


def test_model_that_lacks_a_file_of_its_index_is_refused_before_tasks_are_loaded(
    model, tmp_path, monkeypatch, capsys
):
    folder = Path(shutil.copytree(model, tmp_path / "hf"))
    names = {"model.norm.weight": "model.safetensors", "lm_head.weight": "model-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    monkeypatch.setattr(run, "load_tasks", lambda *_: pytest.fail("tasks were loaded"))
    status, printed = command.run(monkeypatch, capsys, "evaluate", folder, "--data", tmp_path)
    assert status == 2
    assert "model-2.safetensors missing, which model.safetensors.index.json names" in printed


@pytest.fixture
def without_a_hub(monkeypatch):
    """No connection; what this process is told of it is taken back."""
    monkeypatch.setattr(run, "hub_problem", lambda: "https://hub cannot be reached (refused)")
    offline = []
    monkeypatch.setattr(run, "stay_offline", lambda: offline.append(True))
    return offline


def test_evaluation_without_a_connection_and_data_ends_at_once_with_both_commands(
    without_a_hub, model, tmp_path, monkeypatch, capsys
):
    def load_tasks(names, data):
        assert without_a_hub == [True] and data is None
        raise OSError("Couldn't reach 'allenai/ai2_arc' on the Hub")

    monkeypatch.setattr(run, "load_tasks", load_tasks)
    output = tmp_path / "r.json"
    status, printed = command.run(
        *(monkeypatch, capsys, "evaluate", model, "--tasks", "arc_easy", "--output", output)
    )
    assert status == 1
    assert (
        "the data of --tasks arc_easy is not on this machine, and https://hub cannot be reached "
        "(refused). Fetch it where there is a connection (tst-megatron evaluate-data FOLDER "
        "--tasks arc_easy), copy the folder here, and evaluate with --data FOLDER. (OSError: "
        "Couldn't reach 'allenai/ai2_arc' on the Hub)"
    ) in printed
    assert list(tmp_path.iterdir()) == []


def test_data_that_was_downloaded_before_needs_no_connection(
    without_a_hub, data, model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run, "load_tasks", lambda names, _: load_tasks(names, data))
    output = tmp_path / "r.json"
    status, printed = command.run(
        *(monkeypatch, capsys, "evaluate", model, "--tasks", "arc_easy", "--limit", 2),
        *("--output", output),
    )
    assert status == 0 and output.is_file()
    assert "so only data that was downloaded before is read" in printed
    assert without_a_hub == [True]


def answering(status: int | None) -> type[http.server.BaseHTTPRequestHandler]:
    """A server that gives a status, or a byte a second for ever where there is none."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            if status is None:
                with contextlib.suppress(OSError):
                    while True:
                        self.wfile.write(b"H")
                        time.sleep(0.2)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    return Handler


@pytest.fixture
def hub_at(monkeypatch):
    """Sets where the hub is, for a library that was told to be offline, and how long it has."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "SECONDS", 0.6)
    return lambda place: monkeypatch.setattr(constants, "ENDPOINT", place)


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        *[(200, None), (404, None), (501, None)],
        *[(503, "HTTP status 503"), (407, "HTTP status 407"), (None, "no answer in 1 seconds")],
    ],
)
def test_hub_is_there_if_something_answers_that_is_no_proxy(status, problem, hub_at):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), answering(status))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}"
    hub_at(place)
    try:
        assert hub_problem() == (problem and f"{place} cannot be reached ({problem})")
    finally:
        server.shutdown()
        server.server_close()


def test_hub_that_is_not_there_is_said_in_time(hub_at, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hub_at(place)
        start = time.monotonic()
        assert hub_problem().startswith(f"{place} cannot be reached (")
        assert time.monotonic() - start < 5
    assert hub_problem().startswith(f"{place} cannot be reached (")
    # No timeout of a client is for this.
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(20))
    hub_at("http://hub.invalid")
    start = time.monotonic()
    assert hub_problem() == "http://hub.invalid cannot be reached (no answer in 1 seconds)"
    assert time.monotonic() - start < 5


def test_hub_is_not_asked_where_a_variable_forbids_it(hub_at, monkeypatch):
    hub_at("http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert hub_problem() == "HF_DATASETS_OFFLINE is set"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_problem() == "HF_HUB_OFFLINE is set"


def test_connection_that_breaks_after_the_first_answer_ends_with_both_commands(
    model, tmp_path, monkeypatch, capsys
):
    def load_tasks(names, data):
        raise OSError("Read timed out")

    monkeypatch.setattr(run, "hub_problem", lambda: None)
    monkeypatch.setattr(run, "load_tasks", load_tasks)
    output = tmp_path / "r.json"
    status, printed = command.run(
        *(monkeypatch, capsys, "evaluate", model, "--tasks", "arc_easy", "--output", output)
    )
    assert status == 1
    assert "the data of --tasks arc_easy was not downloaded. Fetch it where there is" in printed
    assert "with --data FOLDER. (OSError: Read timed out)" in printed


def test_tokenizer_that_is_none_for_documents_is_refused_before_anything_is_loaded(
    model, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "hf"
    shutil.copytree(model, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    status, printed = command.run(monkeypatch, capsys, "evaluate", folder, "--tasks", "boolq")
    assert status == 2
    assert "not a tokenizer for documents: it has no EOS, which ends documents" in printed
    assert "loading" not in printed


def test_output_that_exists_is_refused_and_kept(model, data, tmp_path, monkeypatch, capsys):
    (tmp_path / "r.json").write_text("mine")
    arguments = ("evaluate", model, "--data", data, "--output", tmp_path / "r.json")
    status, printed = command.run(monkeypatch, capsys, *arguments)
    assert status == 2 and "exists. Name another file with --output" in printed
    assert (tmp_path / "r.json").read_text() == "mine"


def test_examples_in_prompts_come_from_local_data_too(tmp_path):
    """A task that is not the paper's, five-shot by its own definition."""
    (task,) = definitions.data_of(definitions.task_names("gsm8k"))
    assert task.splits == ("test", "train")
    lines = "".join(
        json.dumps({"question": f"{i}?", "answer": f"#### {i}"}) + "\n" for i in range(9)
    )
    for file in task.files.values():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(lines)
    loaded = load_tasks(["gsm8k"], tmp_path)["tasks"]["gsm8k"]
    assert loaded.get_config("num_fewshot") == 5
    assert loaded.fewshot_context(loaded.eval_docs[0], 5).count("Question:") == 6


def test_numbers_of_the_paper_have_its_own_means():
    """Over seven tasks, taken apart from this table from the grids of its appendix."""
    for name, mean in (("270m-20k-base", 44.5), ("270m-100k-base", 46.0), ("600m-base", 47.1)):
        percent = [value for task, value in paper.RUNS[name].percent.items() if task != "mmlu"]
        assert sum(percent) / 7 == pytest.approx(mean, abs=0.06)
    assert paper.number_beside("10b-tst", "mmlu_continuation") == 39.0
    assert paper.number_beside("600m-tst", "mmlu") is None


def test_answers_are_kept_by_question(evaluated, model):
    _, found, _ = evaluated
    kept = answers.read_answers(model.parent / "hf-evaluation.json")
    leaves = [name for name, task in found["tasks"].items() if not task["subtasks"]]
    assert set(kept) == set(leaves)
    for name in leaves:
        task = found["tasks"][name]
        assert kept[name].hash == task["hash"]
        for metric, right in kept[name].right.items():
            assert len(right) == task["num_items"]
            assert right.count("1") / len(right) == pytest.approx(task[metric])
