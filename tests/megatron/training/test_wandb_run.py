"""Under which id a run folder goes on in Weights & Biases; the library itself is stood in for."""

import json
import sys
from types import SimpleNamespace

import pytest

from tst_megatron.megatron.cpu import host

host.install()

from tst_megatron.training.report import wandb_run
from tst_megatron.training.report.wandb_run import RECORD, start_wandb


@pytest.fixture
def wandb(monkeypatch):
    """What is asked of ``wandb.init``; ``wandb.refuses`` makes a server that cannot rewind."""
    service = SimpleNamespace(started=[], refuses=False, said=[])

    def start(**settings):
        if service.refuses and "resume_from" in settings:
            raise RuntimeError("cannot rewind a run that is not in a terminal state")
        service.started.append(settings)

    monkeypatch.setattr(wandb_run.writers, "start_wandb", start)
    for name in (*wandb_run.OF_THE_USER, "WANDB_RUN_GROUP"):
        monkeypatch.delenv(name, raising=False)
    return service


def go(folder, wandb, *, step=0, newest=0, project="p"):
    args = SimpleNamespace(wandb_project=project, wandb_entity=None)
    start_wandb(folder, args, step=step, newest=newest, say=wandb.said.append)
    return wandb.started[-1] if wandb.started else None


def test_every_start_of_a_folder_goes_on_under_one_id(wandb, tmp_path):
    first = go(tmp_path, wandb)
    assert first["resume"] == "allow" and len(first["id"]) == 8
    assert go(tmp_path, wandb, step=20, newest=20) == first
    assert go(tmp_path, wandb, step=40, newest=40)["id"] == first["id"]
    (tmp_path / "other").mkdir()
    assert go(tmp_path / "other", wandb)["id"] != first["id"]
    assert wandb.said == []


def test_steps_that_a_start_goes_back_behind_are_rewound(wandb, tmp_path):
    first = go(tmp_path, wandb)
    again = go(tmp_path, wandb, step=20, newest=34)
    assert (again["id"], again["resume_from"]) == (first["id"], f"{first['id']}?_step=20")
    assert "resume" not in again
    assert wandb.said == [f"Weights & Biases: run {first['id']} was rewound to step 20"]
    assert go(tmp_path, wandb, step=40, newest=40)["id"] == first["id"]


def test_server_that_cannot_rewind_gets_a_new_run_in_the_group_of_the_first(wandb, tmp_path):
    first = go(tmp_path, wandb)
    wandb.refuses = True
    second = go(tmp_path, wandb, step=20, newest=34)
    assert second["id"] != first["id"] and second["group"] == first["id"]
    assert "cannot rewind a run" in wandb.said[0]
    assert go(tmp_path, wandb, step=30, newest=30) == second
    third = go(tmp_path, wandb, step=10, newest=30)
    assert third["id"] not in (first["id"], second["id"]) and third["group"] == first["id"]


@pytest.mark.parametrize("name", wandb_run.OF_THE_USER)
def test_what_the_user_has_set_is_left_to_him_and_said(wandb, tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "mine")
    assert go(tmp_path, wandb, step=20, newest=34) == {}
    assert not (tmp_path / RECORD).exists()
    assert name in wandb.said[0] and "not taken back" in wandb.said[0]


def test_group_that_the_user_has_set_is_kept(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert "group" not in go(tmp_path, wandb)


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"id": 7}', "[" * 5000, "\xff"])
def test_damaged_record_gets_a_new_id_and_stops_nothing(wandb, tmp_path, damage):
    (tmp_path / RECORD).write_text(damage, encoding="latin-1")
    started = go(tmp_path, wandb, step=20, newest=34)
    assert started["resume"] == "allow"
    assert f"{tmp_path / RECORD} " in wandb.said[0] and "gets a new id there" in wandb.said[0]
    assert json.loads((tmp_path / RECORD).read_text())["id"] == started["id"]


def test_record_that_is_a_folder_stops_nothing(wandb, tmp_path):
    (tmp_path / RECORD).mkdir()
    assert go(tmp_path, wandb)["resume"] == "allow"
    assert [("is a folder" in said, "cannot be written" in said) for said in wandb.said] == [
        (True, False),
        (False, True),
    ]


def test_another_project_gets_a_run_of_its_own(wandb, tmp_path):
    first = go(tmp_path, wandb)
    other = go(tmp_path, wandb, step=20, newest=34, project="q")
    assert other["id"] != first["id"] and "resume_from" not in other


def test_recipe_without_a_project_starts_nothing(wandb, tmp_path):
    assert go(tmp_path, wandb, project=None) is None
    assert not (tmp_path / RECORD).exists()


def test_run_is_started_as_megatron_does_and_only_when_asked(monkeypatch, tmp_path):
    """Megatron's own call, with what we add to it; not while the arguments are parsed."""
    from tst_megatron.megatron import names, writers

    calls = []
    library = SimpleNamespace(init=lambda **settings: calls.append(settings))
    monkeypatch.setitem(sys.modules, "wandb", library)
    original = names.global_vars._set_wandb_writer
    monkeypatch.setattr(names.global_vars, "_set_wandb_writer", original)
    args = SimpleNamespace(
        wandb_project="p",
        wandb_entity="e",
        wandb_exp_name="n",
        wandb_save_dir=str(tmp_path / "w"),
        rank=0,
        world_size=1,
    )
    monkeypatch.setattr(names.global_vars, "_GLOBAL_ARGS", args)
    monkeypatch.setattr(names.global_vars, "_GLOBAL_WANDB_WRITER", None)
    init = library.init
    writers.hold_wandb_back()
    names.global_vars._set_wandb_writer(args)
    assert calls == [] and writers.wandb_writer() is None
    writers.start_wandb(id="a1", resume="allow")
    (settings,) = calls
    assert settings.pop("config")["wandb_project"] == "p"
    assert settings == {
        **{"dir": str(tmp_path / "w"), "name": "n", "project": "p", "entity": "e"},
        **{"id": "a1", "resume": "allow"},
    }
    assert writers.wandb_writer() is library and library.init is init
