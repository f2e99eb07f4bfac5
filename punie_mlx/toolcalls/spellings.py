"""The signs by which a chat template shows how its model writes calls: data for `toolcalls.detect`.

One row is one spelling; a format may have several. Real templates were read for these: Qwen, Seed-OSS, MiMo, Hermes,
Granite, SmolLM3, gpt-oss, Mistral, Llama 3.1 and 4, LFM2, GLM, Kimi, MiniMax, DeepSeek V3 to V3.2,
FunctionGemma and Gemma 4.
"""

from __future__ import annotations

from dataclasses import dataclass

# What a template may hold between two pieces of text that it writes one after the other.
GLUE = r"(?:\s|\\n|['\"+~]|-?\}\}|\{\{-?)*"
_NEWLINE = r"(?:\\n|\n)"
_QUOTE = r"\\?[\"']"
NAMED_JSON = rf"\{{{_QUOTE}name{_QUOTE}\s*:"
_JSON_CALL = rf"<tool_call>{GLUE}{NAMED_JSON}"
_ANY_JSON = rf"<tool_call>{GLUE}[\w.\[\]'\"]+\s*\|\s*tojson"
_LINES = rf"<parameter=[^<>]*>{_NEWLINE}"


@dataclass(frozen=True)
class Sign:
    """Words of a template, as a regular expression, and what they prove."""

    words: str
    proves: str


@dataclass(frozen=True)
class Spelling:
    """One way of writing calls: the `signs` that a template must hold and those that it must `never` hold.

    markers: what stands around a call or a block of calls. tokens: tokens that only models of this format have.
    """

    format: str
    signs: tuple[Sign, ...]
    never: tuple[Sign, ...] = ()
    markers: tuple[str, str] = ("", "")
    tokens: tuple[str, ...] = ()


_BLOCK = Sign("<tool_call>", "a call opens with <tool_call>")
_FUNCTION = Sign("<function=", "the name stands in a tag")
_PARAMETER = Sign("<parameter=", "each argument has a tag of its own")
_VALUE_LINES = Sign(_LINES, "a value stands on lines of its own")
_PYTHON_TOOLS = Sign(r"\bpython_tools\b", "tools can be called from Python code")
_SMOLLM = Sign("SmolLM", "the model calls itself SmolLM")
_TAGS = ("<tool_call>", "</tool_call>")

SPELLINGS = (
    Spelling("qwen3_coder", (_BLOCK, _FUNCTION, _VALUE_LINES), markers=_TAGS),
    Spelling("mimo", (_BLOCK, _FUNCTION, _PARAMETER), never=(_VALUE_LINES,), markers=_TAGS),
    Spelling(
        "seed_oss",
        (Sign("<seed:tool_call>", "a call opens with <seed:tool_call>"), _FUNCTION, _PARAMETER),
        markers=("<seed:tool_call>", "</seed:tool_call>"),
        tokens=("<seed:tool_call>",),
    ),
    Spelling(
        "hermes",
        (Sign(_JSON_CALL, "a call is a JSON object after <tool_call>"),),
        never=(_PYTHON_TOOLS, _SMOLLM),
        markers=_TAGS,
    ),
    Spelling(
        "hermes",
        (Sign(_ANY_JSON, "a call is some JSON after <tool_call>"),),
        never=(_FUNCTION, _PYTHON_TOOLS, _SMOLLM),
        markers=_TAGS,
    ),
    Spelling(
        "smollm3",
        (_PYTHON_TOOLS, Sign("<code>", "Python calls stand in <code>"), Sign(_JSON_CALL, "other calls are JSON")),
    ),
    Spelling(
        "smollm3",
        (_SMOLLM, Sign("/no_think", "it has SmolLM3's modes of thinking"), Sign(NAMED_JSON, "a call is a JSON object")),
        never=(_PYTHON_TOOLS,),
    ),
    Spelling(
        "harmony",
        (
            Sign(r"<\|channel\|>commentary", "calls go to the commentary channel"),
            Sign(r"<\|message\|>", "a message has a header"),
            Sign(r" to=", "the header names who is called"),
        ),
        markers=("<|channel|>", "<|call|>"),
        tokens=("<|channel|>", "<|constrain|>", "<|call|>"),
    ),
    Spelling(
        "mistral",
        (Sign(r"\[TOOL_CALLS\]", "calls follow [TOOL_CALLS]"),),
        markers=("[TOOL_CALLS]", ""),
        tokens=("[TOOL_CALLS]",),
    ),
    Spelling(
        "llama3_json",
        # A tool's own declaration has both keys, too, and what it is for between them.
        (
            Sign(
                rf"{NAMED_JSON}(?:(?!description)[^{{}}])*{_QUOTE}parameters{_QUOTE}\s*:",
                "a call is JSON with name and parameters",
            ),
        ),
        tokens=("<|python_tag|>",),
    ),
    Spelling(
        "pythonic",
        (Sign(r"<\|tool_(?:call|list)_start\|>", "calls stand between LFM2's tokens"),),
        markers=("<|tool_call_start|>", "<|tool_call_end|>"),
        tokens=("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    Spelling("pythonic", (Sign(r"\[func\w*\(\w+=", "calls are a Python list of calls"),)),
    Spelling(
        "glm",
        (_BLOCK, Sign("<arg_key>", "names stand in <arg_key>"), Sign("<arg_value>", "values stand in <arg_value>")),
        markers=_TAGS,
        tokens=("<arg_key>", "<arg_value>"),
    ),
    Spelling(
        "kimi",
        (
            Sign(r"<\|tool_calls_section_begin\|>", "calls stand in a section"),
            Sign(r"<\|tool_call_argument_begin\|>", "arguments follow a token of their own"),
        ),
        markers=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        tokens=("<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>"),
    ),
    Spelling(
        "minimax",
        (
            Sign("<minimax:tool_call>", "calls stand in <minimax:tool_call>"),
            Sign("<invoke name=", "a call is an invoke"),
        ),
        markers=("<minimax:tool_call>", "</minimax:tool_call>"),
        tokens=("<minimax:tool_call>",),
    ),
    Spelling(
        "deepseek",
        (
            Sign("<｜tool▁calls▁begin｜>", "calls stand in a section"),
            Sign("<｜tool▁sep｜>", "a token follows the name"),
        ),
        markers=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        tokens=("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
    ),
    Spelling(
        "deepseek",
        (Sign("｜DSML｜", "tags carry the DSML token"), Sign("invoke name=", "a call is an invoke")),
        markers=("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
        tokens=("｜DSML｜",),
    ),
    Spelling(
        "gemma",
        (Sign("<start_function_call>", "calls stand between FunctionGemma's tokens"),),
        markers=("<start_function_call>", "<end_function_call>"),
        tokens=("<start_function_call>", "<end_function_call>"),
    ),
    Spelling(
        "gemma",
        (Sign(r"<\|tool_call>", "calls stand between Gemma 4's tokens"), Sign(r"<tool_call\|>", "both of them")),
        markers=("<|tool_call>", "<tool_call|>"),
        tokens=("<|tool_call>", "<tool_call|>"),
    ),
)

# Tags around thinking.
THINKING = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<|channel>", "<channel|>"),
)
