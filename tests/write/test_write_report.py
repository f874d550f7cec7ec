"""The report is one well-formed file without reach, for every kind of run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.write.charts import Bar, Bin, Series, bar_table, compact, histogram, line_chart
from curate.write.report import write_report

_VOID = {"meta", "!doctype"}


class _Page(HTMLParser):
    """Checks that tags nest, and collects elements, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def report_page(log: Path, tmp_path: Path) -> tuple[_Page, str]:
    write_report(tmp_path / "report.html", log)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    return _Page(text), text


def test_report_shows_every_section(make_log, tmp_path: Path):
    page, text = report_page(make_log(), tmp_path)
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles == [
        "Scores in round 2",
        "Kept by source",
        "Loss on the target",
        "Rounds",
        "Training",
        "Reasons",
        "Near the cut-off",
        "Time by stage",
    ]
    assert page.count("svg") == 3
    assert "4.0 min" in page.words
    assert "Held-out documents of the target score 4.90 spreads above" in text
    assert "Model work took 97.0 % of the time; beside it tokenize 3.0 %." in text


def test_report_reaches_nothing(make_log, tmp_path: Path):
    page, text = report_page(make_log(), tmp_path)
    assert "default-src 'none'; style-src 'unsafe-inline'" in text
    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "link", "img", "iframe", "a", "object", "form"}
    for _, attributes in page.elements:
        assert not {"src", "href"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text


def test_hostile_values_stay_text(make_log, tmp_path: Path):
    nasty = ['"><img src=x onerror=alert(1)>', "</style><script>alert(1)</script>", "{style}"]
    page, text = report_page(make_log(metadata={"</h2><b>": nasty}), tmp_path)
    assert "<script" not in text
    assert page.count("img") == 0
    assert nasty[0] in page.words
    assert "Kept by </h2><b>" in page.words


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_report_of_a_run_without_models(make_log, tmp_path: Path, rounds: int):
    run = {"stage_seconds": None, "config": None, "target_tokens": None, "target_documents": None}
    log = make_log(rounds=rounds, models=False, metadata={}, documents=20, run=run)
    page, text = report_page(log, tmp_path)
    assert "Loss on the target" not in text
    assert "<h2>Training" not in text
    assert "no models" in page.words


def test_only_three_columns_and_thirty_values(make_log, tmp_path: Path):
    many = {name: [f"{name}{i}" for i in range(40)] for name in ("m1", "m2", "m3", "m4")}
    _, text = report_page(make_log(documents=400, metadata={"one": ["x"], **many}), tmp_path)
    assert re.findall("<h2>Kept by (.*?)</h2>", text) == ["m1", "m2", "m3"]
    assert text.count(">m2") == 30


def test_training_is_drawn_with_at_most_300_points(make_log, tmp_path: Path):
    _, text = report_page(make_log(), tmp_path)
    training = text[text.index("<h2>Training") : text.index("<h2>Reasons")]
    lines = re.findall('<polyline class="line s\\d" points="(.*?)"', training)
    assert [len(line.split()) for line in lines] == [300, 300, 300]
    names = re.findall('<i class="s\\d"></i>(.*?)<', training)
    assert names == ["proxy", "reference", "lookahead"]


_NUMBERS = st.floats(-1e9, 1e9)


@given(st.lists(st.tuples(st.integers(0, 10**6), _NUMBERS), min_size=1, max_size=60))
def test_lines_stay_inside_the_drawing(points: list[tuple[int, float]]):
    markup = line_chart([Series("a<b", sorted(points))], x_label="x", y_label="y")
    _Page(markup)
    assert "a<b" not in markup
    drawn = re.search('points="(.*?)"', markup)
    assert drawn is not None
    for pair in drawn[1].split():
        across, up = (float(number) for number in pair.split(","))
        assert 0 <= across <= 720
        assert 0 <= up <= 260


@pytest.mark.parametrize("threshold", [None, 0.5, 7.0])
def test_histogram_of_equal_scores(threshold: float | None):
    markup = histogram([Bin(0.5, 0.5, 9, 4)], threshold=threshold, x_label="score")
    _Page(markup)
    assert "9 documents, 4 kept" in markup
    assert ("cut-off" in markup) == (threshold == 0.5)


def test_charts_of_nothing_are_empty():
    assert line_chart([], x_label="x", y_label="y") == ""
    assert histogram([], threshold=1.0, x_label="x") == ""
    assert "0.00%" in bar_table(("a", "b"), [Bar("x", 0.0, ())], mark=0.0)


def test_ticks_say_their_value_however_close_they_are():
    points = [(0.0, 3.412), (1.0, 3.4305), (2.0, 3.42)]
    drawn = line_chart([Series("u", points)], x_label="round", y_label="loss")
    assert re.findall(r'text-anchor="end">([^<]+)<', drawn) == ["3.415", "3.42", "3.425", "3.43"]
    steps = [(1_234_000.0, 1.0), (1_234_060.0, 2.0)]
    drawn = line_chart([Series("u", steps)], x_label="step", y_label="loss")
    labels = re.findall(r'text-anchor="middle">(1[^<]+)<', drawn)
    assert labels == ["1.234M", *(f"1.2340{ten}M" for ten in range(1, 7))]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1k"), (999_600, "1M"), (53_644, "53.6k"), (2.6e6, "2.6M")],
)
def test_compact_numbers(value: float, text: str):
    assert compact(value) == text


def test_a_stage_that_started_over_is_told_as_text(make_log, tmp_path: Path):
    gone_back = [{"stage": "<b>warm-up", "problem": "It broke."}]
    _, text = report_page(make_log(run={"rollbacks": gone_back}), tmp_path)
    sentence = "Learning rates were halved once after a loss or score that was not finite, in "
    assert f"<p>{sentence}&lt;b&gt;warm-up.</p>" in text
