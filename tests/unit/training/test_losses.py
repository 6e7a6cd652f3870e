import json

import pytest

from tst_megatron.checkpoint.run_files import Branch, write_branch
from tst_megatron.training.report.losses import curves, draw_losses, smoothed


def row(step, bag_size, loss):
    name = "bag loss" if bag_size > 1 else "lm loss"
    phase = "superposition" if bag_size > 1 else "recovery"
    common = {"event": "step", "device": "cpu", "phase": phase, "bag size": bag_size}
    return {**common, "step": step, name: loss}


STEPS = [row(1, 4, 6.0), row(2, 4, 5.9), row(3, 2, 5.5), row(4, 1, 5.8), row(5, 1, 5.0)]
VALIDATION = {"event": "validation", "step": 4, "lm loss validation": 5.7}


def test_each_bag_size_is_a_curve_of_its_own():
    assert list(curves(STEPS)) == [
        ("bag loss, bags of 4", "bag loss", ([1, 2], [6.0, 5.9])),
        ("bag loss, bags of 2", "bag loss", ([3], [5.5])),
        ("next-token loss", "lm loss", ([4, 5], [5.8, 5.0])),
    ]


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf"), "x"])
def test_a_step_without_a_loss_is_left_out(loss):
    only = [("bag loss, bags of 4", "bag loss", ([2], [5.9]))]
    assert list(curves([row(1, 4, loss), *STEPS[1:2]])) == only


def test_smoothed_line_is_the_mean_around_each_step_and_ends_calm():
    losses = [9.0, 6.0, 3.0, 3.0, 3.0, 3.0, 9.0]
    assert smoothed(losses, 3) == [9.0, 6.0, 4.0, 3.0, 3.0, 5.0, 6.0]
    assert smoothed(losses, 1) == losses
    assert smoothed([], 3) == []


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw rows; gives the panels as they were when the picture was written."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k)
    )

    def draw(rows, **options):
        metrics = tmp_path / "a$b$ run" / "metrics.jsonl"
        metrics.parent.mkdir(exist_ok=True)
        metrics.write_text("".join(json.dumps(each) + "\n" for each in rows))
        draw_losses(metrics, tmp_path / "losses.png", **options)
        assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
        return figures[-1].get_axes()

    return draw


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_bag_loss_and_next_token_loss_have_panels_of_their_own_with_one_x(drawn):
    bags, tokens = drawn([*STEPS, VALIDATION], unigram_entropy_nats=6.1)
    assert (bags.get_ylabel(), tokens.get_ylabel()) == ("bag loss (nats)", "next-token loss (nats)")
    assert (bags.get_xlabel(), tokens.get_xlabel()) == ("", "optimizer step")
    assert bags.get_xlim() == tokens.get_xlim()
    assert legend(bags) == ["bag loss, bags of 4", "bag loss, bags of 2", "unigram entropy"]
    held_out = "validation loss (next token, held-out text)"
    assert legend(tokens) == ["next-token loss", held_out, "unigram entropy"]
    assert [text.get_text() for text in bags.texts] == ["switch after step 3"]


def test_ordinary_run_has_one_panel_and_no_switch(drawn):
    (panel,) = drawn([row(step, 1, 5.0 - step / 10) for step in range(1, 9)])
    assert legend(panel) == ["next-token loss"] and not panel.texts


def test_run_that_stopped_in_superposition_shows_what_it_has(drawn):
    (bags,) = drawn(STEPS[:2])
    assert not bags.texts
    bags, tokens = drawn([*STEPS[:2], {**VALIDATION, "step": 2}])
    assert legend(tokens) == ["validation loss (next token, held-out text)"]


def test_a_spike_does_not_flatten_the_rest(drawn):
    losses = [5.0 - step / 1000 + (1e4 if step == 700 else 0) for step in range(1, 1001)]
    (panel,) = drawn([row(step, 1, loss) for step, loss in enumerate(losses, start=1)])
    line = panel.get_lines()[0].get_ydata()
    assert panel.get_ylim()[1] < max(line) * 1.2 < 1e3


def test_run_without_a_loss_is_refused_and_leaves_no_picture(drawn, tmp_path):
    with pytest.raises(ValueError, match="holds no loss to draw"):
        drawn([row(1, 4, None)])
    assert not (tmp_path / "losses.png").exists()


def test_part_of_a_branchs_trunk_stands_on_grey_and_is_named(drawn, tmp_path):
    folder = tmp_path / "a$b$ run"
    folder.mkdir()
    write_branch(
        folder,
        Branch(
            trunk=tmp_path / "t$x$",
            trunk_name="t$x$",
            step=3,
            recipe_sha256=None,
            checkpoint_sha256={},
        ),
    )
    bags, tokens = drawn([*STEPS, VALIDATION])
    for axes in (bags, tokens):
        (band,) = [patch for patch in axes.patches if patch.get_alpha() == 0.08]
        assert (band.get_x(), band.get_x() + band.get_width()) == (0.5, 3.5)
    title = tokens.get_figure().get_suptitle()
    assert title.endswith("\non grey: steps of t$x$, up to 3")
    # A record that is damaged is not drawn.
    (folder / "branch.json").write_text("{")
    bags, _ = drawn([*STEPS, VALIDATION])
    assert not bags.patches and "grey" not in bags.get_figure().get_suptitle()
