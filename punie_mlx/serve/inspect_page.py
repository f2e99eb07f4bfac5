"""The page at /inspect: a form for a question and its tools, and the places where its script shows what comes.

It is the same for every server and model, and holds nothing of either: what it shows it gets from /inspect/stream.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from punie_mlx.pages.frame import asset, document
from punie_mlx.pages.text import Html, join, tag
from punie_mlx.pages.tokens import HINT, STATES, Token, legend

ASSETS = Path(__file__).parent / "assets"
TITLE = "Inspect"
MOST_TOKENS = 256  # of an answer, unless the user asks for more
CHOICES = (("auto", "auto: as the model likes"), ("none", "none: no call"), ("required", "required: some call"))
GRAMMARS = (("", "as the server does"), ("auto", "wherever it can"), ("required-only", "where a call is demanded"),
            ("off", "never"))  # fmt: skip


def _tool(name: str, description: str, required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TEXT = {"type": "string"}
TOOLS = (
    _tool(
        "get_weather", "The weather of a city today.", ("city",),
        city={**TEXT, "description": "Its name"}, unit={**TEXT, "enum": ["celsius", "fahrenheit"]},
    ),
    _tool("search_files", "The files that hold a text.", ("text",), text=TEXT, most={"type": "integer"}),
    _tool("read_file", "What a file holds.", ("path",), path={**TEXT, "description": "Its path"}),
    _tool("add", "The sum of two numbers.", ("a", "b"), a={"type": "number"}, b={"type": "number"}),
)  # fmt: skip
# One token for each mark that an answer's can have.
MARKED = (
    Token(0, "", "control"), *(Token(0, "", state=state) for state in STATES), Token(0, "", probability=0.3),
    Token(0, "", probability=0.01),
)  # fmt: skip
OWN = json.dumps([_tool("find_ship", "Where a ship is.", ("ship",), ship=TEXT)], indent=1)


@functools.cache
def page() -> Html:
    """The HTML."""
    body = tag(
        "main",
        tag("h1", TITLE),
        tag("p", "Ask the model that this server has, and see each token as it comes, before and after it is read."),
        tag("noscript", tag("p", "This page asks the server by its script, which this browser does not run.")),
        _form(),
        _bar(),
        _section("prompt", "Prompt", _strip("prompt-tokens", "Prompt"), tag("p", id="grammar", class_="soft small")),
        _section("answer", "Answer", _strip("answer-tokens", "Answer"), legend(MARKED), _markers()),
        _section(
            "events", "Events", tag("p", "What the reader made of each token, by its number.", class_="soft"),
            tag("ol", id="timeline", class_="timeline", tabindex="0", aria_label="Events"),
        ),
        _section("result", "Result", tag("div", id="parsed")),
    )  # fmt: skip
    style = asset("tokens.css") + asset("inspect.css", ASSETS)
    script = asset("tokens.js") + asset("inspect.js", ASSETS)
    return document(TITLE, body, style=style, script=script, asks=True)


# ---- the form ----


def _form() -> Html:
    return tag(
        "form",
        _field("System message", tag("textarea", id="system", rows="2", spellcheck="false"), "system"),
        _field("User message", tag("textarea", id="user", rows="3", required=True, spellcheck="false"), "user"),
        _tools(),
        tag(
            "div",
            _field("Tool choice", _select("choice", CHOICES), "choice"),
            _field("Grammar", _select("constrain", GRAMMARS), "constrain"),
            _field("Temperature", _number("temperature", min="0", max="100", step="any"), "temperature"),
            _field("Most tokens", _number("most", min="1", step="1", value=str(MOST_TOKENS)), "most"),
            class_="row",
        ),
        tag(
            "div",
            _field(
                "API key",
                tag("input", id="key", type="password", autocomplete="off", aria_describedby="kept"),
                "key",
            ),
            tag("p", "It stays in this page until that is closed or loaded again, and is stored nowhere.",
                id="kept", class_="soft small"),
            id="key-row", hidden=True,
        ),
        id="form", autocomplete="off",
    )  # fmt: skip


def _tools() -> Html:
    picks = [
        tag("label", tag("input", type="checkbox", class_="tool", value=json.dumps(t), checked=i == 0), " ",
            tag("code", t["function"]["name"]), title=t["function"]["description"])
        for i, t in enumerate(TOOLS)
    ]  # fmt: skip
    hint = "A list of tools as OpenAI's API has them, or one. They come behind those that are picked above."
    own = tag(
        "details",
        tag("summary", "Tools of your own"),
        _field(
            "JSON", tag("textarea", id="own", rows="7", spellcheck="false", placeholder=OWN,
                        aria_describedby="own-hint own-error"), "own",
        ),
        tag("p", hint, id="own-hint", class_="soft small"),
        tag("p", id="own-error", class_="bad"),
        id="own-tools",
    )  # fmt: skip
    return tag("fieldset", tag("legend", "Tools"), tag("div", *picks, class_="picks"), own)


def _field(name: str, control: Html, id: str) -> Html:
    return tag("div", tag("label", name, for_=id), control, class_="field")


def _select(id: str, options: tuple[tuple[str, str], ...]) -> Html:
    return tag("select", *(tag("option", said, value=value) for value, said in options), id=id)


def _number(id: str, **attributes: str) -> Html:
    # The server's own default stands where nothing does.
    return tag("input", id=id, type="number", placeholder="server's own", **attributes)


# ---- what comes ----


def _bar() -> Html:
    """What starts, stops and tells; it stays in sight."""
    keys = (tag("kbd", "Ctrl Enter"), " asks, ", tag("kbd", "Esc"), " stops")
    return tag(
        "div",
        tag("button", "Ask", type="submit", form="form", id="ask"),
        tag("button", "Stop", type="button", id="stop", disabled=True),
        tag("span", *keys, class_="soft small keys"),
        tag("p", id="status", role="status", aria_live="polite"),
        tag("p", id="error", role="alert", class_="bad"),
        class_="bar",
    )


def _section(id: str, title: str, *content: Html) -> Html:
    return tag("section", tag("h2", title), *content, id=id, hidden=True)


def _strip(id: str, name: str) -> Html:
    box = tag("div", id=id, class_="strip", role="listbox", tabindex="0", aria_label=name, data_name=name)
    return join([box, tag("p", HINT, class_="about")])


def _markers() -> Html:
    """Of each marker: how likely it was as the next token, and where it was that most."""
    heads = [tag("th", "Marker", scope="col")]
    heads += [tag("th", h, scope="col", class_="n") for h in ("next", "at most", "at token")]
    made = tag("table", tag("caption", "How likely the markers were"), tag("thead", tag("tr", *heads)),
               tag("tbody", id="markers"))  # fmt: skip
    return tag("div", made, class_="scroll", role="region", aria_label="How likely the markers were", tabindex="0")
