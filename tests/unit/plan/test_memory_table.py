"""The table of a rank's memory says whether it fits, and what would make it fit."""

import dataclasses
from types import SimpleNamespace

import pytest

from tst_megatron.plan.cost.machine import machine_for
from tst_megatron.plan.memory import table
from tst_megatron.plan.memory.fitting import Way
from tst_megatron.plan.published.read import published
from tst_megatron.plan.wishes import Hardware


def memory_of(gigabytes):
    size = int(gigabytes * 1e9)
    parts = {"moments": size // 4, "parameters": size - size // 4}
    rank = SimpleNamespace(rank=3, stage=0, total=size, parts=lambda: parts)
    return SimpleNamespace(stages=(rank,), fullest=rank, assumptions=("experts are even",))


@pytest.fixture
def told(monkeypatch):
    def tell(gigabytes, gpu="h100", ways=()):
        known = published()
        hardware = Hardware(gpu=gpu, num_gpus=8, price=1.0)
        machine = machine_for(known, hardware, active=10**9, is_moe=True)
        rooms = []
        monkeypatch.setattr(table, "memory_of_recipe", lambda *_: memory_of(gigabytes))
        monkeypatch.setattr(
            table.fitting, "ways_to_fit", lambda *args: (rooms.append(args[2]), (ways, []))[1]
        )
        return table.memory_section(None, machine, known.gpus[gpu], 1e9), rooms

    return tell


@pytest.mark.parametrize(("gigabytes", "fits"), [(71.9, True), (72.1, False)])
def test_a_tenth_is_left(told, gigabytes, fits):
    section, rooms = told(gigabytes)
    assert section.values["fits"] is fits
    assert (" fits into the 80 GB of h100" in section.lines[0]) == fits
    assert ("DOES NOT FIT" in section.lines[0]) != fits
    # What would make it fit is searched for only then, with the same room.
    assert rooms == ([] if fits else [72_000_000_000])


def test_parts_are_told_with_the_largest_first_and_add_up(told):
    section, _ = told(40)
    assert section.rows == (("parameters", "30.00"), ("moments", "10.00"), ("all", "40.00"))
    assert sum(section.values["bytes by part"].values()) == section.values["total bytes"]
    assert "experts are even." in section.lines and "rank 3" in section.title


def test_ways_are_told_in_their_order_and_not_more_than_three(told):
    ways = [
        Way(changes={"micro-batch-size": number}, memory=memory_of(50 + number), cost=number / 10)
        for number in (1, 2, 3, 4)
    ]
    section, _ = told(100, ways=ways)
    said = [line for line in section.lines if line.startswith("Fits with")]
    assert [line.split(":")[0] for line in said] == [
        f"Fits with micro-batch-size={number}" for number in (1, 2, 3)
    ]
    assert "51.0 GB, for an estimated +10%" in said[0]


def test_that_nothing_helps_is_said(told):
    section, _ = told(1000)
    assert any("take more or larger GPUs" in line for line in section.lines)


def test_memory_of_a_gpu_that_is_not_known_is_not_judged(told):
    section, rooms = told(1000, gpu="a100")
    assert section.values["fits"] is None and not rooms
    assert "whether it fits is not said" in section.lines[0]


def test_without_a_known_link_ways_are_not_ranked(told):
    section, rooms = told(1000, gpu="h100-pcie")
    assert not rooms and any("is not ranked" in line for line in section.lines)


def test_every_gpu_with_a_link_has_a_memory():
    for gpu in published().gpus.values():
        assert gpu.link_gigabytes is None or gpu.memory_gigabytes is not None, gpu
        assert dataclasses.asdict(gpu)["device"]
