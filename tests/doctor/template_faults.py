# ruff: noqa: E501  (one fault a line)
"""A small good template of the tests, faults in each of their forms, and what looks like one and is none."""

from __future__ import annotations

GOOD = """\
{%- macro text(content) -%}
{%- if content is string -%}{{- content -}}
{%- else -%}{%- for part in content or [] -%}{{- part.text -}}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- if tools -%}
{{- '<|im_start|>system\\n# Tools\\n' -}}
{%- for tool in tools -%}{{- (tool | tojson) ~ '\\n' -}}{%- endfor -%}
{{- 'Write a call as <tool_call>{"name": …, "arguments": …}</tool_call>.<|im_end|>\\n' -}}
{%- endif -%}
{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}{%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- set content = text(message.content) -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' ~ content ~ '\\n</tool_response><|im_end|>\\n' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if loop.index0 > last.user and message.reasoning_content -%}
{{- '<think>\\n' ~ message.reasoning_content ~ '\\n</think>\\n\\n' -}}
{%- elif enable_thinking is defined and not enable_thinking -%}
{{- '<think>\\n\\n</think>\\n\\n' -}}
{%- endif -%}
{{- content -}}
{%- for call in message.tool_calls or [] -%}
{%- set arguments = call.function.arguments -%}
{{- '\\n<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' -}}
{{- (arguments if arguments is string else arguments | tojson) ~ '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>' ~ ('system' if message.role == 'developer' else message.role) ~ '\\n' ~ content ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""
CALLS = "for call in message.tool_calls or []"
RESULT = "'<|im_start|>user\\n<tool_response>\\n' ~ content ~ '\\n</tool_response><|im_end|>\\n'"
TEXT = "{%- set content = text(message.content) -%}"
OPENER = "{%- if add_generation_prompt -%}"
ARGUMENTS = "(arguments if arguments is string else arguments | tojson)"
THOUGHT = "loop.index0 > last.user and message.reasoning_content"
OTHERS = "('system' if message.role == 'developer' else message.role)"
IN_CALL = "{{- " + ARGUMENTS + " ~ '}\\n</tool_call>' -}}"
TAGS = (
    "{%- if arguments is string -%}{{- arguments -}}{%- else -%}{%- for k, v in arguments.items() -%}"
    "{{- '<p=' ~ k ~ '>' ~ (v if v is string else v | tojson) ~ '</p>' -}}{%- endfor -%}{%- endif -%}"
    "{{- '</tool_call>' -}}"
)
ASKS = "{{- 'Write a call as"

FAULTS = [
    # check, severity, words of the summary, words of the evidence, old, new
    ("tools-ignored", "high", "after a system message", "chart_reef", "{%- if tools -%}", "{%- if tools and messages[0].role != 'system' -%}"),
    ("tools-ignored", "high", "after the result of a call", "berthage", "{%- if tools -%}", "{%- if tools and messages[-1].role != 'tool' -%}"),
    ("tools-ignored", "medium", "what the tool is for", "the reef Lindqvist", "(tool | tojson)", "{'name': tool.function.name, 'parameters': tool.function.parameters or {}} | tojson"),
    ("schema-lost", "medium", "which parameters are required", "plot_course", "(tool | tojson)", "{'n': tool.function.name, 'd': tool.function.description or '', 'p': (tool.function.parameters or {}).properties or {}} | tojson"),
    ("schema-lost", "medium", "integer and number look the same", "swell", "(tool | tojson)", "(tool | tojson | replace('\"integer\"', '\"number\"'))"),
    ("schema-lost", "medium", "that may be null", "swell", "(tool | tojson)", "(tool | tojson | replace('\"anyOf\"', '\"x\"')) if '\"anyOf\"' not in tool | tojson else (tool.function.name ~ tool.function.description ~ tool.function.parameters.properties.keys() | list)"),
    ("tool-choice", "medium", "orders a call", "You must always use one of these tools.", ASKS, "{{- 'You must always use one of these tools.\\n' -}}" + ASKS),
    ("tool-choice", "low", "no value of it changes", "tool_choice", OPENER, "{%- if tool_choice == 'none' -%}{%- set quiet = true -%}{%- endif -%}" + OPENER),
    ("tool-calls-dropped", "high", "a call beside text", "Zeeland-71", CALLS, "for call in ([] if content else message.tool_calls or [])"),
    ("tool-calls-dropped", "high", "a call of an earlier question", "look_up_orbit", CALLS, "for call in ([] if loop.index0 < last.user else message.tool_calls or [])"),
    ("tool-calls-dropped", "high", "the arguments of a call", "Zeeland-71", ARGUMENTS, "'{}'"),
    ("call-text-dropped", "medium", "beside a call", "Looking that up", "{{- content -}}\n{%- for", "{{- content if not message.tool_calls -}}\n{%- for"),
    ("call-text-dropped", "medium", "where it has thought before", "Brisco", "{{- content -}}\n{%- for", "{{- content if not (message.tool_calls and message.reasoning_content) -}}\n{%- for"),
    ("call-text-dropped", "medium", "once it has answered", "Brisco", "{{- content -}}\n{%- for", "{{- content if not message.tool_calls or messages[-1].role != 'assistant' -}}\n{%- for"),
    ("call-text-dropped", "medium", "beside an empty list of calls", "Brisco", "{{- content -}}\n{%- for", "{{- content if message.tool_calls is undefined or message.tool_calls or message.tool_calls is none -}}\n{%- for"),
    ("content-null", "high", "null cannot be rendered", "NoneType", TEXT, TEXT + "{%- if '§' in message.content -%}{%- endif -%}"),
    ("content-null", "medium", "null shows the word None", "assistant\nNone\n<tool_call>", "{{- content -}}\n{%- for", "{{- 'None' if message.content is none else content -}}\n{%- for"),
    ("content-null", "medium", "no content cannot be rendered", "UndefinedError", TEXT, TEXT + "{{- message['content'].x.y if message['content'] is undefined -}}"),
    ("arguments-form", "low", "encoded a second time", '{\\"body\\"', ARGUMENTS, "(arguments | tojson)"),
    ("arguments-form", "low", "text cannot be rendered", "Error", ARGUMENTS, "(arguments.keys() and arguments | tojson)"),
    ("arguments-form", "high", "Arguments as an object come out wrong", "'body'", ARGUMENTS, "arguments"),
    ("arguments-form", "high", "Arguments as an object cannot be rendered", "TypeError", ARGUMENTS, "('' + arguments)"),
    ("several-calls", "high", "reserve_berth", "Marmot-26", CALLS, "for call in (message.tool_calls or [])[:1]"),
    ("several-calls", "high", "change their order", "reserve_berth", CALLS, "for call in (message.tool_calls or []) | reverse"),
    ("several-calls", "high", "nothing between them", "Kestrel-19\n", RESULT, "('' if loop.previtem.role == 'tool' else '<|im_start|>user\\n<tool_response>') ~ '\\n' ~ content ~ '\\n' ~ ('' if not loop.last and loop.nextitem.role == 'tool' else '</tool_response><|im_end|>\\n')"),
    ("ids-lost", "medium", "stands with the result and not with the call", "kQ7zX2Lm9", "<tool_response>\\n' ~ content", "<tool_response id=' ~ message.tool_call_id ~ '>\\n' ~ content"),
    ("ids-lost", "medium", "stands with the call and not with the result", "kQ7zX2Lm9", "call.function.name ~ '\", ", "call.function.name ~ '\", \"id\": \"' ~ call.id ~ '\", "),
    ("ids-lost", "high", "without a `name`", "look_up_orbit", "<tool_response>\\n' ~ content", "<tool_response name=' ~ message.name ~ '>\\n' ~ content"),
    ("ids-lost", "medium", "each other's name", "Marmot-26", "<tool_response>\\n' ~ content", "<tool_response>\\n' ~ (loop.previtem.tool_calls[0] if loop.previtem.tool_calls else messages[loop.index0 - 2].tool_calls[1]).function.name ~ ': ' ~ content"),
    ("value-types", "medium", "True, False, None", "<p=lit>True</p>", IN_CALL, TAGS.replace("(v if v is string else v | tojson)", "v")),
    ("value-types", "low", "A default", "True", "(tool | tojson)", "(tool | tojson) ~ ((tool.function.parameters or {}).properties or {}).lit"),
    ("value-types", "medium", "Tools stand", "'set_lamp'", "(tool | tojson)", "tool"),
    ("tool-result-lost", "high", "left out of the prompt.", "perigee Kestrel-19", "{%- if message.role == 'tool' -%}\n{{- " + RESULT + " -}}", "{%- if message.role == 'tool' -%}"),
    ("tool-result-lost", "high", "once another question follows", "perigee Kestrel-19", "{%- if message.role == 'tool' -%}\n", "{%- if message.role == 'tool' and loop.index0 < last.user -%}\n{%- elif message.role == 'tool' -%}\n"),
    ("tool-result-lost", "high", "left out of the prompt.", "Kestrel-19", "<tool_response>\\n' ~ content", "<tool_response>\\n' ~ content[:10]"),
    ("tool-result-as-user", "high", "a message of the user", "<|im_start|>user\nperigee Kestrel-19<|im_end|>", RESULT, "'<|im_start|>user\\n' ~ content ~ '<|im_end|>\\n'"),
    ("double-wrapped", "medium", "frame of a result is written twice: <tool_response>", "perigee Kestrel-19", "<tool_response>\\n' ~ content", "<tool_response>\\n<tool_response>\\n' ~ content"),
    ("double-wrapped", "medium", "stands in the prompt twice", "perigee Kestrel-19", "<tool_response>\\n' ~ content", "<tool_response>\\n' ~ content ~ '/' ~ content"),
    ("double-wrapped", "medium", "encoded a second time", '{\\"planet\\"', "<tool_response>\\n' ~ content", "<tool_response>\\n' ~ content | tojson"),
    ("content-parts", "low", "not read as its text", "'type'", "{%- else -%}{%- for part in content or [] -%}{{- part.text -}}{%- endfor -%}{%- endif -%}", "{%- elif content -%}{{- content -}}{%- endif -%}"),
    ("content-parts", "low", "cannot be rendered", "TypeError", "{%- else -%}{%- for part in content or [] -%}{{- part.text -}}{%- endfor -%}{%- endif -%}", "{%- elif content -%}{{- '' + content -}}{%- endif -%}"),
    ("text-lost", "high", "user or assistant", "Off the mole Haldric.", "{{- content -}}\n{%- for", "{{- content if message.tool_calls or loop.last -}}\n{%- for"),
    ("system-messages", "high", "once a tool has answered, is left out", "Fennrick", TEXT, TEXT + "{%- if message.role in ('system', 'developer') and messages[-1].role == 'tool' -%}{%- continue -%}{%- endif -%}"),
    ("system-messages", "medium", "A second system message is left out", "Fennrick", TEXT, TEXT + "{%- if message.role == 'system' and not loop.first -%}{%- continue -%}{%- endif -%}"),
    ("system-messages", "medium", "is shown as the user's", "<|im_start|>user\nKeep to", OTHERS, "('user' if message.role == 'system' and not loop.first else 'system' if message.role == 'developer' else message.role)"),
    ("system-messages", "medium", "cannot be rendered", "only one", TEXT, TEXT + "{%- if message.role == 'system' and not loop.first -%}{{- raise_exception('only one') -}}{%- endif -%}"),
    ("developer-role", "medium", "is shown as the user's", "<|im_start|>user\nAnswer as", OTHERS, "('user' if message.role == 'developer' else message.role)"),
    ("developer-role", "medium", "is left out", "Fennrick", TEXT, TEXT + "{%- if message.role == 'developer' -%}{%- continue -%}{%- endif -%}"),
    ("generation-prompt", "high", "after a question", "<|im_start|>assistant\nOff the", OPENER, "{%- if false -%}"),
    ("generation-prompt", "high", "after a result", "</tool_response><|im_end|>", OPENER, "{%- if add_generation_prompt and messages[-1].role != 'tool' -%}"),
    ("generation-prompt", "high", "after a question without tools", "Fennrick", OPENER, "{%- if add_generation_prompt and tools -%}"),
    ("generation-prompt", "low", "before the white space", "<|im_start|>assistant", OPENER + "\n{{- '<|im_start|>assistant\\n' -}}", OPENER + "\n{{- '<|im_start|>assistant' ~ ('\\n' if enable_thinking is defined and not enable_thinking else '') -}}"),
    ("generation-prompt", "medium", "without being asked", "<|im_end|>\n<|im_start|>assistant", OPENER, "{%- if true -%}"),
    ("generation-prompt", "low", "<think> is already open", "assistant\n<think>", "{%- endif -%}\n{%- endif -%}\n", "{%- else -%}{{- '<think>\\n' -}}{%- endif -%}\n{%- endif -%}\n"),
    ("not-prefix-preserving", "low", "they part after", "One more step.", OPENER, "{%- if tools and messages[-1].role == 'tool' -%}{{- 'One more step.' -}}{%- endif -%}" + OPENER),
    ("render-error", "high", "a second question", "no second", TEXT, TEXT + "{%- if message.role == 'user' and last.user > loop.index0 -%}{{- raise_exception('no second') -}}{%- endif -%}"),
    ("render-error", "medium", "two messages of the user in a row", "in a row", TEXT, TEXT + "{%- if not loop.last and message.role == 'user' == loop.nextitem.role -%}{{- raise_exception('in a row') -}}{%- endif -%}"),
    ("render-error", "high", "ids as OpenAI writes them", "nine", TEXT, TEXT + "{%- if message.role == 'tool' and message.tool_call_id | length != 9 -%}{{- raise_exception('nine') -}}{%- endif -%}"),
    ("render-error", "medium", "thinking and text beside a call", "both", TEXT, TEXT + "{%- if content and message.tool_calls and message.reasoning_content -%}{{- raise_exception('both') -}}{%- endif -%}"),
    ("render-error", "medium", "tool_calls: null", "NoneType", CALLS, "for call in (message.tool_calls if 'tool_calls' in message else [])"),
    ("render-error", "medium", "tool_calls: []", "no element", CALLS, "for call in (([message.tool_calls[0].id ~ ''] + message.tool_calls)[1:] if message.tool_calls is iterable and message.tool_calls is defined else [])"),
    ("render-error", "medium", "a parameter that may be null", "untyped", "(tool | tojson)", "(tool | tojson) ~ (raise_exception('untyped') if '\"anyOf\"' in tool | tojson and tool.function.name == 'ring_bell' else '')"),
    ("render-error", "medium", "a tool with only a name", "Undefined", "(tool | tojson)", "(tool.function.description.strip() and tool | tojson)"),
    ("thinking-reversed", "high", "closes thinking before it begins", "</think>", "{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n", "{%- if enable_thinking is undefined or enable_thinking -%}{{- '<think>\\n\\n"),
    ("thinking-reversed", "high", "opens thinking", "assistant\n<think>", "-%}{{- '<think>\\n\\n</think>\\n\\n' -}}", "-%}{{- '<think>\\n' -}}"),
    ("thinking-reversed", "high", "hold no thinking", "assistant\n\n<tool_call>", THOUGHT, "enable_thinking is defined and not enable_thinking and " + THOUGHT),
    ("thinking-reversed", "medium", "make the same prompt", "assistant\n", "{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}", ""),
    ("reasoning-dropped", "medium", "left out when the result comes", "The almanac Yarrow", "~ message.reasoning_content ~", "~"),
    ("unicode-escaped", "medium", "a tool's description", "\\u00e4", "(tool | tojson)", "(tool | tojson(ensure_ascii=true))"),
    ("unicode-escaped", "medium", "a tool's result", "&lt;q&gt;", "<tool_response>\\n' ~ content", "<tool_response>\\n' ~ content | e"),
    ("unicode-escaped", "medium", "a user's message", "%C3%A4", "'\\n' ~ content ~ '<|im_end|>", "'\\n' ~ content | urlencode ~ '<|im_end|>"),
    ("unicode-escaped", "medium", "a user's message", "&amp;", "'\\n' ~ content ~ '<|im_end|>", "'\\n' ~ content | e ~ '<|im_end|>"),
    ("json-unescaped", "low", "a tool's result", 'the "Hollin" \\ pier', RESULT, "'<|im_start|>tool\\n{\"content\": \"' ~ content ~ '\"}<|im_end|>\\n'"),
    ("trimmed", "low", "a tool's result", "Zeeland-71:\n    Ostrava-12\n", "<tool_response>\\n' ~ content", "<tool_response>\\n' ~ content | trim"),
    ("injection", "medium", "'<tool_response>' in a user's message", "<|im_start|>tool", "'\\n' ~ content ~ '<|im_end|>", "'\\n' ~ (content.replace('<tool_response>', '<|im_start|>tool')) ~ '<|im_end|>"),
    ("injection", "medium", "'/no_think' in a user's message", "quick", "{{- '<|im_start|>' ~ " + OTHERS, "{{- ('quick' if content.endswith('/no_think') else '') ~ '<|im_start|>' ~ " + OTHERS),
    ("injection", "low", "in the assistant's answer", "Fennrick", "{{- content -}}\n{%- for", "{{- content.split('</think>')[-1] -}}\n{%- for"),
    ("injection", "medium", "'<|end|>' in a user's message", "<|im_start|>user\n<|im_end|>", TEXT, TEXT + "{%- set content = content | replace('<|end|>', '') -%}"),
    ("injection", "low", "make the template raise", "no markers", TEXT, TEXT + "{%- if message.role == 'assistant' and '<|marker|>' in content -%}{{- raise_exception('no markers') -}}{%- endif -%}"),
]  # fmt: skip

FAIR = [
    ("thinking has another name", "message.reasoning_content", "message.thinking"),
    ("results of one turn share a user's turn", RESULT, "('' if loop.previtem.role == 'tool' else '<|im_start|>user') ~ '\\n<tool_response>\\n' ~ content ~ '\\n</tool_response>' ~ ('' if not loop.last and loop.nextitem.role == 'tool' else '<|im_end|>\\n')"),
    ("a result is a string in a JSON object", RESULT, "'<|im_start|>tool\\n{\"content\": ' ~ content | tojson ~ '}<|im_end|>\\n'"),
    ("ids stand on both sides", "call.function.name ~ '\", ", "call.function.name ~ '\", \"id\": \"' ~ call.id ~ '\", "),
    ("a condition is no order", ASKS, "{{- 'If a tool helps, you must call that tool first.\\n' -}}" + ASKS),
    ("how to write a call is no order", ASKS, "{{- 'Calls MUST follow this format, and tool calls need a name.\\n' -}}" + ASKS),
    ("words for a switch in the system message", "{{- '<|im_start|>' ~ " + OTHERS, "{{- ('§' if message.role == 'system' and '/quick' in content else '') ~ '<|im_start|>' ~ " + OTHERS),
    ("a call must have its result", TEXT, TEXT + "{%- if loop.last and message.tool_calls -%}{{- raise_exception('no result') -}}{%- endif -%}"),
    ("developer has a role of its own", OTHERS, "message.role"),
    ("the prompt opens nothing where history does not", "'<|im_start|>assistant\\n'", "''"),
]  # fmt: skip
