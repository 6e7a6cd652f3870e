"""What a comparison writes: all rounds as JSON, a table, a picture."""

import json

import pytest

from tst_megatron.bench.profile import differences, table
from tst_megatron.bench.results import Case, Result, slug, write
from tst_megatron.bench.timing import Contender, measure


class Meter:
    def seconds(self, run):
        return run()

    def peak_bytes(self, run):
        return 3 * 2**20, 2**20

    def free(self):
        pass


def make_result(**more):
    contenders = [
        Contender(name="ours", version="1", run=lambda: 0.002, num_bytes=10**6, error=lambda: 1e-3),
        Contender(name="theirs", version="torch 2", run=lambda: 0.004),
        Contender(name="absent", version="x (absent)", run=None),
    ]
    timings = measure(contenders, Meter(), rounds=3)
    return Result(
        which="loss",
        question="Loss of bags",
        baseline="ours",
        device={"name": "NVIDIA H100 80GB HBM3", "driver_version": "580"},
        rounds=3,
        seed=7,
        cases=[Case(title="small", timings=timings, notes={"faster": "none"})],
        **more,
    )


def test_json_has_every_round_and_what_it_was_measured_with(tmp_path):
    write(make_result(), tmp_path / "new")
    document = json.loads((tmp_path / "new" / "loss.json").read_text())
    (case,) = document["cases"]
    assert case["timings"][1]["seconds"] == [0.004] * 3
    assert case["timings"][1]["ratio"]["median"] == 2.0
    assert (document["seed"], document["baseline"]) == (7, "ours")
    assert document["device"]["driver_version"] == "580"
    assert document["versions"]["torch"]


def test_table_has_the_numbers_and_who_could_not_be_measured(tmp_path):
    write(make_result(), tmp_path)
    lines = (tmp_path / "loss.md").read_text().splitlines()
    assert (
        "| ours | 1 | 2.000 (2.000-2.000) | 1.000 (1.000-1.000) | 0 | 3 | 1 | 1.0e-03 |  |" in lines
    )
    assert "| absent | x (absent) |  |  |  |  |  |  | not installed |" in lines
    assert "faster: none" in lines


def test_result_replaces_the_one_before_and_leaves_nothing_beside(tmp_path):
    for _ in range(2):
        paths = write(make_result(), tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "folder"),
    [("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"), ("CPU, 2 cores", "cpu-2-cores")],
)
def test_folder_is_named_after_the_device(name, folder):
    assert slug({"name": name}) == folder


def test_profile_is_ordered_by_what_bags_change(tmp_path):
    spent = {"ours": {"gemm": 5.0, "max": 4.0}, "K = 8": {"gemm": 5.5, "one pass|x": 1.0}}
    rows = differences(spent, "ours")
    assert [row["kernel"] for row in rows] == ["max", "one pass|x", "gemm"]
    shown = table(rows, "ours").splitlines()
    assert shown[2] == "| max | 4.000 | 0.000 | -4.000 |"
    assert shown[-1] == "| all | 9.000 | 6.500 | -2.500 |"
    write(make_result(kernels=rows), tmp_path)
    assert "| one pass/x | 0.000 | 1.000 | +1.000 |" in (tmp_path / "loss.md").read_text()
