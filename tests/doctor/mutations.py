"""Faults planted in our own templates, each as templates in the wild have it, and the check that must name it."""

from __future__ import annotations

from dataclasses import dataclass

from punie_mlx.chat.templates import make


@dataclass(frozen=True)
class Mutation:
    """`old` → `new` in the template of `family`, everywhere it stands, is what `check` is there to find."""

    family: str
    old: str
    new: str
    check: str
    fault: str

    @property
    def template(self) -> str:
        """The template with the fault in it."""
        good = make(self.family)
        if self.old not in good:
            raise ValueError(f"the template of {self.family} does not hold {self.old!r}: {self.fault}")
        return good.replace(self.old, self.new)

    def __str__(self) -> str:
        return f"{self.family}: {self.fault}"


_CONTENT = "{%- set content = text(message.content) -%}"
_JSON = "{{- arguments if arguments is string and arguments else (arguments or {}) | tojson -}}"
_PARTS = "{%- for part in content -%}"
_ROLE = "('system' if message.role == 'developer' else message.role)"
_OPENER = "{%- if add_generation_prompt -%}"
_NO_CALL = "Where no function helps, answer without one."

MUTATIONS = (
    # ---- tools ----
    Mutation("qwen3_coder", "{%- if tools -%}", "{%- if false -%}", "tools-ignored", "tools are not shown"),
    Mutation("hermes", "for tool in tools", "for tool in tools[:1]", "tools-ignored", "one tool of two is shown"),
    Mutation("mistral", "(tools | tojson)", "'[]'", "tools-ignored", "the list of tools is empty"),
    Mutation(
        "qwen3_coder",
        "{{- others(schema, ['type', 'properties']) ~ '\\n</parameters>' -}}",
        "{{- '\\n</parameters>' -}}",
        "schema-lost",
        "what is required is left out",
    ),
    Mutation("gpt_oss", "schema.enum is defined", "false", "schema-lost", "the values of an enum are left out"),
    Mutation("llama3", _NO_CALL, "You must call a function in each answer.", "tool-choice", "a call is ordered"),
    Mutation("hermes", "(tool | tojson)", "(tool | tojson(ensure_ascii=true))", "unicode-escaped", "\\u in tools"),
    # ---- calls ----
    Mutation(
        "smollm3",
        "for call in message.tool_calls or []",
        "for call in []",
        "tool-calls-dropped",
        "calls are missing from history",
    ),
    Mutation(
        "gpt_oss",
        "~ json(f.arguments) ~",
        "~ '{}' ~",
        "tool-calls-dropped",
        "calls have lost their arguments",
    ),
    Mutation(
        "llama3",
        "\\n\\n' ~ content -}}",
        "\\n\\n' ~ ('' if message.tool_calls else content) -}}",
        "call-text-dropped",
        "text beside a call is dropped",
    ),
    Mutation(
        "qwen3_coder",
        _CONTENT,
        "{%- set content = message.content if message.content is none else text(message.content) -%}",
        "content-null",
        "no content is None",
    ),
    Mutation(
        "llama3",
        "<|end_header_id|>\\n\\n' ~ content -}}",
        "<|end_header_id|>\\n\\n' + (content if message.content is not none else message.content) -}}",
        "content-null",
        "no content is added to a string",
    ),
    Mutation("hermes", _JSON, "{{- (arguments or {}) | tojson -}}", "arguments-form", "arguments are encoded twice"),
    Mutation("mistral", _JSON, "{{- arguments if arguments is string else '{}' -}}", "arguments-form", "no objects"),
    Mutation("qwen3_coder", "else value | tojson", "else value | string", "value-types", "True and None in values"),
    Mutation(
        "gpt_oss",
        "for call in message.tool_calls -%}",
        "for call in message.tool_calls[:1] -%}",
        "several-calls",
        "only the first call is kept",
    ),
    Mutation(
        "mistral",
        ", \"call_id\": ' ~ (id | tojson) ~ '}",
        "' ~ '}",
        "ids-lost",
        "a result has no id",
    ),
    Mutation("gpt_oss", "(seen.name or 'unknown')", "(message.name or 'tool')", "ids-lost", "a result has no name"),
    # ---- results ----
    Mutation(
        "smollm3",
        "'\\n' ~ result_open ~ '\\n' ~ text(message.content) ~ '\\n' ~ result_close",
        "'\\n' ~ text(message.content)",
        "tool-result-as-user",
        "a result is a user's turn",
    ),
    Mutation("llama3", "turn('ipython', ", "turn('user', ", "tool-result-as-user", "a result is a user's turn"),
    Mutation(
        "hermes",
        "_response>\\n' ~ text(message.content) ~",
        "_response>\\n' ~",
        "tool-result-lost",
        "no result is shown",
    ),
    Mutation(
        "gpt_oss",
        " to=assistant<|channel|>commentary<|message|>' ~ content ~",
        " to=assistant<|channel|>commentary<|message|>' ~ (content | tojson) ~",
        "double-wrapped",
        "a result is JSON of its text",
    ),
    Mutation(
        "hermes",
        "'\\n<tool_response>\\n' ~ text(message.content) ~ '\\n</tool_response>'",
        "'\\n<tool_response>\\n<tool_response>\\n' ~ text(message.content) ~ '\\n</tool_response>\\n</tool_response>'",
        "double-wrapped",
        "a result is framed twice",
    ),
    Mutation(
        "qwen3_coder",
        "'<tool_response>\\n' ~ text(message.content) ~",
        "'<tool_response>\\n' ~ (text(message.content) | trim) ~",
        "trimmed",
        "results are trimmed",
    ),
    Mutation(
        "qwen3_coder",
        "'<tool_response>\\n' ~ text(message.content) ~",
        "'<tool_response>\\n' ~ (text(message.content) | e | string) ~",
        "unicode-escaped",
        "results are escaped as HTML",
    ),
    Mutation("smollm3", _PARTS, "{%- for part in [content | string] -%}", "content-parts", "parts are printed"),
    # ---- thinking ----
    Mutation(
        "smollm3", "seen.mode == '/no_think'", "seen.mode == '/think'", "thinking-reversed", "the switch is reversed"
    ),
    Mutation(
        "hermes",
        "enable_thinking is defined and enable_thinking is false",
        "enable_thinking is defined and false",
        "thinking-reversed",
        "the switch does nothing",
    ),
    Mutation(
        "hermes", "'<think>\\n' ~ thought ~", "'<think>\\n' ~", "reasoning-dropped", "thinking of the loop is lost"
    ),
    # ---- turns ----
    Mutation(
        "qwen3_coder",
        _OPENER,
        "{%- if add_generation_prompt and messages[-1].role == 'user' -%}",
        "generation-prompt",
        "nothing opens the turn after a result",
    ),
    Mutation("llama3", _OPENER, "{%- if false -%}", "generation-prompt", "nothing opens the turn"),
    Mutation("gpt_oss", _OPENER, "{%- if true -%}", "generation-prompt", "the opener comes unasked"),
    Mutation(
        "hermes",
        "{%- elif silent -%}",
        "{%- elif silent and loop.last -%}",
        "not-prefix-preserving",
        "the empty block is taken back",
    ),
    Mutation(
        "llama3",
        "December 2023\\n\\n' -}}",
        "December 2023\\nMessages: ' ~ (messages | length) ~ '\\n\\n' -}}",
        "not-prefix-preserving",
        "messages are counted in the first turn",
    ),
    Mutation(
        "hermes",
        _ROLE,
        "('user' if message.role == 'system' else 'system' if message.role == 'developer' else message.role)",
        "system-messages",
        "a second system message is a user's",
    ),
    Mutation(
        "gpt_oss",
        "{%- elif message.role in ['system', 'developer'] -%}",
        "{%- elif message.role == 'system' -%}\n{%- elif message.role == 'developer' -%}",
        "system-messages",
        "a second system message is left out",
    ),
    Mutation(
        "smollm3",
        "{%- set led = first.role in ['system', 'developer'] -%}",
        "{%- set led = first.role == 'system' or (first.role == 'developer' and raise_exception('no such role')) -%}",
        "developer-role",
        "a developer's message raises",
    ),
    Mutation(
        "mistral",
        "{%- set leads = message.role in ['system', 'developer'] -%}",
        "{%- set leads = message.role == 'system' -%}",
        "developer-role",
        "a developer's message is left out",
    ),
    Mutation(
        "gpt_oss",
        "<|channel|>final<|message|>' ~ content ~",
        "<|channel|>final<|message|>' ~",
        "text-lost",
        "answers are left out",
    ),
    Mutation(
        "qwen3_coder",
        "{%- set schema = f.parameters or {} -%}",
        "{%- set schema = f.parameters -%}",
        "render-error",
        "a tool without parameters raises",
    ),
    Mutation(
        "hermes",
        _CONTENT,
        "{%- set content = text(message.content).split('</think>')[-1] -%}",
        "injection",
        "a tag in an answer cuts it",
    ),
    Mutation(
        "smollm3",
        "{%- set switches = system |",
        "{%- set switches = system ~ text(messages[-1].content) |",
        "injection",
        "a user's words are a switch",
    ),
    # ---- the wire ----
    Mutation("hermes", "~ '}\\n</tool_call>'", "~ '\\n</tool_call>'", "call-roundtrip", "a call lacks its last brace"),
    Mutation("qwen3_coder", "\\n</parameter>\\n' -}}", "\\n' -}}", "call-roundtrip", "no argument has an end"),
    Mutation(
        "gpt_oss",
        "'<|start|>assistant to=functions.' ~ f.name ~ '<|channel|>commentary json<|message|>'",
        "'<|start|>assistant<|channel|>commentary json<|message|>' ~ f.name",
        "parser-mismatch",
        "a call is a message",
    ),
    Mutation("hermes", "tool_call.name", "tool_call['name']", "mlx-parser", "mlx_lm does not know the format"),
    Mutation("smollm3", '\\n{"name": ', '\\n{"call": ', "no-format", "a call has no name in a known place"),
    Mutation(
        "mistral", "(content | tojson)", "'\"' ~ content ~ '\"'", "json-unescaped", "results are pasted into JSON"
    ),
    Mutation("gpt_oss", "{%- if content -%}", "{%- if content and not thought -%}", "call-text-dropped", "or thinking"),
    Mutation(
        "gpt_oss",
        "{{- 'number' if schema.type == 'integer' else schema.type -}}",
        "{{- 'number' if schema.type in ('integer', 'boolean') else schema.type -}}",
        "schema-lost",
        "a boolean is a number",
    ),
    Mutation(
        "gpt_oss",
        "call.id and call.id == message.tool_call_id",
        "false",
        "ids-lost",
        "names go by the order of calls",
    ),
    Mutation(
        "gpt_oss",
        "(reasoning_effort or 'medium')",
        "({'low': 'high', 'high': 'low'}[reasoning_effort] or 'medium')",
        "thinking-reversed",
        "low is high",
    ),
    Mutation(
        "gpt_oss",
        _CONTENT,
        _CONTENT + "{%- set content = content | replace('<|end|>', '') -%}",
        "injection",
        "a filter takes words out",
    ),
    Mutation(
        "qwen3_coder",
        "'<tool_response>\\n' ~ text(message.content) ~",
        "'<tool_response>\\n' ~ text(message.content)[:10] ~",
        "tool-result-lost",
        "results are cut",
    ),
    Mutation(
        "qwen3_coder",
        _OPENER + "\n{{- '<|im_start|>assistant\\n' -}}",
        _OPENER + "\n{{- '<|im_start|>assistant' -}}",
        "generation-prompt",
        "the opener has no line break",
    ),
    Mutation(
        "qwen3_coder",
        "for call in message.tool_calls or []",
        "for call in (message.tool_calls if 'tool_calls' in message else [])",
        "render-error",
        "a list of calls that is null",
    ),
    Mutation(
        "mistral",
        "{%- set id = message.tool_call_id if message.tool_call_id in seen.ids else placed -%}",
        "{%- set id = placed -%}",
        "ids-lost",
        "ids go by the order of calls",
    ),
    Mutation(
        "llama3",
        "(arguments or {}) | tojson",
        "(arguments or {}) | string",
        "arguments-form",
        "objects as Python prints them",
    ),
)
"""Faults that show in one place only: found, and by no wrong check."""
