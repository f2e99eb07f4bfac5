"""`punie-mlx serve --check`: what would be served, what is wrong with it, and whether it fits, without loading weights.

The template is tried, not read: a conversation with a tool is rendered, and what must be in the prompt is looked for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punie_mlx import hardware, identity
from punie_mlx.chat import render
from punie_mlx.errors import ConfigError, DataError, InputError, ModelError
from punie_mlx.serve import memory, wire
from punie_mlx.serve.config import ServeConfig
from punie_mlx.serve.constrain import Constrainer
from punie_mlx.serve.guard import INSPECT
from punie_mlx.serve.process import fingerprint_of
from punie_mlx.toolcalls import detect
from punie_mlx.toolcalls.calls import CallFinished, Tool, ToolCall
from punie_mlx.toolcalls.grammar import Constraint
from punie_mlx.toolcalls.stream import StreamParser
from punie_mlx.toolcalls.wire import Format

PROBE = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "probe-description",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "string"}}, "required": ["probe_key"]},
    },
}
CALL = ToolCall("probe_tool", {"probe_key": "probe-value"})
SYSTEM: dict[str, Any] = {"role": "system", "content": "probe-system"}
USER: dict[str, Any] = {"role": "user", "content": "probe-question"}
CALLING: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": CALL.name, "arguments": dict(CALL.arguments)}}
    ],
}
RESULT: dict[str, Any] = {
    "role": "tool", "tool_call_id": "call_1", "name": "probe_tool", "content": "probe-result",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """problem: agents will not work. note: something works less well."""

    level: str
    text: str


@dataclass(frozen=True)
class Report:
    """What would be served. `ok`: no problem was found."""

    model: str
    adapter: str | None
    name: str
    fingerprint: str
    format: str
    evidence: str
    reasoning: tuple[str, str] | None
    grammar: str
    context: int
    concurrency: int
    memory: memory.Needed
    inspect: str | None  # where the page is
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(f.level != "problem" for f in self.findings)

    def to_json(self) -> str:
        return json.dumps({"ok": self.ok, **dataclasses.asdict(self)}, indent=2, ensure_ascii=False)

    def summary(self) -> str:
        needed = self.memory
        lines = {
            "model": f"{self.name} ({self.model}{f' with {self.adapter}' if self.adapter else ''})",
            "fingerprint": self.fingerprint,
            "format": f"{self.format}. {self.evidence}",
            "thinking": " … ".join(self.reasoning) if self.reasoning else "none",
            "grammar": self.grammar,
            "context": f"{self.context:,} tokens, {self.concurrency} requests at once",
            "memory": f"{_gb(needed.weights)} weights + {_gb(needed.kv_cache)} KV cache = {_gb(needed.total)} at most; "
            f"this machine has {_gb(needed.available)}",
            **({"inspect": f"a page at {self.inspect}, for this machine only"} if self.inspect else {}),
        }
        told = [f"{name + ':':<13}{text}" for name, text in lines.items()]
        return "\n".join([*told, *(f"{f.level + ':':<13}{f.text}" for f in self.findings)])


def run_check(config: ServeConfig, *, as_json: bool = False) -> None:
    """Print the report. Raises `ConfigError` or `ModelError` for what cannot be served, or not to agents."""
    report = check(config)
    print(report.to_json() if as_json else report.summary())
    if not report.ok:
        problems = [f.text for f in report.findings if f.level == "problem"]
        raise ModelError(f"{config.model} should not be served like this: {'; '.join(problems)}")


def check(config: ServeConfig) -> Report:
    """What `config` would serve. Raises `InputError` where nothing can be."""
    files = identity.model_files(config.model)
    if config.adapter is not None:
        identity.check_adapter(config.model, config.adapter)
    tokenizer = render.load_tokenizer(config.model)
    template = render.read_template(config.chat_template) if config.chat_template else None
    if template is not None:
        tokenizer.chat_template = template
    vocabulary = tokenizer.get_vocab()
    found = detect.examine(tokenizer.chat_template, vocabulary)
    try:
        speaks = wire.choose(tokenizer.chat_template, vocabulary, config.tool_call_format, config.reasoning_format)
    except ConfigError as e:
        raise ModelError(f"{config.model}: {e}") from e
    model = _read_config(config.model)
    context = memory.context_of(model)
    if config.max_context is not None:
        context = min(context, config.max_context)
    serial = bool(config.kv_bits or config.draft_model or config.prompt_lookup)
    concurrency = 1 if serial else config.max_concurrency
    needed = memory.Needed(
        weights=memory.weights(safetensors(files), model) + _draft_weights(config),
        kv_cache=concurrency * memory.kv_cache(model, context, config.kv_bits),
        available=hardware.device_memory(),
    )
    named = config.tool_call_format != wire.AUTO
    return Report(
        model=str(config.model),
        adapter=str(config.adapter) if config.adapter else None,
        name=config.served_name,
        fingerprint=fingerprint_of(config, template),
        format=speaks.name,
        evidence=f"Named by --tool-call-format; the template: {found.explain()}" if named else found.explain(),
        reasoning=speaks.think if any(speaks.think) else None,
        grammar=_grammar(config, tokenizer, model, speaks),
        context=context,
        concurrency=concurrency,
        memory=needed,
        inspect=f"http://{_address(config)}{INSPECT}" if config.inspect else None,
        findings=(
            *(Finding("note", text) for text in found.disagreements),
            *template_findings(tokenizer, speaks, config.template_kwargs),
            *_memory_findings(needed, serial),
        ),
    )


# ---- the template ----


def template_findings(tokenizer: Any, speaks: Format, kwargs: Mapping[str, Any]) -> Iterator[Finding]:
    """What rendering a conversation with a tool shows of the template."""

    def shown(*messages: Mapping[str, Any], prompt: bool = False) -> str:
        return render.render(tokenizer, messages, [PROBE], add_generation_prompt=prompt, **kwargs)

    try:
        asked, called = shown(SYSTEM, USER, prompt=True), shown(SYSTEM, USER, CALLING)
        answered = shown(SYSTEM, USER, CALLING, RESULT, prompt=True)
    except DataError as e:
        yield Finding("problem", f"{e} (a question, a call of a tool, and its result)")
        return
    for text, words, told in (
        (asked, "probe_tool", "the template shows no tools, so the model never knows of them"),
        (asked, "probe_key", "the template shows no parameters of tools"),
        (asked, "probe-system", "the template drops the system message where there are tools"),
        (asked, "probe-question", "the template drops what the user says"),
        (called, "probe-value", "the template drops calls that were made, so the model never sees its own"),
        (answered, "probe-result", "the template drops results of tools"),
    ):
        if words not in text:
            yield Finding("problem", told)
    yield from _call_findings(shown(SYSTEM, USER), called, speaks)
    if asked == shown(SYSTEM, USER):
        yield Finding("problem", "the template ignores add_generation_prompt, so the model goes on for the user")
    if not answered.startswith(called.rstrip()):
        yield Finding(
            "note",
            "a call is rendered otherwise once its result follows: the prompt cache spares agents less",
        )
    if any(speaks.think) and asked.rstrip().endswith(speaks.think[0].rstrip()):
        yield Finding("note", f"the prompt opens the thinking ({speaks.think[0].strip()})")


def _call_findings(before: str, called: str, speaks: Format) -> Iterator[Finding]:
    written = called[len(before) :] if called.startswith(before) else called
    parser = StreamParser(speaks, [Tool.from_openai(PROBE)])
    events = [*parser.feed(written), *parser.finish("stop")]
    read = [(e.call.name, e.call.arguments) for e in events if isinstance(e, CallFinished)]
    if CALL.name in written and read != [(CALL.name, CALL.arguments)]:
        yield Finding("note", f"a call as the template writes it is not read as {speaks.name}: {written.strip()!r}")


# ---- grammar and memory ----


def _grammar(config: ServeConfig, tokenizer: Any, model: Mapping[str, Any], speaks: Format) -> str:
    """Whether calls can be held to their tools."""
    if config.constrain == "off":
        return "off (--constrain off)"
    if config.draft_model:
        return "off (a draft model cannot be constrained)"
    text = memory.text_config(model)
    width = text.get("vocab_size") or len(tokenizer.get_vocab())
    try:
        constrainer = Constrainer(tokenizer, width=width, eos=tokenizer.eos_token_ids, wire=speaks)
        plan = constrainer.plan([Tool.from_openai(PROBE)], Constraint("required"))
    except InputError as e:
        return f"off ({e})"
    return f"{config.constrain} (required calls: {plan.state}{f', {plan.reason}' if plan.reason else ''})"


def _memory_findings(needed: memory.Needed, serial: bool) -> Iterator[Finding]:
    if needed.weights > needed.available:
        yield Finding("problem", "the weights do not fit into this machine's memory: quantize the model to fewer bits")
    elif needed.total > needed.available:
        yield Finding("note", "not all requests can be that long at once: lower --max-context or --max-concurrency")
    if serial:
        yield Finding("note", "with --kv-bits, --draft-model or --prompt-lookup requests are served one at a time")


def _draft_weights(config: ServeConfig) -> int:
    if config.draft_model is None:
        return 0
    return memory.weights(safetensors(identity.model_files(config.draft_model)), _read_config(config.draft_model))


def _read_config(model: Path) -> dict[str, Any]:
    try:
        content = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ModelError(f"{model}/config.json cannot be read: {e}") from e
    if not isinstance(content, dict):
        raise ModelError(f"{model}/config.json is no object")
    return content


def safetensors(files: Iterable[Path]) -> list[Path]:
    return [f for f in files if f.suffix == ".safetensors"]


def _address(config: ServeConfig) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{host}:{config.port or 'PORT'}"


def _gb(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:,.1f} MiB"
