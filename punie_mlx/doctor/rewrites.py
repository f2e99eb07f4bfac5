"""The smallest rewrites of a template's own text: which place is edited how, and for which findings.

A rewrite only proposes: `mend` keeps of its edits those that clear a finding and bring no new one, and no more of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from punie_mlx.doctor.jinja_text import Edit, Text
from punie_mlx.doctor.rewrites_turns import (
    add_call_loop,
    add_call_text,
    add_generation_prompt,
    frame_results,
    gather_system,
    holding_content,
    put_contents_in_order,
    rename_developers,
)
from punie_mlx.doctor.specimen import Specimen

Proposals = Iterable[Sequence[Edit]]

# What a message says, wherever it is read and not asked about: `message.content`, `messages[0]['content']`.
CONTENT = r"(?<![\w.])([A-Za-z_]\w*(?:\[[^\[\]]*\])?(?:\.content\b|\[['\"]content['\"]\]|\.get\(['\"]content['\"]\)))"
_READ = r"(?!\s*(?:is\b|or\b|\.content|=[^=]))"
_NAME = r"[A-Za-z_]\w*(?:\.\w+|\[['\"]\w+['\"]\])*"
_ARGUMENTS = rf"(?<![\w.])({_NAME}(?:\.arguments\b|\[['\"]arguments['\"]\]))"
_AS_JSON = r"\s*\|\s*tojson(?:\([^()]*\))?"
_SWITCH = r"(?<![\w.'\"])(enable_thinking|thinking|enable_reasoning|reasoning)\b"
_JSON_OR_TEXT = "({0} if {0} is string else {0} | tojson)"
_CLOSED = r"(?=\s*(?:[-+]?[%}]\}|\)|\||~|\+|,))"


@dataclass(frozen=True)
class Rewrite:
    """A kind of edit: what it `does`, in words, and the checks whose findings it may clear.

    propose: sets of edits, each of which may help by itself, those that change least first. everywhere: what helps in
    one place is right in all, so that none is left as it was because no check looks there; otherwise no more edits are
    taken than help. apart: an edit of a set may help alone where the whole set harms. late: only once all else is
    mended, since its proof takes long. plain: conversations without tools must stay as they were, to the letter.
    """

    does: str
    clears: tuple[str, ...]
    propose: Callable[[Text, Specimen], Proposals]
    everywhere: bool = False
    apart: bool = False
    late: bool = False
    plain: bool = True


def _swap(*pairs: tuple[str, str], written: bool = False) -> Callable[[Text, Specimen], Proposals]:
    """Each pattern in code with what comes in its place, as a set of edits of its own; or only in what is `written`."""

    def propose(text: Text, specimen: Specimen) -> Proposals:
        sets = [text.replace(old, new) for old, new in pairs]
        return [text.in_outputs(edits) for edits in sets] if written else sets

    return propose


def _values_of_arguments(text: Text, specimen: Specimen) -> Proposals:
    """A value that a loop over arguments writes is JSON, unless it is text."""
    edits = []
    for loop in text.find(r"\bfor\s+\w+\s*,\s*(\w+)\s+in\s+[^%]*arg[^%]*%\}"):
        end = next((s.start for s in text.statements if s.start > loop.end() and s.word == "endfor"), None)
        name = text.template[slice(*loop.span(1))]
        asked = re.compile(rf"{name} if {name} is string else\s+$")
        edits += [
            Edit(*m.span(), f"{name} | tojson" if asked.search(text.code, 0, m.start()) else _JSON_OR_TEXT.format(name))
            for m in text.find(rf"(?<![\w.|(]){name}\b(?:\s*\|\s*string)?(?!{_AS_JSON}){_CLOSED}")
            if end and loop.end() < m.start() < end
        ]
    return [edits, text.replace(r"\((\w+(?:\[\w+\])?)\s*\|\s*string\)", _JSON_OR_TEXT.format(r"\1"))]


def _function_as_json(text: Text, specimen: Specimen) -> Proposals:
    """A call that is written as one JSON object, whose arguments may be JSON already."""
    found = text.find(rf"(?<![\w.])({_NAME}\.function|{_NAME}\['function'\]){_AS_JSON}")
    return [
        [
            Edit(
                *m.span(),
                f"""('{{"name": ' ~ ({m[1]}.name | tojson) ~ ', "arguments": ' ~ """
                f"""({m[1]}.arguments if {m[1]}.arguments is string else {m[1]}.arguments | tojson) ~ '}}')""",
            )
            for m in found
        ]
    ]


def _whole_tool(text: Text, specimen: Specimen) -> Proposals:
    """The schema of parameters stands behind a tool's description; or what is written in parts is written whole."""
    tool = text.variable_of(r"\btools\b")
    if tool is None:
        return []
    part = rf"(?<![\w.'\"]){tool}(?:\.\w+|\[['\"]\w+['\"]\])+"
    inside = [t for t in text.outputs if tool in t.loops]
    described = re.compile(rf"(?<![\w.'\"])({tool}(?:\.function|\[['\"]function['\"]\])?)(?:\.|\[['\"])description\b")
    behind = [(t.end, m[1]) for t in inside if (m := described.search(text.inside(t)))]
    edits = [
        Edit(m.start(), m.end(), f"{tool} | tojson" if m[0].endswith(")") or "tojson" in m[0] else f"({tool} | tojson)")
        for m in text.find(rf"{part}(?:{_AS_JSON})?")
        if any(t.start < m.start() < t.end for t in inside)
    ]
    return [
        *([Edit(end, end, f"{{{{- '\\n' ~ (({named}.parameters or {{}}) | tojson) }}}}")] for end, named in behind),
        *([e] for e in edits),
    ]


def _silenced(text: Text, specimen: Specimen) -> Proposals:
    """Nothing is raised: all of the places, or one of them."""
    raised = [t for t in text.outputs if re.match(r"\s*raise_exception\(", text.inside(t))]
    return [[Edit(*t.inner, " '' ") for t in raised]]


def _order_removed(text: Text, specimen: Specimen) -> Proposals:
    """Sentences that order a call in every answer are taken out of what the template says."""
    words = r"[^.!<>\n'\"\\]*"
    sentence = (
        rf"(?:(?<=\\n)|(?<=[.!>'\"\n])) *{words}\b(?:must|always|shall|required to|have to)\b"
        rf"{words}\b(?:call|use|invoke|tools?|functions?)\b{words}[.!]?"
    )
    every = [Edit(*m.span(), "") for m in re.finditer(sentence, text.template, re.IGNORECASE)]
    return [[e] for e in every]


def _thinking_turned(text: Text, specimen: Specimen) -> Proposals:
    """A test of the switch that says the contrary of what it did; or the two modes, one in the place of the other."""
    turned = [
        *text.replace(rf"{_SWITCH}\s+is\s+false\b", r"\1 is true"),
        *text.replace(rf"{_SWITCH}\s+is\s+true\b", r"\1 is false"),
        *text.replace(rf"\bnot\s+{_SWITCH}(?!\s+is\b)", r"\1"),
        *text.replace(rf"(?<!not )(?<!set ){_SWITCH}(?!\s*(?:is\b|=))", r"not \1"),
        *text.replace(r"==\s*(['\"])/think\1", "== '/no_think'", strings=True),
        *text.replace(r"==\s*(['\"])/no_think\1", "== '/think'", strings=True),
    ]
    modes = text.replace(r"['\"]/(?:no_)?think['\"](?=\s*[-+]?%\})", "", strings=True)
    swapped = [Edit(m.start, m.end, _other_mode(text.template[m.start : m.end])) for m in modes]
    return [*([e] for e in turned), turned, swapped]


def _other_mode(string: str) -> str:
    return "'/think'" if "no_" in string else "'/no_think'"


def _condition(variable: str) -> Callable[[Text, Specimen], Proposals]:
    """An `if` that asks for more than `variable`, or for its contrary, asks for it alone."""

    def propose(text: Text, specimen: Specimen) -> Proposals:
        asked = rf"(\{{%[-+]?\s*(?:el)?if)\s(?=[^%]*\b{variable}\b)[^%]*?(\s*[-+]?%\}})"
        return [[e] for e in text.replace(asked, rf"\1 {variable}\2")]

    return propose


def _doubled(text: Text, specimen: Specimen) -> Proposals:
    """A tag that stands twice in a row in one string stands once."""
    return [text.replace(r"((?:\\n)?</?[\w|]+>(?:\\n)?)\1+", r"\1", strings=True)]


def _known_to_mlx_lm(text: Text, specimen: Specimen) -> Proposals:
    """mlx_lm looks for these words anywhere in a template, so a comment is enough."""
    return [[Edit(0, 0, "{# mlx_lm takes its reader of JSON calls by the words tool_call.name #}\n")]]


def _nothing_decided(text: Text, specimen: Specimen) -> Proposals:
    """No words of a text are looked for, or taken out of it.

    But tags of thinking: a client whose server does not part it from the answer gives both back in one text.
    """
    asked = r"(?<=if )\s*['\"](?![<\[][^'\"]*(?i:think))[^'\"]*['\"]\s+in\s+[\w.\[\]'\"]+(?=\s*[-+]?%\})"
    yield text.replace(r"\s+and\s+not\s*\((?:[^()]|\([^()]*\))*(?:starts|ends)with(?:[^()]|\([^()]*\))*\)", "")
    yield text.replace(asked, "false", strings=True)
    yield text.replace(r"\.replace\([^()]*\)|\s*\|\s*replace\([^()]*\)", "")


def _lists_unchanged(text: Text, specimen: Specimen) -> Proposals:
    """A list that grows or shrinks becomes another one: the sandbox that templates run in lets them change none.

    One that grows inside a loop has to stand in a namespace, or it is forgotten at the end of the loop.
    """
    opened, closed = r"(\{%[-+]?)\s*set\s+", r"\s*([-+]?%\})"
    edits, plain = [], set()
    for word, behind in (("append", r"\(([^%]*)\)"), ("pop", r"\((0|-1|)\)")):
        for found in text.find(rf"{opened}(\w+)\s*=\s*({_NAME})\.{word}{behind}{closed}"):
            start, taken, xs, inside, end = (text.template[slice(*found.span(i))] for i in range(1, 6))
            held = xs if "." in xs else f"{xs}.list"
            plain |= {xs} - {held}
            item, rest = (f"{held}[0]", f"{held}[1:]") if inside == "0" else (f"{held}[-1]", f"{held}[:-1]")
            grown = f"{start} set {held} = {held} + [{inside}] {end}"
            taking = f"{start} set {taken} = {item} %}}{{%- set {held} = {rest} {end}"
            edits.append(Edit(*found.span(), grown if word == "append" else taking))
    for xs in plain:
        edits += text.replace(rf"(?<=set )({xs}\s*=\s*)(\[[^%]*\])(?=\s*[-+]?%\}})", r"\1namespace(list=\2)")
        edits += text.replace(rf"(?<![\w.])(?<!set ){xs}\b(?!\.(?:append|pop)\b|\s*=[^=])", f"{xs}.list")
    return [edits]


def _held_once(text: Text, specimen: Specimen) -> Proposals:
    """A variable that holds what a message says is written as it is."""
    held = "|".join(re.escape(name) for name in holding_content(text))
    return [text.replace(rf"(?<![\w.])((?:{held})){_AS_JSON}", r"\1")] if held else []


WORDS = (
    Rewrite("lists are replaced, not changed", ("render-error",), _lists_unchanged, everywhere=True),
    Rewrite("contents are put in order before all else", ("content-parts", "render-error"), put_contents_in_order),
    Rewrite(
        "a missing content is written as nothing",
        ("content-null", "render-error", "tool-calls-dropped"),
        _swap((CONTENT + _READ, r"(\1 or '')")),
    ),
    Rewrite(
        "what may be missing is written as nothing",
        ("render-error", "tools-ignored", "ids-lost", "content-null"),
        _swap(
            (rf"(?<![\w.])({_NAME}\.description)\b(?!\s+(?:is|or)\b)", r"(\1 or '')"),
            (r"\bin\s+tools\s*(?=[-+]?%\})", "in (tools or []) "),
            (r"\b(in\s+)([A-Za-z_]\w*\.tool_calls)\s*(?=[-+]?%\})", r"\1(\2 or []) "),
            (rf"(?<![\w.(])({_NAME}\.(?:name|tool_call_id|id))\b(?=\s*[-+]?\}}\}}|\s*[~+])", r"(\1 or '')"),
        ),
        apart=True,
    ),
    Rewrite(
        "JSON keeps its letters as they are",
        ("unicode-escaped", "double-wrapped"),
        _swap(
            (r"\bensure_ascii\s*=\s*[Tt]rue\b", "ensure_ascii=false"),
            (r"\s*\|\s*(?:e|escape|forceescape|urlencode|xmlattr)\b(?!\()", ""),
            (r"\s*\|\s*replace\([^()]*\)", ""),
        ),
        apart=True,
    ),
    Rewrite(
        "arguments that are JSON already are not encoded again",
        ("arguments-form", "double-wrapped", "value-types", "render-error"),
        _swap((rf"{_ARGUMENTS}({_AS_JSON})", r"(\1 if \1 is string else \1\2)")),
        everywhere=True,
    ),
    Rewrite(
        "arguments that are no text are written as JSON",
        ("arguments-form", "value-types", "render-error"),
        _swap((rf"{_ARGUMENTS}{_CLOSED}(?!{_AS_JSON})", r"(\1 if \1 is string else \1 | tojson)"), written=True),
        everywhere=True,
    ),
    Rewrite(
        "arguments of a call that is written as one object are not encoded again",
        ("arguments-form", "double-wrapped"),
        _function_as_json,
        everywhere=True,
    ),
    Rewrite(
        "a value that is no text is written as JSON",
        ("value-types", "arguments-form", "double-wrapped"),
        _values_of_arguments,
    ),
    Rewrite(
        "no value is encoded twice",
        ("double-wrapped", "unicode-escaped", "arguments-form"),
        _swap((rf"({_AS_JSON}){_AS_JSON}", r"\1"), (rf"{CONTENT}{_AS_JSON}", r"\1")),
        apart=True,
    ),
    Rewrite("no result is encoded", ("double-wrapped", "unicode-escaped"), _held_once),
    Rewrite("a tag that stands twice stands once", ("double-wrapped",), _doubled, apart=True),
    Rewrite(
        "all items are written, not the first ones",
        ("several-calls", "tool-calls-dropped", "tools-ignored", "ids-lost"),
        _swap(
            (r"(\b(?:tool_calls|tools)(?:\s+or\s+\[\]\))?)\[-?\d*:-?\d*\]", r"\1"),
            (r"\[\s*([\w.]+\.tool_calls)\[-?\d\]\s*\]", r"\1"),
            (r"(\b(?:tool_calls|tools))\s*\|\s*(?:first|last)\b", r"\1"),
            (r"\{%[-+]?\s*break\s*[-+]?%\}", ""),
        ),
        apart=True,
    ),
    Rewrite(
        "text keeps the white space around it",
        ("trimmed", "not-prefix-preserving"),
        _swap((r"\s*\|\s*trim\b(?:\([^()]*\))?", ""), (r"\.(?:l|r)?strip\([^()]*\)", "")),
        apart=True,
    ),
    Rewrite("the schema is written whole", ("schema-lost", "tools-ignored", "render-error"), _whole_tool),
    Rewrite(
        "all of the parameters' schema is written",
        ("schema-lost",),
        _swap((r"(\.parameters|\['parameters'\])(?:\.properties|\['properties'\])(\s*\|\s*tojson)", r"\1\2")),
    ),
    Rewrite("tools are written wherever there are some", ("tools-ignored",), _condition("tools")),
    Rewrite("the sentence that orders a call is gone", ("tool-choice",), _order_removed, plain=False),
    Rewrite(
        "nothing is raised where a message can be written",
        ("render-error", "system-messages", "several-calls", "content-null", "ids-lost", "developer-role"),
        _silenced,
        apart=True,
    ),
    Rewrite(
        "an item of an array is looked up, not listed",
        ("render-error", "schema-lost"),
        _swap((r"\b(\w*spec\w*)\s*\|\s*items\b", r"\1['items']")),
    ),
)

TURNS = (
    Rewrite(
        "a developer's message is one of the system",
        ("developer-role", "render-error"),
        _swap((r"(\.role|\['role'\]|\[\"role\"\])\s*==\s*(['\"]system['\"])", r"\1 in ('system', 'developer')")),
    ),
    Rewrite(
        "messages to the system are written where they stand",
        ("system-messages", "developer-role"),
        _swap(
            (r"(\b\w+(?:\.role|\['role'\]))\s*==\s*'user'", r"\1 in ('user', 'system', 'developer')"),
            (r"(\b\w+(?:\.role|\[\"role\"\]))\s*==\s*\"user\"", r"\1 in ('user', 'system', 'developer')"),
        ),
        apart=True,
    ),
    Rewrite(
        "what is said to the system is gathered in the first message",
        ("system-messages", "developer-role", "render-error"),
        gather_system,
    ),
    Rewrite("a developer's message is given to the system", ("developer-role", "render-error"), rename_developers),
    Rewrite("the calls of history are written", ("tool-calls-dropped",), add_call_loop),
    Rewrite("the text beside a call is written", ("call-text-dropped", "tool-calls-dropped"), add_call_text),
    Rewrite("a result has a frame of its own", ("tool-result-as-user", "double-wrapped"), frame_results),
    Rewrite(
        "the assistant's turn is opened where that is asked for",
        ("generation-prompt", "not-prefix-preserving"),
        lambda text, specimen: [
            *_condition("add_generation_prompt")(text, specimen),
            *add_generation_prompt(text, specimen),
        ],
        plain=False,
    ),
    Rewrite("the switch of thinking does what it says", ("thinking-reversed",), _thinking_turned, plain=False),
    Rewrite(
        "a turn reads the same whether it is the last or not",
        ("not-prefix-preserving",),
        _swap(
            (r"\bloop\.last\s+or\s+\(\s*not\s+loop\.last\s+and\s+([\w.]+)\s*\)", r"\1"),
            (r"\bnot\s+loop\.last\s+and\s+", ""),
            (r"\bloop\.last\s+(?:and|or)\s+", ""),
            (r"\s+(?:and|or)\s+(?:not\s+)?loop\.last\b", ""),
        ),
        apart=True,
        plain=False,
    ),
    Rewrite(
        "a text decides nothing outside of itself",
        ("injection",),
        _nothing_decided,
        apart=True,
        late=True,
    ),
)

SERVERS = (Rewrite("mlx_lm finds the words by which it knows the format", ("mlx-parser",), _known_to_mlx_lm),)

REWRITES = (*WORDS, *TURNS, *SERVERS)
