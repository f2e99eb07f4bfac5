"""What the template makes of the results of tools."""

from __future__ import annotations

import re
from collections.abc import Iterator

from punie_mlx.doctor import cases
from punie_mlx.doctor.cases import ORBIT, Talk, seen
from punie_mlx.doctor.excerpts import Frame, around, told
from punie_mlx.doctor.findings import Check, Finding, Skip
from punie_mlx.doctor.specimen import Specimen

_NOT_SHOWN = "results are not shown at all: tool-result-lost says so"


def tool_result_lost(specimen: Specimen) -> Iterator[Finding]:
    """The text of a result stands in the prompt, as the last message and later on."""
    talk = Talk.of(specimen)
    later = [*talk.loop(), cases.answer(), cases.user(cases.SECOND)]
    for where, messages in {"": talk.loop(), " once another question follows": later}.items():
        text = seen(specimen, messages, cases.OFFERED)
        if lost := [w for w in ORBIT.result.split() if not told(text, w)]:
            yield Finding(
                "tool-result-lost",
                "high",
                f"The result of a tool is left out of the prompt{where}.",
                (
                    specimen.show("what the prompt does not hold", ORBIT.result if len(lost) > 1 else lost[0]),
                    specimen.show("the prompt where it should stand", around(text, cases.FIRST)),
                ),
                "The model never sees what its call brought: it calls again, or makes the answer up.",
                "Render messages of the role `tool`, in the frame that the model was taught.",
            )
            return


def tool_result_as_user(specimen: Specimen) -> Iterator[Finding]:
    """The frame of a result is another than that of a user's message."""
    talk = Talk.of(specimen)
    as_tool = seen(specimen, talk.loop(), cases.OFFERED)
    as_user = specimen.render([*talk.loop()[:2], cases.user(ORBIT.result)], cases.OFFERED)
    if ORBIT.result not in as_tool:
        raise Skip(_NOT_SHOWN)
    if as_tool == as_user.text or Frame.of(specimen).holds(as_tool, ORBIT.result):
        frame = Frame.of(specimen)
        shown = around(as_tool, frame.before + ORBIT.result, reach=30)
        asked = seen(specimen, [cases.user()], cases.OFFERED)
        yield Finding(
            "tool-result-as-user",
            "high",
            "The result of a tool looks just like a message of the user.",
            (
                specimen.show("a result", shown),
                specimen.show("a user's message", around(asked, frame.before + cases.FIRST, reach=30)),
            ),
            "The model takes the result for a new question, and calls the tool again instead of answering.",
            "Put results into a frame of their own, such as <tool_response>…</tool_response>.",
        )


_REPEATED = re.compile(r"((?:(?:<[^<>/\s][^<>\n]*>|\[[A-Z_]{3,}\])\w*){1,3})\s*\1")
_JSON = '{"planet": "Zeeland-71"}'
_CODED = re.compile(r'\{(\\+)"planet\1": \1"Zeeland-71\1"\}')


def double_wrapped(specimen: Specimen) -> Iterator[Finding]:
    """A result has one frame, and JSON in it is written once."""
    talk = Talk.of(specimen)
    text = seen(specimen, talk.loop(), cases.OFFERED)
    if ORBIT.result not in text:
        raise Skip(_NOT_SHOWN)
    if text.count(ORBIT.result) > 1:
        yield _wrapped("The result stands in the prompt twice.", specimen, around(text, ORBIT.result))
        return
    start = max(text.find(w) + len(w) for w in (*ORBIT.words, ORBIT.name))
    twice = _REPEATED.search(text[start : text.find(ORBIT.result)])
    if twice:
        shown = around(text, ORBIT.result)
        yield _wrapped(f"The frame of a result is written twice: {twice[1]}.", specimen, shown)
        return
    coded = seen(specimen, [*talk.loop()[:2], cases.result(ORBIT, _JSON)], cases.OFFERED)
    twice = _CODED.search(coded)
    # As a value inside an object it has to be a string: that is the format's own way to write it.
    if twice and (len(twice[1]) > 1 or not re.search(r"\"\s*:\s*\"$", coded[: twice.start()])):
        yield _wrapped(
            f"A result that is JSON is written as a JSON string: {_JSON} is encoded a second time.",
            specimen,
            around(coded, twice[0], reach=40),
        )


def _wrapped(summary: str, specimen: Specimen, shown: str) -> Finding:
    return Finding(
        "double-wrapped",
        "medium",
        summary,
        (specimen.show("the result as the prompt shows it", shown),),
        "The model reads results in a form that it was not taught, and pays tokens for escapes; it copies them into "
        "the arguments of its next call.",
        "Write the content of a result once and as it is: `{{ message.content }}` inside one frame.",
    )


_PIECE = "pieced Halvard-5"
_AS_LIST = re.compile(r"""['"]type['"]: ['"]text['"]""")


def content_parts(specimen: Specimen) -> Iterator[Finding]:
    """Content as a list of text parts, which OpenAI's API allows, is read as its text."""
    seen(specimen, [cases.user()])  # or nothing could be said of it
    talk = Talk.of(specimen)
    parts = [{"type": "text", "text": _PIECE}]
    conversations = {
        "a result": [*talk.loop()[:2], cases.result(ORBIT, parts)],
        "a user's message": [cases.user(parts)],
    }
    for what, messages in conversations.items():
        made = specimen.render(messages, cases.OFFERED)
        bad = made.failed or _PIECE not in made.text or bool(_AS_LIST.search(made.text))
        plain = specimen.render(_flat(messages), cases.OFFERED)
        if bad and not plain.failed and _PIECE in plain.text:
            shown = made.error or (around(made.text, _PIECE) if "Halvard" in made.text else "")
            yield Finding(
                "content-parts",
                "low",
                f"The content of {what} as a list of text parts "
                + ("cannot be rendered." if made.failed else "is not read as its text."),
                (
                    specimen.show("content as a list", shown or around(made.text, cases.FIRST, ORBIT.name)),
                    specimen.show("content as a string", around(plain.text, _PIECE)),
                ),
                "Clients may send either. mlx_lm, vLLM and punie-mlx join text parts before they render; a server that "
                "does not shows the model Python's spelling of a list, or fails.",
                "Take the `text` of each part where `content` is not a string.",
            )
            return


def _flat(messages: list[cases.Message]) -> list[cases.Message]:
    return [m | {"content": _PIECE} if isinstance(m["content"], list) else m for m in messages]


CHECKS = (
    Check("tool-result-lost", "template", "Results of tools are left out", tool_result_lost),
    Check("tool-result-as-user", "template", "A result looks like a user's message", tool_result_as_user),
    Check(
        "double-wrapped",
        "template",
        "Results are wrapped or encoded twice",
        double_wrapped,
        follows=("tool-result-lost",),
    ),
    Check("content-parts", "template", "Content as a list of parts is not read", content_parts),
)
