import json

from tst_megatron.report.losses import curves, draw_losses


def row(step, bag_size, loss):
    name = "bag loss" if bag_size > 1 else "lm loss"
    phase = "superposition" if bag_size > 1 else "recovery"
    common = {"event": "step", "device": "cpu", "phase": phase, "bag size": bag_size}
    return {**common, "step": step, name: loss}


STEPS = [row(1, 4, 6.0), row(2, 4, 5.9), row(3, 2, 5.5), row(4, 1, 5.8), row(5, 1, 5.0)]


def test_each_bag_size_is_a_curve_of_its_own():
    assert list(curves(STEPS)) == [
        ("bag loss, bags of 4", [1, 2], [6.0, 5.9]),
        ("bag loss, bags of 2", [3], [5.5]),
        ("lm loss", [4, 5], [5.8, 5.0]),
    ]


def test_a_step_without_a_loss_is_left_out():
    assert list(curves([row(1, 4, None), *STEPS[1:2]])) == [("bag loss, bags of 4", [2], [5.9])]


def test_picture_is_drawn(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    evaluation = {"event": "validation", "step": 4, "lm loss validation": 5.7}
    metrics.write_text("".join(json.dumps(each) + "\n" for each in [*STEPS, evaluation]))
    draw_losses(metrics, tmp_path / "losses.png", unigram_entropy_nats=6.1)
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
