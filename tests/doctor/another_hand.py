"""A template of another hand with faults to plant in it, and a conversation of a call and its result."""

from __future__ import annotations

from punie_mlx.doctor.specimen import Specimen

CALL = {"id": "aB3dE6gH9", "type": "function", "function": {"name": "weigh", "arguments": {"what": "Morwenna-3"}}}
LOOP = [
    {"role": "user", "content": "How heavy?"},
    {"role": "assistant", "content": "", "reasoning_content": "A scale is there.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "aB3dE6gH9", "content": "12 stone"},
]
TOOLS = [{"type": "function", "function": {"name": "weigh", "description": "Weighs.", "parameters": {}}}]

# A template of nobody, in the manner of many: what it does well is what the planted faults take away.
GOOD = r"""{%- macro words(parts) %}
    {%- for part in parts or [] %}
        {{- part.text }}
    {%- endfor %}
{%- endmacro %}
{%- if messages[0].role in ['system', 'developer'] %}
    {%- set told = messages[0].content or '' %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set told = '' %}
    {%- set rest = messages %}
{%- endif %}
{%- if told or tools %}
    {{- '<|im_start|>system\n' + told }}
    {%- if tools %}
        {{- '\n\nThese can be called:\n<tools>' }}
        {%- for tool in tools %}
            {{- '\n' + (tool | tojson) }}
        {%- endfor %}
        {{- '\n</tools>\nWrite a call so:\n<tool_call>\n{"name": NAME, "arguments": ARGUMENTS}\n</tool_call>' }}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in rest %}
    {%- set content = message.content if message.content is string else words(message.content) %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' + content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if not loop.first or content %}
                {{- '\n' }}
            {%- endif %}
            {%- set tool_call = tool_call.function %}
            {{- '<tool_call>\n{"name": ' + (tool_call.name | tojson) + ', "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + ('system' if message.role == 'developer' else message.role) + '\n' }}
        {{- content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
CALLS = GOOD[GOOD.index("        {%- for tool_call in") : GOOD.index("        {{- '<|im_end|>\\n' }}\n    {%- elif")]
# What is taken away, what comes in its place, and the check that must name it.
PLANTED = (
    (" if message.content is string else words(message.content)", "", "content-null"),
    ("words(message.content)", "message.content", "content-parts"),
    ("tool | tojson", "tool | tojson(ensure_ascii=true)", "unicode-escaped"),
    ("+ content + '\\n</tool", "+ (content | e) + '\\n</tool", "unicode-escaped"),
    (CALLS, "", "tool-calls-dropped"),
    ("'<|im_start|>assistant\\n' + content", "'<|im_start|>assistant\\n' + ('' if message.tool_calls else content)",
     "call-text-dropped"),
    ("in message.tool_calls or []", "in (message.tool_calls or [])[:1]", "several-calls"),
    ("<tool_response>\\n' + content + '\\n</tool_response>", "' + content + '", "tool-result-as-user"),
    ("tool_call.arguments if tool_call.arguments is string else ", "", "arguments-form"),
    ("tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson", "tool_call.arguments",
     "arguments-form"),
    ("<tool_response>\\n'", "<tool_response>\\n<tool_response>\\n'", "double-wrapped"),
    ("+ content + '\\n</tool_response>'", "+ (content | tojson) + '\\n</tool_response>'", "double-wrapped"),
    ("+ content + '\\n</tool_response>'", "+ (content | trim) + '\\n</tool_response>'", "trimmed"),
    ("{%- if add_generation_prompt %}", "{%- if add_generation_prompt and rest[-1].role == 'user' %}",
     "generation-prompt"),
    ("{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n", "", "generation-prompt"),
    ("{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
     "{{- '<|im_start|>assistant\\n' }}\n", "generation-prompt"),
    ("    {%- else %}\n        {{-", "    {%- elif message.role == 'user' %}\n        {{-", "system-messages"),
    ("{%- if tools %}", "{%- if tools and told %}", "tools-ignored"),
    ("{{- '\\n' + (tool | tojson) }}", "{{- '\\n' + tool.function.name + ': ' + tool.function.description }}",
     "tools-ignored"),
    ("(tool | tojson)", "tool.function.name + (tool.function.parameters.properties | tojson)", "tools-ignored"),
    ("set tool_call = tool_call.function %}\n            {{- '<tool_call>\\n{\"name\": ' + (tool_call.name",
     "set f = tool_call.function %}\n            {%- set tool_call = f %}\n"
     "            {{- '<tool_call>\\n{\"name\": ' + (f.name", "mlx-parser"),
    ("Write a call so:", "You must always call a tool. Write a call so:", "tool-choice"),
    ("{%- for tool_call in", "{{- raise_exception('one call at most') if message.tool_calls | length > 1 }}\n"
     "        {%- for tool_call in", "several-calls"),
    ("{%- set tool_call = tool_call.function %}",
     "{%- set tool_call = tool_call.function %}\n            {%- if not tool_call.arguments %}\n"
     "                {{- raise_exception('no arguments') }}\n            {%- endif %}", "render-error"),
)  # fmt: skip


def planted(old: str, new: str) -> Specimen:
    assert old in GOOD
    return Specimen.of_text(GOOD.replace(old, new, 1))
