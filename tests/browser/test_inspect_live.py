"""/inspect of a real server in a browser: asked by mouse and by keyboard, watched, stopped, refused, and lied to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from playwright.sync_api import Page, expect

from punie_mlx.serve.inspect_page import page as page_text

from ..e2e.conftest import build_replaying_model
from .conftest import Opened
from .test_report_page import CONTRAST, SCHEMES, UNNAMED, WIDTHS

KEY = "a-key-of-this-test"
HOSTILE = "</script><img src=x onerror=alert(1)>\u202e<b>bold</b>\u200b&amp;"
HOSTILE_CALL = (
    "<think>Let <i>me</i> think.</think><tool_call>\n<function=find_ship>\n<parameter=ship>\n"
    "<svg onload=alert(3)>\n</parameter>\n</function>\n</tool_call>"
)
NUMBERS = (
    "<tool_call>\n<function=add>\n<parameter=a>\n12345678901234567890\n</parameter>\n<parameter=b>\n1.0\n"
    "</parameter>\n</function>\n</tool_call>"
)
SHIP = {
    "name": "find_ship",
    "description": "<img src=x onerror=alert(2)>",
    "parameters": {"type": "object", "properties": {"ship": {"type": "string"}}, "required": ["ship"]},
}


@pytest.fixture(scope="module")
def url(serving: Callable[..., Any], scripted_model: Path) -> Iterator[str]:
    with serving(scripted_model, "--inspect") as server:
        yield address(server)


@pytest.fixture(scope="module")
def guarded(serving: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a key, whose model says hostile things."""
    path = tmp_path_factory.mktemp("models") / "hostile"
    path.mkdir()
    model = build_replaying_model(path, {"#hostile": HOSTILE, "#ship": HOSTILE_CALL, "#add": NUMBERS})
    with serving(model, "--inspect", "--api-key", KEY) as server:
        yield address(server)


def address(server: Any) -> str:
    return server.url.removesuffix("/v1") + "/inspect"


def running(url: str) -> int:
    return httpx.get(url.removesuffix("inspect") + "health", trust_env=False).json()["running"]


def ask(page: Page, text: str, said: str = "Done") -> None:
    page.get_by_label("User message").fill(text)
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("status")).to_contain_text(said)


def chips(page: Page, of: str = "answer") -> list[str]:
    return page.locator(f"#{of}-tokens i").all_text_contents()


@pytest.mark.parametrize(("width", "scheme"), list(zip(WIDTHS, SCHEMES, strict=True)))
def test_a_call_is_seen_token_by_token(url: str, opened: Opened, tmp_path: Path, width: int, scheme: str) -> None:
    with opened(url, width=width, color_scheme=scheme) as page:
        assert not page.locator("#prompt").is_visible() and page.get_by_role("button", name="Stop").is_disabled()
        page.get_by_label("System message").fill("Be brief.")
        ask(page, "#spaced-call", "Done: 9 tokens, 1 call, finish reason tool_calls.")
        prompt = "".join(chips(page, "prompt"))
        assert "Be·brief." in prompt and '"name":·"get_weather"' in prompt and prompt.endswith("#spaced-call")
        assert page.locator("#prompt-tokens i.control").first.text_content() == "<|im_start|>"
        answer = page.locator("#answer-tokens")
        assert chips(page)[3:5] == ["<tool_call>", "↵\n<function="] and chips(page)[-1] == "end"
        assert page.locator("#answer-tokens b.state").all_text_contents() == [
            "content", "call", "arguments", "between", "content",
        ]  # fmt: skip
        assert answer.locator("i.control.s-call").text_content() == "<tool_call>"
        assert answer.get_attribute("aria-label") == "Answer, 9 tokens"
        marker = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name="<tool_call>", exact=True))
        assert marker.locator("td").all_text_contents()[1:] == ["above 99.99%", "4"]
        lines = page.locator("#timeline li")
        kinds = [(line.locator(".at").text_content(), line.locator("b").text_content()) for line in lines.all()]
        assert kinds == [
            ("2", "text"), ("6", "marker"), ("6", "call begins"), ("6", "arguments"), ("7", "call"), ("8", "marker"),
        ]  # fmt: skip
        assert lines.nth(3).locator("code").text_content() == '{"city":·"Oslo"}'
        assert json.loads(page.get_by_label("Call of get_weather").text_content() or "") == {"city": "Oslo"}
        page.get_by_label("ids").check()
        assert chips(page)[0] == "↵\n·↵", "its id stands before the end of the line"
        assert page.evaluate("document.querySelector('#answer-tokens i').nextSibling.data") == "\n"
        raw = json.loads(page.get_by_label("As the API tells it").text_content() or "")
        assert raw["message"]["content"].strip() == "Let me look." and raw["finish_reason"] == "tool_calls"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        seen, faint = page.evaluate(CONTRAST)
        assert seen > 60 and faint == []
        assert page.evaluate(UNNAMED) == []
        assert page.evaluate("[...document.querySelectorAll('textarea')].filter((t) => !t.labels.length)") == []
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
        assert dark is (scheme == "dark")
        page.screenshot(path=tmp_path / "answer.png")
    assert (tmp_path / "answer.png").stat().st_size > 20_000, "nothing was drawn"


def test_it_can_be_used_by_keyboard_alone(url: str, opened: Opened) -> None:
    with opened(url) as page:
        press = page.keyboard.press
        press("Tab")
        press("Tab")
        assert page.evaluate("document.activeElement.id") == "user"
        page.keyboard.type("#two-calls")
        reached = []
        for _ in range(10):
            press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
            if len(reached) == 4:
                press("Space")  # the tool `add`
        fields = ["INPUT"] * 4 + ["SUMMARY", "choice", "constrain", "temperature", "most", "ask"]
        assert reached == fields, "Stop cannot be pressed yet"
        press("Enter")
        expect(page.get_by_role("status")).to_contain_text("2 calls")
        for name in ("prompt-tokens", "answer-tokens"):
            press("Tab")
            assert page.evaluate("document.activeElement.id") == name, "what scrolls is reached by Tab"
        press("ArrowRight")
        about = page.locator("#answer-tokens + .about")
        assert "reader after it: call" in (about.text_content() or "") and "likeliest" in (about.text_content() or "")
        press("End")
        assert "end of the answer" in (about.text_content() or "")
        page.locator("#user").focus()
        press("ControlOrMeta+A")
        page.keyboard.type("#hello")
        press("Control+Enter")
        expect(page.get_by_role("status")).to_contain_text("0 calls")
        assert "".join(chips(page)) == "Hello,·world·🌍!end"


def test_tokens_are_there_while_others_still_come_until_it_is_stopped(url: str, opened: Opened) -> None:
    with opened(url) as page:
        stop, status = page.get_by_role("button", name="Stop"), page.get_by_role("status")
        page.get_by_label("Most tokens").fill("")
        for how in ("button", "key"):
            ask(page, "#forever", "The model answers.")
            page.locator("#answer-tokens i").nth(20).wait_for()
            assert running(url) == 1 and not page.locator("#result").is_visible() and stop.is_enabled()
            if how == "button":
                stop.click()
            else:
                page.keyboard.press("Escape")
            expect(status).to_contain_text("Stopped after")
            assert stop.is_disabled() and page.locator("#error").text_content() == ""
            until(lambda: running(url) == 0)
        ask(page, "#forever", "The model answers.")
        ask(page, "#hello")  # a new question ends the old answer
        until(lambda: running(url) == 0)
        assert "la" not in "".join(chips(page))


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


REFUSED = "the server responded with a status of"  # what a browser says of any answer that is an error


def test_what_is_wrong_is_said_where_it_is(url: str, opened: Opened) -> None:
    with opened(url, said=[REFUSED, "net::ERR_INTERNET_DISCONNECTED"]) as page:
        own, wrong, error = page.get_by_label("JSON"), page.locator("#own-error"), page.get_by_role("alert")
        choice = page.get_by_label("Tool choice")
        page.get_by_text("Tools of your own").click()
        page.get_by_label("User message").fill("#hello")
        for text, said in (
            ("{", "This is no JSON"),
            ('[{"type": "function", "function": {}}]', "Tool 1 has no name"),
            ('[{"name": "a"}, 3]', "Tool 2 has no name"),
            ('{"name": "a", "parameters": []}', "must be a JSON schema"),
            ('{"name": "\u202ea", "parameters": 1}', "of U+202Ea must be a JSON schema"),
            ("\u202e", "U+202E"),
        ):
            own.fill(text)
            assert said in (wrong.text_content() or "") and own.get_attribute("aria-invalid") == "true"
            page.get_by_role("button", name="Ask").click()
            assert page.evaluate("document.activeElement.id") == "own" and not page.locator("#prompt").is_visible()
        own.fill(json.dumps(SHIP))
        assert wrong.text_content() == "" and own.get_attribute("aria-invalid") == "false"
        choice.select_option("=find_ship")
        own.fill("")
        assert choice.input_value() == "auto", "the tool that was chosen is gone"
        own.fill(json.dumps([SHIP, SHIP]))
        page.get_by_role("button", name="Ask").click()
        expect(error).to_contain_text("find_ship")
        own.fill("")
        page.get_by_label("get_weather").uncheck()
        choice.select_option("required")
        page.get_by_role("button", name="Ask").click()
        expect(error).to_contain_text("no tool that may be called")
        choice.select_option("auto")
        page.get_by_label("User message").fill("x" * 5000)
        page.get_by_role("button", name="Ask").click()
        expect(error).to_contain_text("the model's context is 4096")
        page.context.set_offline(True)
        page.get_by_role("button", name="Ask").click()
        expect(error).to_contain_text("cannot be reached")
        assert page.get_by_role("button", name="Stop").is_disabled()
        page.context.set_offline(False)
        ask(page, "#hello")
        assert error.text_content() == ""


def test_settings_reach_the_model(url: str, opened: Opened) -> None:
    with opened(url) as page:
        page.get_by_label("Tool choice").select_option("=get_weather")
        page.get_by_label("Most tokens").fill("1")
        ask(page, "#hello", "Done: 1 token, 0 calls, finish reason length")
        assert chips(page) == ["<tool_call>"], "the grammar demands a call"
        assert "lazy" not in (page.locator("#grammar").text_content() or "")
        page.get_by_label("Tool choice").select_option("auto")
        page.get_by_label("Most tokens").fill("5")
        page.get_by_label("Temperature").fill("1")
        ask(page, "#coin", "Done: 5 tokens")
        assert set(chips(page)) <= {"heads·", "tails·"}


def test_with_a_key_nothing_opens_but_the_page(guarded: str) -> None:
    shown = httpx.get(guarded, trust_env=False)
    assert shown.status_code == 200 and shown.text == page_text()
    for method, path in (("GET", "/"), ("GET", "/stream"), ("GET", "/x"), ("POST", "/stream")):
        refused = httpx.request(method, guarded + path, json={"messages": []}, trust_env=False)
        assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key", path


def test_a_key_is_asked_for_and_kept_nowhere(guarded: str, opened: Opened) -> None:
    with opened(guarded, said=[REFUSED]) as page:
        key, error = page.get_by_label("API key"), page.get_by_role("alert")
        assert not key.is_visible()
        page.get_by_label("User message").fill("#ship")
        page.get_by_role("button", name="Ask").click()
        expect(error).to_contain_text("wants an API key")
        assert page.evaluate("document.activeElement.id") == "key"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(error).to_contain_text("not the server's")
        key.fill(KEY)
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_contain_text("Done")
        kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie, location.href]")
        assert kept == [0, 0, "", guarded]
        page.reload()
        assert key.input_value() == ""


def test_what_a_model_says_neither_runs_nor_turns_round_nor_changes(guarded: str, opened: Opened) -> None:
    with opened(guarded, said=[REFUSED]) as page:
        ask(page, "#ship", "")
        page.get_by_label("API key").fill(KEY)
        page.get_by_text("Tools of your own").click()
        page.get_by_label("JSON").fill(json.dumps(SHIP))
        page.get_by_label("System message").fill(HOSTILE)
        page.get_by_label("Grammar").select_option("off")
        ask(page, "#hostile")
        for id in ("prompt-tokens", "answer-tokens", "timeline", "parsed"):
            place = page.locator(f"#{id}")
            text = (place.text_content() or "").replace("·", " ")
            assert "<img src=x onerror=alert(1)>" in text and "U+202E" in text and "\u202e" not in text, id
            assert page.locator(f"#{id}").locator(".cp", has_text="U+200B").count() >= 1
        assert not any("\u202e" in (c.get_attribute("title") or "") for c in page.locator("#answer-tokens i").all())
        ask(page, "#ship", "1 call")
        assert "<svg onload=alert(3)>" in (page.get_by_label("Call of find_ship").text_content() or "")
        assert page.get_by_label("Reasoning").text_content() == "Let <i>me</i> think."
        assert page.locator("img, svg, iframe, object, embed, link, main script").count() == 0
        page.get_by_label("get_weather").uncheck()
        page.get_by_label("add", exact=True).check()
        ask(page, "#add", "1 call")
        told = page.locator("#timeline li.call code").text_content() or ""
        assert told.replace("·", " ") == 'add {"a": 12345678901234567890, "b": 1.0}'
        assert page.get_by_label("Call of add").text_content() == '{\n "a": 12345678901234567890,\n "b": 1.0\n}'
