"""What to type for each server so that it reads the calls of this model: facts, not findings.

Names of readers change between releases. Where they are from:

| server    | what                                                          | as of                       |
|-----------|---------------------------------------------------------------|-----------------------------|
| mlx_lm    | its own choice, asked of the installed package                | the installed version       |
| vLLM      | `vllm/tool_parsers`, `vllm/reasoning`, `docs/features`        | main, commit 0064cc9cb1     |
| SGLang    | `srt/function_call/function_call_parser.py`                   | main, commit 00828e568a     |
| llama.cpp | `tools/server/README.md`; names of readers: `common/chat.cpp` | commit 00dc8057ab; b10920   |

An older release may lack a name: it says so at its start and lists those that it has.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punie_mlx import identity
from punie_mlx.doctor import roundtrip, stock
from punie_mlx.doctor.findings import Skip
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.pages.text import visible
from punie_mlx.toolcalls.calls import ToolCall

AS_OF = {"vLLM": "main at 0064cc9cb1", "SGLang": "main at 00828e568a", "llama.cpp": "master at 00dc8057ab"}
AUTO = "--enable-auto-tool-choice"


@dataclass(frozen=True)
class Names:
    """What vLLM and SGLang call the reader of a format, and vLLM that of its thinking; "" where they have none."""

    vllm: str = ""
    thinking: str = ""
    sglang: str = ""
    note: str = ""


NAMES: Mapping[str, Names] = {
    "qwen3_coder": Names("qwen3_xml", "qwen3", "qwen3_coder", "vLLM knows the same reader as qwen3_coder, too"),
    "mimo": Names("mimo", "mimo", "mimo"),
    "seed_oss": Names("seed_oss", "seed_oss"),
    "hermes": Names("hermes", "qwen3", "qwen25", "Qwen3 calls like this; Qwen3-Coder and Qwen3.5 do not"),
    "smollm3": Names("hermes", "qwen3", "hermes", "of vLLM and SGLang, JSON calls are read, those in <code> are not"),
    "harmony": Names("openai", "openai_gptoss", "gpt-oss"),
    "mistral": Names("mistral", "mistral", "mistral", "the template wants call ids of nine letters and digits"),
    "llama3_json": Names("llama3_json", "", "llama3", "Llama 3 makes one call in an answer"),
    "pythonic": Names("pythonic", "", "pythonic"),
    "glm": Names("glm45", "glm45", "glm45", "GLM-4.7: glm47"),
    "kimi": Names("kimi_k2", "kimi_k2", "kimi_k2", "an id names the tool: functions.NAME:0"),
    "minimax": Names("minimax_m2", "minimax_m2", "minimax-m2"),
    "deepseek": Names("deepseek_v31", "deepseek_v3", "deepseekv31"),
    "gemma": Names("gemma4", "gemma4", "gemma4"),
}
# Spellings of a format that have readers of their own: (format, words of the template) → names.
SPELLINGS: Mapping[tuple[str, str], Names] = {
    ("deepseek", "DSML"): Names("deepseek_v32", "deepseek_v3", "deepseekv32"),
    ("deepseek", "```json"): Names("deepseek_v3", "deepseek_r1", "deepseekv3"),
    ("gemma", "<start_function_call>"): Names("functiongemma"),
    ("pythonic", "<|tool_call_start|>"): Names("lfm2", "", "lfm2"),
}
# llama.cpp names no reader: it takes one of its own where the template holds all of these words, and works one out
# from what the template renders elsewhere. The first that fits.
LLAMA_CPP = (
    ("GPT-OSS", ("<|channel|>",)),
    ("Kimi K2", ("<|tool_calls_section_begin|>", "<|tool_call_begin|>")),
    ("LFM2", ("<|tool_list_start|>",)),
    ("Gemma 4", ("<|tool_call>", "<tool_call|>")),
    ("Qwen3-Coder", ("<tool_call>", "<function=", "<parameter=")),
)


def names(specimen: Specimen) -> Names | None:
    """What vLLM and SGLang call the readers for `specimen`; None where its format is unknown."""
    wire = specimen.wire
    if wire is None:
        return None
    for (name, words), found in SPELLINGS.items():
        if name == wire.name and words in specimen.template:
            return found
    if wire.name == "smollm3" and wire.open and wire.open != "<tool_call>":
        return Names("", "qwen3", "", "no server but punie-mlx reads calls between markers of a model's own")
    return NAMES.get(wire.name)


def vllm_flags(specimen: Specimen) -> list[str]:
    """What `vllm serve MODEL` needs besides the model; empty where vLLM has no reader for the format."""
    found = names(specimen)
    if found is None or not found.vllm:
        return []
    thinking = ["--reasoning-parser", found.thinking] if found.thinking and _thinks(specimen) else []
    return [AUTO, "--tool-call-parser", found.vllm, *thinking]


def _thinks(specimen: Specimen) -> bool:
    """Whether there is thinking to be told apart: in tags, or, in gpt-oss, in a channel."""
    return specimen.detection.thinks or (specimen.wire is not None and specimen.wire.name == "harmony")


def llama_cpp_reader(specimen: Specimen) -> str:
    """The reader that llama.cpp takes for the template, as its log names it."""
    for name, words in LLAMA_CPP:
        if all(w in specimen.template for w in words):
            return name
    return "worked out from the template"


def facts(specimen: Specimen) -> dict[str, Any]:
    """Format, and for each server what it takes and what to type."""
    found = names(specimen)
    told: dict[str, Any] = {
        "format": _format(specimen),
        "punie-mlx": _ours(specimen),
        "mlx_lm": _mlx_lm(specimen),
        "vLLM": _vllm(specimen, found),
        "SGLang": _typed(f"--tool-call-parser {found.sglang}" if found and found.sglang else "", "SGLang"),
        "llama.cpp": _llama_cpp(specimen),
    }
    notes = _notes(specimen)
    return told | ({"notes": notes} if notes else {})


def _typed(flags: str, server: str) -> dict[str, Any]:
    return {"type": flags or "no reader of its own is known for these calls", "as of": AS_OF[server]}


def _format(specimen: Specimen) -> dict[str, Any]:
    found, wire = specimen.detection, specimen.wire
    told: dict[str, Any] = {"name": found.format or ("several fit" if found.formats else "unknown")}
    if wire is not None:
        told["a call stands between"] = [visible(m) for m in (wire.open, wire.close) if m]
        told["thinking stands between"] = [visible(m.strip()) for m in found.think]
    return {key: value for key, value in (told | {"why": visible(found.explain())}).items() if value}


def _ours(specimen: Specimen) -> dict[str, Any]:
    model = shlex.quote(str(specimen.directory)) if specimen.directory else "MODEL_DIR"
    command = f"punie-mlx serve --model {model}"
    if str(specimen.directory) != specimen.name:  # it is not the model's own
        command += f" --chat-template {shlex.quote(specimen.name) if Path(specimen.name).is_file() else 'FILE'}"
    if specimen.wire is None:
        return {"type": f"{command} --tool-call-format NAME"}
    return {"type": command, "reads": "the format, detected by itself"}


def _mlx_lm(specimen: Specimen) -> dict[str, Any]:
    """mlx_lm takes its reader by itself: there is nothing to type, only a line to write into its configuration."""
    taken = stock.chosen(specimen)
    told: dict[str, Any] = {"version": identity.versions().get("mlx-lm", ""), "reader of calls": "none"}
    if taken is None:
        told["effect"] = "mlx_lm.server hands calls out as text"
    else:
        named = " (named in tokenizer_config.json)" if stock.configured(specimen) else ""
        told["reader of calls"] = f"{taken.name}{named}"
        told["it waits for"] = [visible(m) for m in (taken.opening, taken.closing) if m]
        told["it reads what the template writes"] = {True: "yes", False: "no", None: "not known"}[_reads(specimen)]
    thinking = getattr(specimen.tokenizer, "think_start", None), getattr(specimen.tokenizer, "think_end", None)
    if specimen.has_vocabulary:
        told["thinking, by the tokens of the vocabulary"] = [visible(t) for t in thinking if t] or "none"
    return told


def _reads(specimen: Specimen) -> bool | None:
    """Whether mlx_lm's reader brings a plain call back; None where nothing can be said."""
    taken = stock.chosen(specimen)
    call = ToolCall(roundtrip.NAME, roundtrip.ARGUMENTS["plain arguments"])
    try:
        turn = roundtrip.ended(specimen, roundtrip.write(specimen, call).turn)
    except Skip:
        return None
    found = stock.read(taken, turn, roundtrip.TOOLS) if taken else []
    return isinstance(found, list) and roundtrip.told(found) == roundtrip.told([call])


def _vllm(specimen: Specimen, found: Names | None) -> dict[str, Any]:
    told = _typed(" ".join(vllm_flags(specimen)), "vLLM")
    if found and found.note:
        told["note"] = found.note
    return told


def _llama_cpp(specimen: Specimen) -> dict[str, Any]:
    told = {
        "type": "--jinja --chat-template-file FILE",
        "reader of calls": llama_cpp_reader(specimen),
        "as of": AS_OF["llama.cpp"],
        "note": "--jinja is the default in newer builds; without it tools are left out",
    }
    if _thinks(specimen):
        told["type"] += " --reasoning-format auto"
    if specimen.wire is not None and specimen.wire.name == "mimo":
        told["note"] += "; builds up to b10920 take the reader of Qwen3-Coder for MiMo, which waits for line breaks"
    return told


def _notes(specimen: Specimen) -> list[str]:
    notes = []
    special: set[str] = set(getattr(specimen.tokenizer, "all_special_tokens", ()))
    added = getattr(specimen.tokenizer, "added_tokens_decoder", None) or {}
    special |= {str(t) for t in added.values() if getattr(t, "special", False)}
    wire = specimen.wire
    hidden = [m for m in (wire.open, wire.close, *wire.think) if m.strip() in special] if wire else []
    if hidden:
        shown = " ".join(visible(m.strip()) for m in hidden)
        notes.append(
            f"{shown}: special tokens, which decoding with skip_special_tokens=True takes out before a reader sees them"
        )
    return notes
