"""Why a server fails, as far as its answers tell, and what to change: a table, by the kind of server.

A cause has one remedy for each kind of server that it knows, and one for all others. `{format}`, `{vllm}`, `{sglang}`
stand for the wire format that the model writes and the names of its parsers there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from punie_mlx.doctor.flags import NAMES, Names
from punie_mlx.doctor.server_client import Json
from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import CallFinished, Tool, ToolCall
from punie_mlx.toolcalls.looks import FENCE, call_text
from punie_mlx.toolcalls.stream import StreamParser

OURS, VLLM, SGLANG, LLAMA, STOCK, OLLAMA, STUDIO, OTHER = (
    "punie-mlx", "vLLM", "SGLang", "llama.cpp", "mlx_lm.server", "Ollama", "LM Studio", "an unknown server",
)  # fmt: skip

OWNERS = {
    "punie-mlx": OURS, "vllm": VLLM, "sglang": SGLANG, "llamacpp": LLAMA, "library": OLLAMA,
    "organization_owner": STUDIO,
}  # fmt: skip
"""What `owned_by` of a listed model tells."""

MOST_TEXT = 20_000  # characters of an answer that are read: more than any has within its limit of tokens
UNMENDABLE = "mlx_lm.server has no setting for this: serve the same model with `punie-mlx serve`"


@dataclass(frozen=True)
class Cause:
    """`says` goes on from "likely"; `change`: what to do, by kind of server."""

    says: str
    change: Mapping[str, str] = field(default_factory=dict)
    otherwise: str = ""


TEMPLATE = {
    OURS: "`punie-mlx doctor MODEL --fix`, then `punie-mlx serve --chat-template FILE`",
    VLLM: "mend it (`punie-mlx doctor MODEL --fix`), then `vllm serve --chat-template FILE`",
    SGLANG: "mend it (`punie-mlx doctor MODEL --fix`), then `--chat-template FILE`",
    LLAMA: "mend it (`punie-mlx doctor MODEL --fix`), then `llama-server --jinja --chat-template-file FILE`",
    STOCK: 'mend it (`punie-mlx doctor MODEL --fix`), then `mlx_lm.server --chat-template "$(cat FILE)"`',
    OLLAMA: "give the Modelfile a TEMPLATE that shows tools and results",
    STUDIO: "put the mended template (`punie-mlx doctor MODEL --fix`) into the model's prompt template settings",
}
UPGRADE = "a newer release of the server may mend it; `punie-mlx serve` on the same model does not have it"

CAUSES = {
    "auto-off": Cause(
        "the server was started without automatic tool choice (`--enable-auto-tool-choice` is missing)",
        {
            VLLM: "add `--enable-auto-tool-choice --tool-call-parser {vllm}` to `vllm serve`",
            SGLANG: "add `--tool-call-parser {sglang}`",
        },
        "where the server is vLLM, add `--enable-auto-tool-choice --tool-call-parser {vllm}`; elsewhere, the "
        "setting that turns tool calls on",
    ),
    "no-jinja": Cause(
        "llama.cpp was started without the model's own template",
        {},
        "add `--jinja` to `llama-server` (and `--chat-template-file FILE` where the file of the model has none)",
    ),
    "wrong-parser": Cause(
        "the server reads its calls in another format than {format}, in which the model writes them, or in none",
        {
            OURS: "leave out `--tool-call-format`, or name the right one: `--tool-call-format {format}`",
            VLLM: "`--enable-auto-tool-choice --tool-call-parser {vllm}`",
            SGLANG: "`--tool-call-parser {sglang}`",
            LLAMA: "`--jinja`, with the model's own template: llama.cpp finds the parser by it",
            STOCK: "mlx_lm finds its parser by the template: give the one that shows {format} "
            '(`--chat-template "$(cat FILE)"`), or set `tool_parser_type` in tokenizer_config.json',
        },
        "set its tool-call parser to the one for {format} (vLLM: `--tool-call-parser {vllm}`, SGLang: "
        "`--tool-call-parser {sglang}`)",
    ),
    "in-text": Cause(
        "the model describes its call in text and not in its wire format: by its training, or because the template "
        "does not show it the format",
        {OURS: "try `--rescue`; see what the model writes with `punie-mlx doctor MODEL --probe`"},
        "see what it writes before any parser with `punie-mlx doctor MODEL --probe`; `punie-mlx serve --rescue` reads "
        "such calls, and rows made by `punie-mlx convert` teach the right ones",
    ),
    "not-called": Cause(
        "the model cannot call tools, its template does not show it the tools, or the server leaves them out",
        {},
        "`punie-mlx doctor MODEL --probe` tells these apart",
    ),
    "template": Cause(
        "a stale or unfit chat template",
        TEMPLATE,
        "give the server a template that passes `punie-mlx doctor --template FILE`",
    ),
    "dropped": Cause(
        "its parser could not read what the model wrote, and dropped it",
        {
            VLLM: "check `--tool-call-parser` (the server's log has the text); `{vllm}` reads {format}",
            STOCK: "only its log tells of it. " + UNMENDABLE,
        },
        "see the server's log; " + UPGRADE,
    ),
    "choice-ignored": Cause(
        "the server takes `tool_choice` and does nothing with it",
        {
            OURS: "leave out `--constrain off`, and a draft model, which cannot be constrained",
            VLLM: "upgrade (`required` needs 0.8.3 or later), and set `--tool-call-parser`",
            LLAMA: "add `--jinja`",
            STOCK: UNMENDABLE,
        },
        UPGRADE,
    ),
    "schema-ignored": Cause(
        "the server holds answers to no schema",
        {
            OURS: "leave out `--constrain off` and draft models",
            STOCK: UNMENDABLE,
            OLLAMA: "use its own `format` field, or a newer release",
        },
        UPGRADE,
    ),
    "converted": Cause(
        "the parser makes values of what the model wrote without a look at the schema",
        {STOCK: UNMENDABLE, VLLM: "check that `--tool-call-parser` is the one for this model (`{vllm}` for {format})"},
        UPGRADE,
    ),
    "text-parser": Cause(
        "the parser looks for the end of a call in its text, not among the tokens",
        {STOCK: UNMENDABLE},
        UPGRADE,
    ),
    "no-reasoning-parser": Cause(
        "the server does not take the model's thinking apart from its answer",
        {
            OURS: "leave out `--reasoning-format none`, or name the tags: `--reasoning-format '<think>,</think>'`",
            VLLM: "`--reasoning-parser NAME` (`punie-mlx doctor MODEL` names it)",
            SGLANG: "`--reasoning-parser NAME`",
            LLAMA: "`--reasoning-format auto`, with `--jinja`",
            STOCK: UNMENDABLE,
        },
        "turn its reasoning parser on",
    ),
    "protocol": Cause("the server itself", {STOCK: UNMENDABLE}, UPGRADE),
    "any-model": Cause(
        "the server takes whatever name a request says",
        {STOCK: "name no model in requests (it would load it); " + UNMENDABLE},
        "compare the `model` of answers with what you asked for",
    ),
    "many-models": Cause(
        "the server lists what it has on disk, not what it has loaded",
        {},
        "name the model in each request (`--served-name` here)",
    ),
    "cors": Cause(
        "its default lets pages of any origin call",
        {
            STOCK: "`--allowed-origins http://127.0.0.1`",
            VLLM: "`--allowed-origins '[\"http://127.0.0.1\"]'`, and `--api-key`",
            OLLAMA: "set OLLAMA_ORIGINS",
            OURS: "leave out `--allow-origin '*'`",
        },
        "limit the allowed origins, or demand an API key",
    ),
}

# What servers say when they refuse tools.
MESSAGES = (
    (r"enable-auto-tool-choice|tool-call-parser", "auto-off"),
    (r"--jinja|unsupported param: tools", "no-jinja"),
    (r"does not support tools|tools? (are|is) not supported", "template"),
    (r"template|jinja", "template"),
)


def by_message(text: str) -> str | None:
    """The cause that an error message shows."""
    return next((cause for pattern, cause in MESSAGES if re.search(pattern, text, re.IGNORECASE)), None)


def remedy(cause: str, kind: str, format: str | None = None) -> str:
    """The likely cause and what to change on a server of this kind; `format`: what the model writes, if known."""
    of, names = CAUSES[cause], NAMES.get(format or "", Names())
    facts = {
        "format": format or "the model's",
        "vllm": names.vllm or "NAME",
        "sglang": names.sglang or "NAME",
    }
    return f"Likely cause: {of.says}. To change: {of.change.get(kind, of.otherwise)}.".format_map(facts)


def written_as(text: str, tools: Sequence[Json], *, exactly: bool = False) -> tuple[str, ...]:
    """The native wire formats that read a call of one of `tools` in `text`: first those that would write it so, too.

    `exactly`: these alone. Readers forgive much, some the spelling of another format. What stands
    in a fence is no call of theirs: the model shows it.
    """
    text = FENCE.sub("", text[:MOST_TEXT])
    offered = [Tool.from_openai(t) for t in tools]
    read = {f.name: _read(f.name, text, offered) for f in formats.FORMATS.values() if f.native}
    readers = [name for name, calls in read.items() if calls]
    exact = [name for name in readers if _bare(formats.render(name, read[name][:1])) in _bare(text)]
    return tuple(exact) if exactly else (*exact, *(n for n in readers if n not in exact))


def _read(format: str, text: str, tools: Sequence[Tool]) -> list[ToolCall]:
    names = {t.name for t in tools}
    parser = StreamParser(format, tools)
    events = [*parser.feed(text), *parser.finish("stop")]
    return [e.call for e in events if isinstance(e, CallFinished) and e.call.name in names]


def _bare(text: str) -> str:
    """`text` without white space, in which templates differ."""
    return "".join(text.split())


def text_of_call(text: str, tools: Sequence[Json]) -> str | None:
    """The part of an answer that is the text of a call, in whatever format."""
    text, names = text[:MOST_TEXT], [_name(t) for t in tools]
    found = call_text(text, names)
    if found is None and written_as(text, tools):
        found = text[min((text.index(n) for n in names if n in text), default=0) :] or text
    return found


def _name(tool: Json) -> Any:
    function = tool.get("function")
    return function.get("name") if isinstance(function, Mapping) else None
