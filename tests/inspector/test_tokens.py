"""Tokens as HTML: what they hold neither breaks the page nor hides, and what is marked is told in words, too."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from punie_mlx.pages.frame import asset, document
from punie_mlx.pages.tokens import HINT, Token, chip, legend, percent, strip

HOSTILE = "</i></div><script>alert(1)</script>\"'&\x1b[31m\u202egnp\u200b\ud800\x00\ue000\t\n"


class Seen(HTMLParser):
    """Elements and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        if tag != "input":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "elements are closed in order"

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_text_stays_text():
    token = Token(7, HOSTILE, state="content", trained=True, turn=0, probability=0.2, title=HOSTILE)
    html = strip([token], HOSTILE, {0: HOSTILE})
    found = Seen(html)
    assert found.open == [] and "script" not in found.tags and found.tags.count("i") == 1
    html.encode()
    for hidden in "\x1b\u202e\u200b\ud800\x00\ue000":
        assert hidden not in html
    assert "U+202E" in found.text and "</i></div><script>" in found.text
    (title,) = [a["title"] for a in found.attributes if a.get("role") == "option"]
    assert "U+202E" in (title or "") and "alert(1)" in (title or "")


def test_what_is_marked_is_told_in_words_too():
    token = Token(7, "<tool_call>", "control", 2, True, "call", 0.03, "instead: 'x' 90%")
    (seen,) = [a for a in Seen(chip(token, {2: "assistant"})).attributes if "title" in a]
    assert seen["class"] == "control trained s-call rare" and seen["data-id"] == "7"
    assert (seen["title"] or "").split("\n") == [
        'control token 7: "<tool_call>"', "message 3, assistant", "trained on", "reader after it: call",
        "probability 3%", "instead: 'x' 90%",
    ]  # fmt: skip


def test_nothing_is_claimed_of_what_is_not_known():
    (seen,) = Seen(chip(Token(7, "x"))).attributes
    assert seen["class"] == "text" and seen["title"] == 'token 7: "x"'
    assert "not trained on" in chip(Token(7, "x", trained=False))


def test_labels_stand_where_turns_and_states_begin():
    tokens = [
        Token(1, "a"), Token(2, "b", turn=0), Token(3, "c", turn=0), Token(4, "d", turn=1, state="content"),
        Token(5, "e", turn=1, state="content"), Token(6, "f", turn=1, state="call"),
    ]  # fmt: skip
    html = strip(tokens, "Prompt", {0: "user", 1: "assistant"})
    labels = re.findall(r'<b class="(\w+)"[^>]*>([^<]*)</b>', html)
    assert labels == [
        ("turn", "the template&#x27;s own"), ("turn", "message 1, user"), ("turn", "message 2, assistant"),
        ("state", "content"), ("state", "call"),
    ]  # fmt: skip
    assert 'aria-label="Prompt, 6 tokens"' in html and HINT in html
    assert "<b" not in strip([Token(1, "a"), Token(2, "b")], "Text"), "a text without turns has no labels"


def test_a_line_ends_behind_its_token():
    assert chip(Token(1, "a\n")).endswith("<u>↵</u></i>\n") and chip(Token(1, "\n\n")).endswith("<u>↵</u></i>\n")
    assert chip(Token(1, "a")).endswith("a</i>")


def test_a_piece_of_a_character_is_shown_by_its_number():
    assert ">#300<" in chip(Token(300, "", "part"))


@pytest.mark.parametrize(
    ("probability", "said"),
    [(0.0, "0%"), (1e-7, "below 0.01%"), (0.5, "50%"), (0.99997, "above 99.99%"), (1.0, "100%"), (0.1234567, "12.35%")],
)
def test_no_probability_is_rounded_to_certainty(probability: float, said: str) -> None:
    assert percent(probability) == said


def test_the_legend_explains_what_there_is():
    html = legend([Token(1, "a", "control", trained=True), Token(2, "b", state="call", probability=0.3)])
    assert Seen(html).text.strip() == "control tokentrained onreader: callprobability below 0.5 ids"


def test_the_assets_fit_into_a_page_that_allows_no_style_in_attributes():
    token = Token(1, HOSTILE, "control", 0, True, "call", 0.01)
    body = strip([token], "Prompt", {0: "user"}) + legend([token])
    page = document("Tokens", body, style=asset("tokens.css"), script=asset("tokens.js"))
    assert not [a for a in Seen(body).attributes if "style" in a or any(k.startswith("on") for k in a)]
    assert page.count("<script>") == page.count("<style>") == 1
