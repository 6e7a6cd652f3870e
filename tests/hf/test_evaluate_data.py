"""Task data fetched from a stand-in of the hub is what the evaluation reads."""

import json
from types import SimpleNamespace

import command
import datasets
import huggingface_hub
import pytest
import task_data

from tst_megatron.hf.evaluate import definitions, download
from tst_megatron.hf.evaluate.local_data import check_files, read_splits

TASKS = "arc_easy,piqa,mmlu_anatomy,mmlu_anatomy_continuation"


@pytest.fixture
def hub(monkeypatch):
    """Invented items under the names of the real data sets; what was asked for."""
    asked = []

    def load_dataset(path, name=None, *, revision):
        assert revision == "commit-1"
        asked.append((path, name))
        items = datasets.Dataset.from_list(task_data.items(path, name, 5))
        return {split: items for split in ("train", "validation", "test", "dev")}

    monkeypatch.setattr(download, "hub_problem", lambda: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="commit-1")
    )
    return asked


def test_fetched_data_is_read_as_it_was(hub, tmp_path, monkeypatch, capsys):
    status, printed = command.run(monkeypatch, capsys, "evaluate-data", tmp_path, "--tasks", TASKS)
    assert status == 0 and printed.endswith(f"{tmp_path}: 3 files written")
    # Two tasks share the data of one subject.
    assert sorted(hub, key=str) == [
        *[("allenai/ai2_arc", "ARC-Easy"), ("baber/piqa", None), ("cais/mmlu", "anatomy")]
    ]
    data = definitions.data_of(definitions.task_names(TASKS))
    check_files(tmp_path, data, TASKS)
    for task in data:
        files = {split: str(tmp_path / file) for split, file in task.files.items()}
        for items in read_splits(files=files).values():
            assert list(items) == task_data.items(task.data.path, task.data.name, 5)
    files = json.loads((tmp_path / "manifest.json").read_text())["files"]
    facts = files["cais--mmlu/anatomy/test.jsonl"]
    assert (facts["revision"], facts["num_items"], facts["split"]) == ("commit-1", 5, "test")


def test_whole_files_are_kept_and_damaged_ones_fetched_again(hub, tmp_path, monkeypatch, capsys):
    arguments = (monkeypatch, capsys, "evaluate-data", tmp_path, "--tasks", TASKS)
    command.run(*arguments)
    hub.clear()
    assert command.run(*arguments)[1].endswith("0 files written") and hub == []
    file = tmp_path / "baber--piqa" / "default" / "validation.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-9])
    assert command.run(*arguments)[1].endswith("1 files written")
    assert file.read_text() == whole and hub == [("baber/piqa", None)]


def test_failure_of_the_hub_names_the_data_set(hub, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise TimeoutError("no answer")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    status, printed = command.run(monkeypatch, capsys, "evaluate-data", tmp_path, "--tasks", "piqa")
    # Not bad input: trying again may help.
    assert status == 1
    assert "baber/piqa (default): not fetched from the Hugging Face hub: TimeoutError" in printed


def test_hub_that_does_not_answer_is_said_before_anything_is_fetched_or_written(
    hub, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(download, "hub_problem", lambda: "https://hub cannot be reached (refused)")
    folder = tmp_path / "data"
    status, printed = command.run(monkeypatch, capsys, "evaluate-data", folder, "--tasks", TASKS)
    assert status == 1 and hub == [] and not folder.exists()
    assert printed == (
        f"the data of --tasks {TASKS} cannot be fetched here: https://hub cannot be reached "
        f"(refused). Start this command where there is a connection, copy {folder} to the machine "
        f"that has none, and evaluate there with --data {folder}"
    )


def test_data_that_is_all_there_needs_no_hub(hub, tmp_path, monkeypatch, capsys):
    arguments = (monkeypatch, capsys, "evaluate-data", tmp_path, "--tasks", TASKS)
    command.run(*arguments)
    monkeypatch.setattr(download, "hub_problem", lambda: pytest.fail("the hub was asked"))
    assert command.run(*arguments)[1].endswith("0 files written")


def test_dates_and_digits_in_the_data_stay_text(tmp_path):
    file = tmp_path / "test.jsonl"
    items = [{"label": "0", "date": "2020-01-01T00:00:00"}, {"label": "1", "date": "1999-12-31"}]
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    assert list(read_splits(files={"test": str(file)})["test"]) == items


def test_task_made_by_a_program_is_refused_with_local_data():
    with pytest.raises(ValueError, match="squadv2: lm-eval makes its data by a program"):
        definitions.data_of(definitions.task_names("squadv2"))
