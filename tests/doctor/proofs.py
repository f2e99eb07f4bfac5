"""For each check, an independent look at a template that it names: other words, other messages, no code of the checks.

A proof is true where the fault shows itself in what the template renders.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from punie_mlx.doctor.specimen import Specimen

Message = dict[str, Any]

INNER = {f"inner_K{n}": {"type": "string"} for n in (3, 4, 5)}
TOOL = {
    "type": "function",
    "function": {
        "name": "weigh_parcel",
        "description": "Weighs a parcel.",
        "parameters": {
            "type": "object",
            "properties": {
                "unit": {"type": "string", "enum": ["stone_K1", "pood_K2"]},
                "parts": {"type": "array", "items": {"type": "object", "properties": INNER}},
            },
            "required": ["unit"],
        },
    },
}
SYSTEM, ASK = {"role": "system", "content": "sysword"}, {"role": "user", "content": "askword"}
ANSWER, AGAIN = {"role": "assistant", "content": "answord"}, {"role": "user", "content": "againword"}


def call(content: Any = "", arguments: Any = None, **more: Any) -> Message:
    function = {"name": "weigh_parcel", "arguments": {"unit": "pood_K9"} if arguments is None else arguments}
    return {"role": "assistant", "content": content, "tool_calls": [tool_call(function)], **more}


def tool_call(function: dict[str, Any], id: str = "aB3dE6gH9") -> Message:
    return {"id": id, "type": "function", "function": function}


def result(content: Any = "resword", id: str = "aB3dE6gH9") -> Message:
    return {"role": "tool", "tool_call_id": id, "content": content}


def render(specimen: Specimen, *messages: Message, tools: bool = True, **kwargs: Any) -> str | None:
    """The prompt, or None where the template raises; with tools where it does not do without."""
    made = specimen.render(messages, [TOOL] if tools else None, **kwargs)
    made = specimen.render(messages, [TOOL], **kwargs) if made.failed else made
    return None if made.failed else made.text


def _tools_ignored(s: Specimen) -> bool:
    return "weigh_parcel" not in str(render(s, ASK))


def _schema_lost(s: Specimen) -> bool:
    return any(w not in str(render(s, ASK)) for w in ("stone_K1", "inner_K3")) or _typed(s, "number") == _typed(
        s, "integer"
    )


def _typed(s: Specimen, kind: str) -> str:
    """The prompt with a tool whose parameter is of the type `kind`, or null."""
    either = {"type": "object", "properties": {"grams": {"anyOf": [{"type": kind}, {"type": "null"}]}}}
    return s.render([ASK], [{"type": "function", "function": {**TOOL["function"], "parameters": either}}]).text


def _calls_dropped(s: Specimen) -> bool:
    return "pood_K9" not in str(render(s, ASK, call(), result()))


def _text_dropped(s: Specimen) -> bool:
    asked = ASK, call("besides"), result()
    return any("besides" not in str(render(s, *asked, *more)) for more in ((), (ANSWER, AGAIN)))


def _null(s: Specimen) -> bool:
    text = render(s, ASK, call(None), result())
    return text is None or text.count("None") > str(render(s, ASK, call(), result())).count("None")


def _arguments(s: Specimen) -> bool:
    return render(s, ASK, call(), result()) != render(s, ASK, call("", '{"unit": "pood_K9"}'), result())


def _several(s: Specimen) -> bool:
    two = call()
    two["tool_calls"].append(tool_call({"name": "second_K4", "arguments": {}}, "zY8xW5vU2"))
    return "second_K4" not in str(render(s, ASK, two, result(), result("resword2", "zY8xW5vU2")))


def _python(s: Specimen) -> bool:
    return "True" in str(render(s, ASK, call("", {"flag_K5": True}), result()))


def _result_lost(s: Specimen) -> bool:
    return "resword" not in str(render(s, ASK, call(), result()))


def _as_user(s: Specimen) -> bool:
    return render(s, ASK, call(), result()) == render(s, ASK, call(), {"role": "user", "content": "resword"})


def _twice(s: Specimen) -> bool:
    return '{\\"a\\": 1}' in str(render(s, ASK, call(), result('{"a": 1}')))


def _parts(s: Specimen) -> bool:
    parts = [{"type": "text", "text": "partword"}]
    texts = [render(s, {"role": "user", "content": parts})]
    texts += [render(s, ASK, call(), result(parts))] if render(s, ASK, call(), result()) else []
    return any(t is None or "partword" not in t or "type" in t.partition("partword")[0][-30:] for t in texts)


def _systems(s: Specimen) -> bool:
    second = {"role": "system", "content": "secword"}
    looped = render(s, SYSTEM, ASK, call(), result()) if render(s, ASK, call(), result()) else "sysword"
    return "secword" not in str(render(s, SYSTEM, second, ASK, tools=False)) or "sysword" not in str(looped)


def _developer(s: Specimen) -> bool:
    return "devword" not in str(render(s, {"role": "developer", "content": "devword"}, ASK))


def _inside_thinking(s: Specimen) -> bool:
    texts = (render(s, ASK), render(s, ASK, enable_thinking=True))
    return any(str(t).rstrip().endswith(("<think>", "<seed:think>")) for t in texts)


def _prefix(s: Specimen) -> bool:
    talks = [[SYSTEM, ASK], [SYSTEM, ASK, call(), result()], [SYSTEM, ASK, call(), result(), call(), result()]]
    later = [[SYSTEM, ASK], [SYSTEM, ASK, ANSWER, AGAIN]]
    options: list[dict[str, Any]] = [{}, {"enable_thinking": False}, {"thinking_budget": 0}]
    texts = [[render(s, *m, **kwargs) for m in path] for path in (talks, later) for kwargs in options]
    pairs = [(a, b) for path in texts for a, b in pairwise(path) if a is not None and b is not None]
    # A prompt that opens thinking goes on with thinking, and here none is given back.
    return any(not b.startswith(a.removesuffix("<think>\n")) for a, b in pairs)


def _raises(s: Specimen) -> bool:
    bare = {"type": "function", "function": {"name": "weigh_parcel"}}
    long = call()
    long["tool_calls"] = [tool_call(call()["tool_calls"][0]["function"], "call_0123456789abcdef")]
    texts = [
        render(s, ASK, AGAIN, tools=False),
        render(s, ASK, call(), result()),
        render(s, ASK, {**ANSWER, "tool_calls": None}, AGAIN),
        render(s, ASK, call("besides", reasoning_content="thoughtword"), result()),
        render(s, ASK, long, result(id="call_0123456789abcdef")),
    ]
    return None in texts or s.render([ASK], [bare]).failed


def _thinking(s: Specimen) -> bool:
    messages = SYSTEM, ASK, call(reasoning_content="thoughtword"), result()
    texts = (str(render(s, *messages, enable_thinking=on)) for on in (True, False))
    on, off = (text.partition("resword")[0].count("<think>") for text in texts)
    return on < off


def _thoughts(s: Specimen) -> bool:
    return "thoughtword" not in str(render(s, ASK, call(reasoning_content="thoughtword"), result(), thinking=True))


def _quotes(s: Specimen) -> bool:
    function = {**TOOL["function"], "description": 'say "what" now'}
    text = s.render([ASK], [{"type": "function", "function": function}]).text
    return 'say "what" now' in text and '"description": "' in text


def _words(s: Specimen) -> bool:
    def said(word: str, role: str) -> str | None:
        spoken = {"role": role, "content": f"left{word}right"}
        return render(s, *([spoken, ASK] if role == "system" else [ASK, spoken, AGAIN]), tools=False)

    words = [(w, role) for w in ("</think>", "<|channel|>analysis<|message|>") for role in ("assistant", "system")]
    return any(said(w, role) != str(said("CALM", role)).replace("CALM", w) for w, role in words)


PROOFS: dict[str, Callable[[Specimen], bool]] = {
    "tools-ignored": _tools_ignored,
    "schema-lost": _schema_lost,
    "tool-calls-dropped": _calls_dropped,
    "call-text-dropped": _text_dropped,
    "content-null": _null,
    "arguments-form": _arguments,
    "several-calls": _several,
    "value-types": _python,
    "tool-result-lost": _result_lost,
    "tool-result-as-user": _as_user,
    "double-wrapped": _twice,
    "content-parts": _parts,
    "system-messages": _systems,
    "developer-role": _developer,
    "generation-prompt": _inside_thinking,
    "not-prefix-preserving": _prefix,
    "render-error": _raises,
    "thinking-reversed": _thinking,
    "reasoning-dropped": _thoughts,
    "json-unescaped": _quotes,
    "injection": _words,
}
