"""Rewrites that put something in: a loop over calls, a frame around results, a generation prompt, messages in order.

What is put in is spelled as the model's wire format spells it, and stands where the template's own rendering shows
that it belongs. It keeps to what the Jinja of llama.cpp can read, too: no `dict()`, no `{%+`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from punie_mlx.chat.templates import literal
from punie_mlx.doctor.jinja_text import Edit, Tag, Text, strings_of, value
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.toolcalls.wire import Format

Proposals = Iterable[Sequence[Edit]]

_SAID = "Quorvex-18"  # a word that no template holds
_ASKED = {"role": "user", "content": "Zorblatt?"}
_CONTENT = r"(?<![\w.])\w+(?:\.content\b|\[['\"]content['\"]\])"
_TOOL = r"['\"]tool['\"]"
_OTHERS = r"['\"](?:user|assistant|system)['\"]|!="

# Around the result of a tool, by wire format; formats that are not here have no frame that could be put in by itself.
FRAMES = dict.fromkeys(("hermes", "qwen3_coder", "smollm3", "mimo"), ("<tool_response>\n", "\n</tool_response>"))

# Who says a result, in formats that tell it by the role alone.
ROLES = {"llama3_json": "ipython"}

_GAP = "{{{{- '\\n' if {message}.content or not loop.first else '' }}}}"
# The call's variable has the name by which mlx_lm knows a template with JSON calls.
_JSON_CALL = (
    _GAP + "{{{{- {open} ~ '\\n{{\"name\": ' ~ (tool_call.name | tojson) ~ ', \"arguments\": ' ~ "
    "(tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson) ~ '}}\\n' ~ {close} }}}}"
)
_XML_CALL = (
    "{{{{- '\\n' if not loop.first else '\\n\\n' if {message}.content else '' }}}}"
    "{{{{- '<tool_call>\\n<function=' ~ tool_call.name ~ '>' }}}}"
    "{{%- for name, value in (tool_call.arguments or {{}}).items() %}}"
    "{{{{- '\\n<parameter=' ~ name ~ '>\\n' ~ (value if value is string else value | tojson) ~ '\\n</parameter>' }}}}"
    "{{%- endfor %}}{{{{- '\\n</function>\\n</tool_call>' }}}}"
)
# How a call is written, by wire format.
CALLS = {"hermes": _JSON_CALL, "smollm3": _JSON_CALL, "qwen3_coder": _XML_CALL}

_GATHER_SYSTEM = """\
{%- set gathered = namespace(system=[], others=[]) %}
{%- for message in messages %}
    {%- if message.role in ('system', 'developer') %}
        {%- set said = message.content if message.content is string else \
(message.content or []) | map(attribute='text') | join %}
        {%- set gathered.system = gathered.system + [said] %}
    {%- else %}
        {%- set gathered.others = gathered.others + [message] %}
    {%- endif %}
{%- endfor %}
{%- if gathered.system | length > 1 or (gathered.system and messages[0].role != 'system') %}
    {%- set messages = [{'role': 'system', 'content': gathered.system | join('\\n\\n')}] + gathered.others %}
{%- endif %}
"""
_DEVELOPERS = """\
{%- set renamed = namespace(messages=[]) %}
{%- for message in messages %}
    {%- set said = {'role': 'system', 'content': message.content} if message.role == 'developer' else message %}
    {%- set renamed.messages = renamed.messages + [said] %}
{%- endfor %}
{%- set messages = renamed.messages %}
"""
# A message whose content is text stays the very one that was given, and so does one with pictures or a list of its own.
_PUT_IN_ORDER = """\
{%- set ordered = namespace(messages=[]) %}
{%- for message in messages %}
    {%- set parts = [] if message.content is string or message.content is mapping else message.content or [] %}
    {%- if message.content is string or message.content is mapping or \
parts | selectattr('type', 'equalto', 'text') | list | length != parts | length %}
        {%- set ordered.messages = ordered.messages + [message] %}
    {%- else %}
        {%- set ordered.messages = ordered.messages + [{'role': message.role, \
'content': parts | map(attribute='text') | join, 'reasoning_content': message.reasoning_content, \
'tool_calls': message.tool_calls, 'tool_call_id': message.tool_call_id, 'name': message.name}] %}
    {%- endif %}
{%- endfor %}
{%- set messages = ordered.messages %}
"""


def gather_system(text: Text, specimen: Specimen) -> Proposals:
    """Several messages to the system, or one that does not come first, become the first before the template looks."""
    return [[Edit(0, 0, _GATHER_SYSTEM)]]


def rename_developers(text: Text, specimen: Specimen) -> Proposals:
    """A developer's message becomes one to the system, where it stands."""
    return [[Edit(0, 0, _DEVELOPERS)]]


def put_contents_in_order(text: Text, specimen: Specimen) -> Proposals:
    """A missing content becomes an empty text, and one in parts the text of all of them."""
    return [[Edit(0, 0, _PUT_IN_ORDER)]]


# ---- calls in history ----


def add_call_loop(text: Text, specimen: Specimen) -> Proposals:
    """A loop over the calls of a message, before its turn is ended: at each end of a turn that there is."""
    wire = specimen.wire
    ends = list(_turn_ends(text, specimen))
    if wire is None or wire.name not in CALLS or not ends:
        return []
    return [*([_ended_by_calls(text, e, wire)] for e in ends), [_ended_by_calls(text, e, wire) for e in ends]]


def _turn_ends(text: Text, specimen: Specimen) -> Iterator[tuple[Tag, int]]:
    """Outputs in the loop over messages that write the end of a turn, and where in them its string begins."""
    rendered = specimen.render([_ASKED, {"role": "assistant", "content": _SAID}], add_generation_prompt=False).text
    mark = re.match(r"\s*(\S+)", rendered.partition(_SAID)[2])
    if mark is None:
        return
    for tag in text.outputs:
        if tag.loops and (start := _writes(text, tag, mark[1])) is not None:
            yield tag, start


def _writes(text: Text, tag: Tag, mark: str) -> int | None:
    """Where in `tag` the last string begins that writes `mark`, or the variable of the end token."""
    inside = text.inside(tag)
    found = [s for s in strings_of(inside) if value(s[0]).lstrip().startswith(mark)]
    found = found or list(re.finditer(r"\beos_token\b", inside))
    return tag.inner[0] + found[-1].start() if found else None


def _ended_by_calls(text: Text, end: tuple[Tag, int], wire: Format) -> Edit:
    tag, at = end
    message = tag.loops[-1]
    call = CALLS[wire.name].format(
        message=message, open=literal(wire.open or "<tool_call>"), close=literal(wire.close or "</tool_call>")
    )
    loop = (
        f"{{%- for call in {message}.tool_calls or [] %}}"
        "{%- set tool_call = call.function if call.function is defined else call %}"
        f"{call}{{%- endfor %}}"
    )
    before = text.template[tag.inner[0] : at]
    if not before.strip():
        return Edit(tag.start, tag.start, loop)
    opened = before.rstrip().rstrip("+~").rstrip()
    return Edit(tag.inner[0] + len(opened), at, f" }}}}{loop}{{{{- ")


def add_call_text(text: Text, specimen: Specimen) -> Proposals:
    """What a message says beside its calls, before the first of them: with the white space of a turn without calls."""
    loops = [t for t in text.statements if t.word == "for" and re.search(r"\btool_calls\b", text.inside(t))]
    opened = _opening(specimen, {})
    for loop in loops:
        message = loop.loops[-1] if loop.loops else "message"
        for written in ("{m}.content", "'\\n' ~ {m}.content", "{m}.content ~ '\\n'", "'\\n' ~ {m}.content ~ '\\n'"):
            asked = f"{message}.tool_calls and {message}.content"
            put_in = f"{{%- if {asked} %}}{{{{- {written.format(m=message)} }}}}{{%- endif %}}"
            edit = Edit(loop.start, loop.start, put_in)
            mended = specimen.of_text(text.template[: edit.start] + edit.new + text.template[edit.start :])
            if _opening(mended, {"tool_calls": [_CALL]}) == opened:
                yield [edit]
    weaker = r"\s+and\s+(?:not\s+\w+\.tool_calls|\w+\.tool_calls\s+is\s+(?:not\s+defined|undefined|none))\b"
    yield text.replace(weaker, "")


_CALL = {"type": "function", "id": "abcdefgh1", "function": {"name": "look_up_orbit", "arguments": {"of": "Ceres"}}}


def _opening(specimen: Specimen, more: dict[str, object]) -> str:
    """What stands between a user's message and the text of the answer."""
    said = {"role": "assistant", "content": _SAID, **more}
    before, found, _ = specimen.render([_ASKED, said], add_generation_prompt=False).text.partition(_SAID)
    return before.rpartition("Zorblatt?")[2] if found else ""


# ---- results ----


def frame_results(text: Text, specimen: Specimen) -> Proposals:
    """Words around a result: in the branch of tools, or where tools and users share one; or a role of its own."""
    branches = list(text.branches(_TOOL))
    frame = FRAMES.get(specimen.wire.name) if specimen.wire else None
    if frame:
        for tag, end in branches:
            alone = not re.search(_OTHERS, text.inside(tag))
            yield [*_framed(text, tag.end, end, frame, tag, alone=alone)]
        loops = [t for t in text.statements if t.word == "for" and re.search(r"messages\b", text.inside(t))]
        for tag in loops:
            yield [*_framed(text, tag.end, len(text.template), frame, tag, alone=False)]
    role = ROLES.get(specimen.wire.name) if specimen.wire else None
    if role is None:
        return
    for tag, end in branches:
        yield [
            Edit(m.start(1), m.end(1), role)
            for m in text.find(r"['\"][^'\"]*\b(user)(?=\\n|['\"<])", strings=True)
            if tag.end <= m.start() < end
        ]


def _framed(text: Text, start: int, end: int, frame: tuple[str, str], tag: Tag, *, alone: bool) -> Iterator[Edit]:
    """What outputs between `start` and `end` write of a message, framed; where not `alone`, only if a tool says it."""
    held = "|".join(re.escape(n) for n in holding_content(text))
    pattern = rf"{_CONTENT}|(?<![\w.])(?:{held})(?![\w.(\[])(?:\.val\b)?" if held else _CONTENT
    message = next((t.loops[-1] for t in text.tags if t.start >= start and t.loops), "message")
    for found in text.find(pattern):
        inside = any(t.start < found.start() < t.end for t in text.outputs)
        if inside and start <= found.start() < end:
            opening, closing = map(literal, frame)
            said = text.template[slice(*found.span())]
            framed = f"{opening} ~ ({said} or '') ~ {closing}"
            yield Edit(*found.span(), f"({framed})" if alone else f"({framed} if {message}.role == 'tool' else {said})")


def holding_content(text: Text) -> list[str]:
    """Variables that are set to what a message says."""
    return sorted({text.template[slice(*m.span(1))] for m in text.find(rf"\bset\s+(\w+)\s*=[^%]*?{_CONTENT}")})


# ---- the generation prompt ----


def add_generation_prompt(text: Text, specimen: Specimen) -> Proposals:
    """The assistant's opener as history writes it, at the end; or a condition around what always opens its turn."""
    outside = [t for t in text.outputs if t.depth == 0]
    if outside:
        last = outside[-1]
        yield [Edit(last.start, last.start, "{%- if add_generation_prompt %}"), Edit(last.end, last.end, "{% endif %}")]
    opener = _opener(specimen)
    for written in dict.fromkeys((opener, opener.partition("<think>")[0])):
        if written:
            end = len(text.template)
            asked = f"{{%- if add_generation_prompt %}}{{{{- {literal(written)} }}}}{{%- endif %}}"
            yield [Edit(end, end, asked)]
            yield [Edit(t.start, t.start, asked) for t in _last_conditions(text)]


def _last_conditions(text: Text) -> list[Tag]:
    """An `if` about the generation prompt that stands already, before which a better one would come."""
    return [t for t in text.statements if t.word == "if" and "add_generation_prompt" in text.inside(t)][-1:]


def _opener(specimen: Specimen) -> str:
    """What stands between the end of a user's turn and an answer in history."""
    asked = specimen.render([_ASKED], add_generation_prompt=False).text
    answered = specimen.render([_ASKED, {"role": "assistant", "content": _SAID}], add_generation_prompt=False).text
    before, found, _ = answered.partition(_SAID)
    return before[len(asked) :] if found and before.startswith(asked) else ""
