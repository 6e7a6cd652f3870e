"""The charts of a comparison: what each axis measures, and which lines are on it."""

import itertools
import re
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from made_comparisons import ALL, SWITCH, TOKENS_PER_STEP, arm, pair, run, two_arms
from matplotlib.figure import Figure

from tst_megatron.compare.report import charts as drawing
from tst_megatron.compare.report.lines import MOST_POINTS, described, thinned
from tst_megatron.compare.report.style import ARMS, BASELINE, PAPER, looks
from tst_megatron.compare.report.views import charts
from tst_megatron.compare.results import Curve
from tst_megatron.compare.statistics.curves import scatter
from tst_megatron.compare.statistics.gap import noise_of_single_runs
from tst_megatron.training.report.evaluations import BlockLosses, write_blocks

every_comparison = pytest.mark.parametrize("name", list(ALL))


def looks_of(comparison):
    return looks([each.name for each in comparison.arms], comparison.baseline)


def chart(comparison, name):
    return next(each for each in charts(comparison) if each.name == name)


def line(found, arm, part="arm"):
    (only,) = (each for each in found.lines if (each.arm, each.part) == (arm, part))
    return only


def plotted(comparison, found):
    """The axes on which a chart is drawn."""
    figure = Figure()
    axes = figure.subplots()
    is_cut = drawing.plot(axes, found, looks_of(comparison))
    return figure, axes, is_cut


# --- what is on an axis --------------------------------------------------------------------------


@every_comparison
def test_bag_loss_never_shares_an_axis_with_a_next_token_loss(name):
    """The made-up bag losses are all above 5, and all next-token losses below."""
    comparison = ALL[name]()
    seen = set()
    for found in charts(comparison):
        if not found.lines:
            continue
        figure, axes, _ = plotted(comparison, found)
        assert figure.axes == [axes], "a second axis on the right would mix them"
        values = [y for each in axes.get_lines() for y in np.atleast_1d(each.get_ydata())]
        label = axes.get_title(loc="left")
        if found.loss == "bag":
            # A mark of a switch goes from 0 to 1, in shares of the axis.
            assert min(value for value in values if value not in (0, 1)) > 5
            assert label == "bag loss (nats)"
        else:
            assert max(values) < 5
            assert "bag" not in label and "nats per token" in label
        seen.add(found.loss)
    has_bags = any("bag loss" in r.training for each in comparison.arms for r in each.runs)
    assert ("bag" in seen) == has_bags
    assert "next token" in seen


def test_there_is_a_chart_for_each_question():
    assert [(each.name, each.x_label) for each in charts(two_arms())] == [
        ("validation-over-steps", "optimizer step"),
        ("validation-over-raw-tokens", "raw tokens read (millions)"),
        ("validation-over-flops", "floating-point operations (10¹²)"),
        ("validation-over-hours", "hours of step time"),
        ("gap-over-steps", "optimizer step"),
        ("training-next-token-loss", "optimizer step"),
        ("training-bag-loss", "optimizer step"),
    ]


def test_each_axis_measures_what_the_runs_recorded():
    comparison = two_arms(1)
    tst = comparison.arms[1].runs[0]
    for name, values, divisor in (
        ("steps", tst.validation.steps, 1),
        ("raw-tokens", tst.raw_tokens, 1e6),
        ("flops", tst.flops, 1e12),
        ("hours", tst.hours, 1),
    ):
        found = line(chart(comparison, f"validation-over-{name}"), "tst")
        np.testing.assert_allclose(found.x, values / divisor)
        np.testing.assert_allclose(found.y, tst.validation.values)


def test_runs_of_an_arm_are_thin_lines_and_their_mean():
    comparison = two_arms(3)
    found = chart(comparison, "validation-over-hours")
    of_tst = [each for each in found.lines if each.arm == "tst"]
    assert [each.part for each in of_tst] == ["run"] * 3 + ["arm"]
    runs = comparison.arms[1].runs
    np.testing.assert_allclose(of_tst[-1].y, np.mean([r.validation.values for r in runs], axis=0))
    widths = {part: drawing._WIDTHS[part] for part in ("run", "arm")}
    assert widths["run"] < widths["arm"]


def test_mean_is_of_the_steps_that_all_runs_have():
    short = run("short", "tst", seed=9, bag_size=4, every=500, num_steps=4000)
    runs = [run("long", "tst", seed=1, bag_size=4), short]
    comparison = two_arms(arms=(arm("tst", runs, final=1.8),), baseline="tst", pairs=())
    mean = line(chart(comparison, "validation-over-steps"), "tst")
    assert mean.x.tolist() == list(range(500, 4001, 500))
    at = np.isin(runs[0].validation.steps, mean.x)
    wanted = (runs[0].validation.values[at] + short.validation.values) / 2
    np.testing.assert_allclose(mean.y, wanted)


def test_trunk_is_drawn_in_front_in_the_same_colour():
    comparison = ALL["branches"]()
    found = chart(comparison, "validation-over-steps")
    trunk, own = line(found, "short", "trunk"), line(found, "short")
    assert (trunk.x[0], trunk.x[-1]) == (250, 4000) and (own.x[0], own.x[-1]) == (4000, 6000)
    assert own.y[0] == trunk.y[-1]
    assert not [each for each in found.lines if each.arm == "long" and each.part == "trunk"]
    _, axes, _ = plotted(comparison, found)
    drawn = [each for each in axes.get_lines() if len(each.get_xdata()) == len(trunk.x)]
    drawn = next(each for each in drawn if each.get_xdata()[-1] == 4000)
    assert drawn.get_color() == looks_of(comparison)["short"].colour
    assert drawn.get_linestyle() != "-" and drawn.get_linewidth() < drawing._WIDTHS["arm"]


def test_switch_is_marked_in_the_unit_of_the_axis():
    comparison = two_arms()
    (mark,) = chart(comparison, "validation-over-steps").marks
    # Between two evaluations, where the axis is bent there: no further off than the slope differs.
    assert (mark.x, mark.arms) == (SWITCH, ("tst",))
    (mark,) = chart(comparison, "validation-over-raw-tokens").marks
    assert mark.x == pytest.approx(4 * SWITCH * TOKENS_PER_STEP / 1e6, rel=0.02)
    (mark,) = chart(ALL["eight arms"](), "validation-over-hours").marks
    assert len(mark.arms) == 7
    assert chart(comparison, "training-bag-loss").marks == []


def test_gap_is_the_difference_of_the_means_with_the_interval_at_its_end():
    comparison = two_arms(3)
    found = chart(comparison, "gap-over-steps")
    (only,) = found.lines
    baseline, tst = (
        np.mean([r.validation.values for r in each.runs], axis=0) for each in comparison.arms
    )
    np.testing.assert_allclose(only.y, tst - baseline)
    (bar,) = found.bars
    gap = comparison.pairs[0].gap
    assert (bar.x, bar.y, bar.low, bar.high) == (8000, gap.value, gap.low, gap.high)


def test_band_of_a_gap_is_its_interval_at_each_evaluation_after_the_switch():
    comparison = two_arms(3)
    (band,) = chart(comparison, "gap-over-steps").bands
    assert band.arm == "tst" and band.x.tolist() == list(range(2500, 8001, 250))
    at = 7
    losses = [[r.validation.values[9 + at] for r in each.runs] for each in comparison.arms]
    differences = np.subtract(losses[1], losses[0])
    half = 4.302653 * np.std(differences, ddof=1) / np.sqrt(3)  # Student's t of 2 degrees
    assert band.low[at] == pytest.approx(np.mean(differences) - half, abs=1e-6)
    assert band.high[at] == pytest.approx(np.mean(differences) + half, abs=1e-6)
    _, axes, _ = plotted(comparison, chart(comparison, "gap-over-steps"))
    assert len(axes.collections) == 2, "the band, and the bar at its end"


def test_band_of_single_runs_is_of_few_evaluations_and_of_the_noise_between_runs():
    runs = [[run(n, n, every=20, bag_size=k)] for n, k in (("baseline", 1), ("tst", 4))]
    arms = (arm("baseline", runs[0], final=1.9959), arm("tst", runs[1], final=1.7526))
    (band,) = chart(two_arms(arms=arms), "gap-over-steps").bands
    assert len(band.x) == 25 and (band.x[0], band.x[-1]) == (2420, 8000)
    curves = [each[0].validation for each in runs]
    noise, _ = noise_of_single_runs([scatter(curve.steps, curve.values) for curve in curves])
    np.testing.assert_allclose(band.high - band.low, 2 * 1.959964 * np.sqrt(2) * noise, rtol=1e-4)


def test_band_of_single_runs_with_losses_by_sequence_knows_the_choice_of_the_text(tmp_path):
    """Sequences of which an arm wins some and loses others widen it beyond the assumed noise."""
    chance = np.random.default_rng(1).normal(0, 1, 256)
    arms = []
    for name, size, spread in (("baseline", 1, 0.0), ("tst", 4, 0.5)):
        made = run(name, name, bag_size=size)
        files = {}
        for step, loss in zip(made.validation.steps, made.validation.values, strict=True):
            by_sequence = loss + spread * (chance - chance.mean())
            files[int(step)] = tmp_path / f"{name}-{step}.npz"
            kept = BlockLosses(loss_sum=128 * by_sequence, num_positions=np.full(256, 128))
            write_blocks(files[int(step)], kept)
        arms.append(arm(name, [replace(made, block_files=files)], final=loss))
    (band,) = chart(two_arms(arms=tuple(arms)), "gap-over-steps").bands
    of_noise = 2 * 1.96 * np.sqrt(2) * 0.004
    assert (band.high - band.low > 3 * of_noise).all()


def test_bands_of_many_arms_would_hide_each_other():
    assert chart(ALL["eight arms"](), "gap-over-steps").bands == []


def test_interval_of_a_gap_between_other_steps_has_no_place_on_the_line():
    assert not chart(ALL["branches"](), "gap-over-steps").bars
    assert chart(ALL["branches"](), "gap-over-steps").lines


def test_arms_without_common_steps_have_no_line_of_a_gap():
    odd = run("tst-1", "tst", bag_size=4, every=333)
    comparison = two_arms(1)
    comparison = replace(comparison, arms=(comparison.arms[0], arm("tst", [odd], final=1.75)))
    found = chart(comparison, "gap-over-steps")
    assert (list(found.lines), found.missing) == ([], ["tst"])


def test_what_is_not_recorded_for_an_arm_is_said():
    assert chart(ALL["not finite"](), "validation-over-flops").missing == ["tst"]
    assert not chart(ALL["nothing known"](), "validation-over-flops").lines


def test_long_lines_are_thinned_with_their_ends_kept():
    values = np.arange(100_000.0)
    found = thinned(values)
    assert (len(found), found[0], found[-1]) == (MOST_POINTS, 0, 99_999)
    assert np.ptp(np.diff(found)) <= 1
    assert thinned(values[:MOST_POINTS]) is not None
    assert len(thinned(values[:MOST_POINTS])) == MOST_POINTS


# --- what is shown -------------------------------------------------------------------------------


def test_range_shows_the_ends_and_cuts_off_what_is_early():
    comparison = two_arms()
    found = chart(comparison, "validation-over-steps")
    _, axes, is_cut = plotted(comparison, found)
    low, high = axes.get_ylim()
    assert is_cut and axes.get_title(loc="right") == "cut off above"
    assert low < 1.7526 < 1.9959 < high < 4
    # All that the baseline has after a fifth of its steps is to be seen.
    late = comparison.arms[0].runs[0].validation.values[7:]
    assert low < late.min() and late.max() < high


def test_losses_that_lie_close_together_are_all_shown():
    comparison = ALL["nothing known"]()
    _, axes, is_cut = plotted(comparison, chart(comparison, "validation-over-steps"))
    assert not is_cut and axes.get_title(loc="right") == ""
    assert axes.get_ylim()[0] < 3.25 and axes.get_ylim()[1] > 3.5


def test_gap_has_its_zero_and_its_interval_in_sight():
    comparison = two_arms(pairs=(pair("tst", gap=-0.6),))
    _, axes, _ = plotted(comparison, chart(comparison, "gap-over-steps"))
    low, high = axes.get_ylim()
    assert low < -0.6 - 0.0177 and 0 < high


def test_description_has_the_ends_of_every_line():
    said = described(chart(two_arms(1), "validation-over-steps"))
    last = two_arms(1).arms[1].runs[0].validation.values[-1]
    assert f"to {last:.4f} at 8,000" in said and "Switch at 2,400: tst." in said


# --- pictures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture():
    comparison = two_arms()
    return drawing.draw(chart(comparison, "validation-over-steps"), looks_of(comparison))


def test_svg_takes_colours_and_fonts_from_the_page(picture):
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", picture.svg)
    assert {"var(--ink)", "var(--arm-1)", "var(--baseline)", "var(--paper)"} <= set(
        re.findall(r"var\(--[\w-]+\)", picture.svg)
    )
    assert "font-family" not in picture.svg and "<style" not in picture.svg
    assert "<text" in picture.svg and "8,000" in picture.svg
    assert picture.svg.startswith('<svg class="chart" viewBox="0 0 345.6 237.6" role="img"')


def test_png_is_a_picture_on_its_own(picture):
    assert picture.png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(picture.png[at : at + 4]) for at in (16, 20))
    assert width == 960 and height > 660, "with a title and a legend"
    assert b"Software" not in picture.png and b"Date" not in picture.png


def test_settings_of_a_person_do_not_change_a_picture(picture):
    comparison = two_arms()
    with matplotlib.rc_context({"font.size": 30, "xtick.major.size": 20, "lines.linewidth": 9}):
        again = drawing.draw(chart(comparison, "validation-over-steps"), looks_of(comparison))
        assert matplotlib.rcParams["font.size"] == 30
    assert (again.svg, again.png) == (picture.svg, picture.png)


# --- colours -------------------------------------------------------------------------------------

DARK_PAPER = "#14171a"
# Machado, Oliveira and Fernandes 2009, at full severity, on linear RGB.
BLINDNESS = {
    "protanopia": [
        *([0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216]),
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        *([0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413]),
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        *([1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602]),
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(colour):
    values = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG's ratio of two colours."""
    light = sorted(float(linear(each) @ [0.2126, 0.7152, 0.0722]) for each in (one, other))
    return (light[1] + 0.05) / (light[0] + 0.05)


def lab(rgb):
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.clip(to_xyz @ rgb, 0, None) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("at", [0, 1], ids=["light", "dark"])
def test_lines_stand_out_from_the_paper(at):
    paper = (PAPER, DARK_PAPER)[at]
    for pair_of_colours in (BASELINE, *ARMS):
        assert contrast(pair_of_colours[at], paper) >= 3, pair_of_colours


@pytest.mark.parametrize("at", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("kind", list(BLINDNESS))
def test_neighbouring_arms_are_told_apart_without_seeing_all_colours(kind, at):
    """Four arms and the baseline differ in colour; more differ in dashes and markers too."""
    found = [BASELINE[at], *(each[at] for each in ARMS)]
    seen = [lab(np.clip(BLINDNESS[kind] @ linear(each), 0, 1)) for each in found]
    for one, other in itertools.combinations(seen[:5], 2):
        assert np.linalg.norm(one - other) > 15
    names = [f"arm {number}" for number in range(29)]
    shapes = looks(names, names[0])
    for one, other in itertools.combinations(names[:9], 2):
        a, b = shapes[one], shapes[other]
        assert (a.dashes, a.marker) != (b.dashes, b.marker)
    assert len({(each.colour, each.dashes) for each in shapes.values()}) == len(names)


def test_line_with_a_single_point_is_drawn():
    once = Curve(steps=np.asarray([100]), values=np.asarray([3.0]))
    only = replace(
        run("one", "one", raw_tokens=None, flops=None, hours=None), validation=once, training={}
    )
    comparison = two_arms(arms=(arm("one", [only], final=3.0),), baseline="one", pairs=())
    found = chart(comparison, "validation-over-steps")
    assert drawing.draw(found, looks_of(comparison)).svg
