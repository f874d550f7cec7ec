"""Text and names from the pool are text in the report and in the card, and nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from hostile_helpers import NAMES, Attacked
from markdown_it import MarkdownIt
from markdown_it.token import Token

from curate.write.card import fenced, public_config

ELEMENTS = {
    "!doctype", "b", "body", "circle", "details", "div", "h1", "h2", "head", "html", "i", "line",
    "main", "meta", "p", "polyline", "pre", "rect", "section", "small", "span", "strong", "style",
    "summary", "svg", "table", "tbody", "td", "text", "th", "thead", "title", "tr",
}  # fmt: skip
ATTRIBUTES = {
    "aria-label", "charset", "class", "content", "cx", "cy", "height", "http-equiv", "lang", "name",
    "points", "r", "role", "scope", "style", "text-anchor", "transform", "viewbox", "width", "x",
    "x1", "x2", "y", "y1", "y2",
}  # fmt: skip


class Page(HTMLParser):
    """The elements, attributes and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page(attacked: Attacked) -> Page:
    return Page((attacked.out / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def card(attacked: Attacked) -> str:
    return (attacked.out / "README.md").read_text(encoding="utf-8")


def test_the_report_has_no_active_element_or_attribute(page: Page) -> None:
    assert page.elements <= ELEMENTS
    assert {name for name, _ in page.attributes} <= ATTRIBUTES
    for name, value in page.attributes:
        assert "://" not in str(value), name
        assert "script" not in str(value), name
    styles = [str(value) for name, value in page.attributes if name == "style"]
    assert {style.partition(":")[0] for style in styles} == {"left", "width"}
    assert all(style.partition(":")[2].strip("0123456789.%") == "" for style in styles)


def test_the_report_shows_what_is_hostile_as_text(page: Page) -> None:
    text = "\n".join(page.words)
    assert f"Kept by {NAMES[0]}" in text
    assert "</script><script>alert(1)</script>" in text
    assert "{style} %s ${HOME}" in text


def test_the_report_and_the_card_hide_no_character(attacked: Attacked, card: str) -> None:
    report = (attacked.out / "report.html").read_text(encoding="utf-8")
    for text in (report, card, (attacked.out / "config.yaml").read_text(encoding="utf-8")):
        assert [c for c in text if not c.isprintable() and c != "\n"] == []


def inline(tokens: list[Token]) -> list[Token]:
    """Every token, those within others too."""
    return [one for token in tokens for one in [token, *inline(token.children or [])]]


def test_the_card_has_no_markup_that_it_did_not_write(card: str) -> None:
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head).keys() == {"configs", "size_categories", "tags"}
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    tokens = inline(parser.parse(body))
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "html_inline", "image", "link_open", "hr", "lheading_open"}
    titles = [tokens[i + 1].content for i, one in enumerate(tokens) if one.type == "heading_open"]
    assert [title for title in titles if not title.startswith("Kept by")] == [
        "Curated dataset", "Load it", "Figures", "Columns", "Why documents were kept or dropped",
        "Ask the log", "Config", "What this does not show",
    ]  # fmt: skip
    rendered = Page(parser.render(body))
    assert not rendered.elements & {"script", "img", "svg", "a", "iframe", "b"}
    assert not [name for name, _ in rendered.attributes if name.startswith("on") or name == "href"]


def test_what_a_renderer_would_link_is_escaped(card: str) -> None:
    """GitHub and the Hub link bare addresses; a backslash in them keeps them text."""
    body = card.split("---\n", 2)[2]
    assert "www.evil" not in body
    assert re.findall(r"\w://", body.partition("## Config")[0]) == []


def test_a_hostile_config_stays_in_its_block() -> None:
    """Settings are the user's, but a config may be somebody else's."""
    value = "x\n```\n<script>alert(1)</script>\n````\n---\n\u202e\x1b[2J"
    text = fenced(public_config(json.dumps({"pool": value})), "yaml")
    tokens = MarkdownIt("commonmark").parse(text)
    assert [token.type for token in tokens] == ["fence"]
    assert yaml.safe_load(tokens[0].content) == {"pool": value}
    assert [c for c in text if not c.isprintable() and c != "\n"] == []
