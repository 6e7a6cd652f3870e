"""What an audit says: the pairing and what is worse first, on a terminal, a page and in JSON."""

import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from tst_megatron.audit.compared import pairing_of
from tst_megatron.audit.items import LeftOut
from tst_megatron.audit.margins import MARGINS, parse_margins
from tst_megatron.audit.report.keys import as_keys
from tst_megatron.audit.report.page import check_page, render, write_page
from tst_megatron.audit.report.story import verdicts
from tst_megatron.audit.report.tables import needed
from tst_megatron.audit.report.terminal import show
from tst_megatron.audit.results import Answer, Audit, Audited
from tst_megatron.audit.statistics.verdict import GUESSING
from tst_megatron.compare.results import Interval

HOSTILE = "tst<script>alert(1)</script>\x1b[31m"


def model(name, loss):
    return Audited(
        name=name,
        folder=Path("hf") / "x",
        fingerprint="ab" * 32,
        loss=loss,
        is_loss_measured=True,
        temperature=1.02,
    )


def answer(probe, verdict, *, of=HOSTILE, number=None, reason="", group="Natural text"):
    return Answer(
        model=of,
        probe=probe,
        group=group,
        aim=f"what {probe} is for",
        kind="slice",
        unit="nats",
        is_higher_better=False,
        margin=0.03,
        value=0.5,
        baseline_value=0.4,
        difference=Interval(value=0.1, low=0.05, high=0.15, method="paired bootstrap"),
        p_value=0.001,
        run_noise=0.01,
        verdict=verdict,
        reason=reason,
        clusters="documents",
        num_clusters=1234,
        num_tokens=9876,
        num_to_decide=number,
    )


def made(*, losses=(3.0, 3.01)):
    models = [model("base", losses[0]), model(HOSTILE, losses[1])]
    return Audit(
        baseline="base",
        models=models,
        compared=[HOSTILE],
        pairings=[pairing_of(models[0], models[1], 0.02)],
        answers=[
            answer("all text", "not worse"),
            answer("numbers", "worse"),
            answer("digit order, inside", "worse", group="Order"),
            answer("digit order, across", "cannot tell", number=12345.0, group="Order"),
            answer("roles", "cannot tell", number=math.inf, reason=GUESSING, group="Order"),
            answer("names", "better"),
        ],
        left_out=[LeftOut(name="dates", reason="too few")],
        bag_size=4,
        bag_size_source="as given",
        num_positions=128,
        text="held-out.jsonl",
        text_sha256="cd" * 32,
        margins=dict(MARGINS),
        seed=1,
        items_version=1,
        suites={"natural": "ef" * 32},
        num_baseline_seeds=1,
        seconds=3.5,
    )


def test_what_is_worse_comes_first_and_parts_of_a_task_stand_together():
    said = verdicts(made())
    assert [each.word for each in said] == ["worse", "cannot tell", "not worse", "better"]
    assert said[0].sentence.endswith("worse in 2 of 6 probes: numbers; digit order (inside).")
    assert "digit order (across); roles" in said[1].sentence


def test_terminal_has_one_line_for_each_probe_and_none_longer_than_a_hundred():
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    show(made(), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 100
    (line,) = [each for each in lines if each.startswith("digit order, across")]
    assert "? cannot tell" in line and "+0.050 to +0.150" in line and "12,000" in line
    assert any("guessing" in each for each in lines)
    text = " ".join(" ".join(lines).split())
    assert text.index("are at equal loss") < text.index("is worse in") < text.index("Natural text")


def test_page_asks_for_nothing_and_no_name_acts(tmp_path):
    write_page(made(), tmp_path / "new" / "page.html")
    page = (tmp_path / "new" / "page.html").read_text()
    assert "<script" not in page and "\x1b" not in page
    assert not re.search(r"""(?:src|href)=["'](?!#)""", page)
    for each in made().answers:
        assert f'<th scope="row">{each.probe}' in page
    assert page == render(made())
    assert page.index('class="verdict worse"') < page.index('class="verdict cannot-tell"')


def test_page_is_refused_where_something_else_is(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        check_page(tmp_path, [])
    with pytest.raises(ValueError, match="is read by this audit"):
        check_page(tmp_path / "a", [tmp_path / "a"])


def test_json_has_everything_in_words_and_no_infinity():
    keys = json.loads(json.dumps(as_keys(made()), allow_nan=False))
    assert keys["answers"][4]["num to decide"] is None
    assert keys["answers"][1]["difference"]["low"] == 0.05
    assert (keys["seed"], keys["items version"], keys["format"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((3.0, 3.015), "are at equal loss: 3.015 against 3.000"),
        ((3.0, 3.2), "base is the better model and wins many probes for that alone"),
        ((3.2, None), "It is not known whether"),
    ],
)
def test_pairing_says_what_it_means(losses, said):
    (pairing,) = made(losses=losses).pairings
    assert said in pairing.sentence


def test_what_would_decide_is_a_number_or_says_why_there_is_none():
    assert needed(answer("a", "cannot tell", number=1234.0)) == "1,200"
    assert needed(answer("a", "cannot tell", number=math.inf)) == "more seeds"
    assert needed(answer("a", "cannot tell", number=math.inf, reason=GUESSING)) == "guessing"
    assert needed(answer("a", "cannot tell", number=1e9)) == "too many"
    assert needed(answer("a", "worse")) == ""


def test_margins_are_those_given_by_kind_and_by_probe():
    margins = parse_margins(["accuracy=0.1", "digit order, inside=0.02"])
    assert margins.of_kind["accuracy"] == 0.1 and margins.of_kind["loss"] == MARGINS["loss"]
    assert margins.of_probe == {"digit order, inside": 0.02}
    with pytest.raises(ValueError, match="not NAME=NUMBER.*\n.*not NAME=NUMBER"):
        parse_margins(["accuracy=0", "loss=x"])
