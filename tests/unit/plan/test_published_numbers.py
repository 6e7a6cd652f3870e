"""The data files hold the paper's numbers, and a wrong block is named with its place."""

import shutil

import pytest

from tst_megatron.plan.published.read import HERE, published, read

FILES = ("sources.yaml", "paper.yaml", "grids.yaml", "hardware.yaml", "laws.yaml")

BEST_CELLS = {
    "270m-20k": (0.3, 7, 3.1392),
    "270m-100k": (0.3, 5, 3.0459),
    "600m-20k": (0.2, 8, 2.9434),
    "600m-20k-power": (0.2, 10, 2.9434),
}
"""As the paper's text and its tables agree: (r, K, loss)."""


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        shutil.copy(HERE / name, tmp_path / name)
    return tmp_path


def change(folder, name, old, new):
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize("name", BEST_CELLS)
def test_best_cell_of_a_grid_is_the_papers(name):
    grid = published().grids[name]
    cells = {
        (r, k): loss
        for r, losses in grid.losses.items()
        for k, loss in zip(grid.bag_sizes, losses, strict=True)
    }
    r, k, loss = BEST_CELLS[name]
    assert cells[r, k] == loss == min(cells.values())


def test_cells_that_lose_are_those_that_the_paper_has():
    """Counted by hand on tables 4 to 6: every cell up to r = 0.7 wins."""
    known = published()
    for name in ("270m-20k", "270m-100k", "600m-20k"):
        grid = known.grids[name]
        for r, losses in grid.losses.items():
            assert r > 0.7 or all(loss < grid.baseline for loss in losses)
    grid = known.grids["600m-20k"]
    cells = zip(grid.bag_sizes, grid.losses[0.8], strict=True)
    assert [k for k, loss in cells if loss >= grid.baseline] == [11, 12, 13]


def test_raw_tokens_of_a_run_are_those_of_its_steps():
    """1 + r (K - 1) tokens a position, as the tables round them."""
    for run in published().runs.values():
        read = run.bag_size * run.superposition_steps + (run.num_steps - run.superposition_steps)
        assert read * run.positions_per_step == pytest.approx(run.raw_tokens, rel=0.015)


def test_contradiction_of_the_3b_baseline_is_in_the_file():
    run = published().runs["3b-20k"]
    assert (run.loss, run.loss_by_figure) == (2.808, 2.755)
    assert "Table 1 prints 2.808" in (HERE / "paper.yaml").read_text(encoding="utf-8")


def test_sources_are_numbered_in_the_order_of_their_file():
    known = published()
    assert known.cite("paper") == "[1]"
    assert known.cite("besiroglu", "paper") == f"[{list(known.sources).index('besiroglu') + 1}, 1]"


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("hardware.yaml", "peak-teraflops: 2250", "peak: 2250", "gpus.b200: peak is none of"),
        (
            "hardware.yaml",
            "{source: vendor, device: GB200, peak-teraflops: 2500,",
            "{source: vendor, device: GB200,",
            "missing",
        ),
        ("hardware.yaml", "peak-teraflops: 989", "peak-teraflops: fast", "wrong type"),
        ("hardware.yaml", "source: vendor", "source: hearsay", "hearsay is not in sources"),
        ("hardware.yaml", "gpus:", "cpus:", "gpus is missing"),
        ("paper.yaml", "noise-nats: 0.004", "noise-nats: true", "noise-nats is no number"),
        ("paper.yaml", "equal: flops", "equal: price", "wrong type"),
        ("paper.yaml", "tst: 3b-20k-tst", "tst: 3b-30k-tst", "there is no run 3b-30k-tst"),
        ("paper.yaml", "losses: [2.413, 2.345]", "losses: [2.413]", "two positions"),
        ("grids.yaml", "bag-sizes: [2, 3,", "bag-sizes: [3,", "15 losses for 14"),
        ("grids.yaml", "baseline: 3.2124", "baseline: 3.2124\n  baseline: 3", "stands on line"),
        ("laws.yaml", "    epochs: 4\n", "", "their constant is missing"),
        ("laws.yaml", "laws:", "- laws", "laws.yaml"),
    ],
)
def test_wrong_block_is_refused_with_its_place(folder, name, old, new, message):
    change(folder, name, old, new)
    with pytest.raises(ValueError, match=message):
        read(folder)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: is missing"):
        read(folder)
