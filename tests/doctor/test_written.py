"""What raw tokens amount to: a native call, one that a forgiving reader saves, fences, code, words, or nothing."""

from __future__ import annotations

import re

import pytest

from punie_mlx.doctor import written
from punie_mlx.doctor.probes import PROBES
from punie_mlx.doctor.written import (
    CODE,
    FENCE,
    LENIENT,
    MALFORMED,
    NATIVE,
    OTHER,
    PROSE,
    UNFINISHED,
    Opener,
    look,
    mostly,
    shown,
)
from punie_mlx.toolcalls import formats

CONTROL = {3: "<tool_call>", 4: "</tool_call>", 5: "<think>", 6: "</think>"}
PROBE = PROBES[0]
XML = "\n<function=read_file>\n<parameter=path>\nsrc/app.py\n</parameter>\n</function>\n"
JSON = '{"name": "read_file", "arguments": {"path": "src/app.py"}}'
OPENERS = {
    "qwen3_coder": Opener("<tool_call>", (3,), "<tool_call>\n<function=", (3, 10, 11)),
    "hermes": Opener("<tool_call>", (3,), '<tool_call>\n{"name": "', (3, 10, 12)),
    "llama3_json": Opener('{"name": "', (20, 21, 22), '{"name": "', (20, 21, 22)),
    "mistral": Opener("[TOOL_CALLS]", (30, 31), "[TOOL_CALLS]", (30, 31)),
}


def pieces(text: str) -> list[tuple[int, str]]:
    """`text` in tokens; a control token behind `~` is spelled out in ordinary ones."""
    ids = {spelling: token for token, spelling in CONTROL.items()}
    parts = [p for p in re.split(r"(~?</?(?:tool_call|think)>)", text) if p]
    return [(ids.get(p, 100), p.removeprefix("~")) for p in parts]


CASES = [
    # the model's own
    ("qwen3_coder", f"<tool_call>{XML}</tool_call>", NATIVE, "", True),
    ("qwen3_coder", f"I will look.\n\n<tool_call>{XML}</tool_call>", NATIVE, "", True),
    ("qwen3_coder", f"<think>Hm, ```json\n{JSON}\n```</think>\n\n<tool_call>{XML}</tool_call>", NATIVE, "", True),
    ("hermes", f"<tool_call>\n{JSON}\n</tool_call>", NATIVE, "", True),
    ("hermes", f"<tool_call>{JSON}</tool_call>", NATIVE, "", True),
    ("llama3_json", JSON.replace("arguments", "parameters"), NATIVE, "", True),
    ("mistral", '[TOOL_CALLS][{"name": "read_file", "arguments": {"path": "src/app.py"}}]', NATIVE, "", True),
    # read, but by a forgiving reader only
    ("qwen3_coder", XML.strip(), LENIENT, "never came", True),
    ("qwen3_coder", f"<tool_call>\n{JSON}\n</tool_call>", LENIENT, "another format's call", True),
    ("hermes", f"<tool_call>{XML}</tool_call>", LENIENT, "another format's call", True),
    ("hermes", f"<tool_call>\n{JSON[:-1]}\n</tool_call>", LENIENT, "repaired", True),
    # another format's
    (None, f"<tool_call>\n{JSON}\n</tool_call>", OTHER, "hermes", True),
    (None, f"<tool_call>{XML}</tool_call>", OTHER, "qwen3_coder", True),
    ("qwen3_coder", f"[TOOL_CALLS][{JSON}]", OTHER, "mistral", True),
    # fences
    ("qwen3_coder", f"```json\n{JSON}\n```", FENCE, "", True),
    ("qwen3_coder", f"Sure:\n```\n{JSON}\n```\nThat shows it.", FENCE, "", True),
    (None, f"```json\n{JSON}\n```", FENCE, "", True),
    (None, f"<think>I need the file.</think>\n```json\n{JSON}\n```", FENCE, "", True),
    ("qwen3_coder", f"```json\n{JSON.replace('app.py', 'app.py' + chr(34))}\n```", FENCE, "cannot be read", False),
    ("qwen3_coder", '```json\n{"tool": "read_file", "args": {"path": "src/app.py"}}\n```', FENCE, "", False),
    # code
    ("qwen3_coder", '```python\nread_file("src/app.py")\n```', CODE, "", True),
    ("qwen3_coder", 'text = read_file(path="src/app.py")', CODE, "", True),
    ("hermes", '```tool_code\nprint(read_file(path="src/app.py"))\n```', CODE, "no reader", False),
    ("hermes", '```python\np = "src/app.py"\nfor line in read_file(p):\n    print(line)\n```', CODE, "", False),
    # like a call, and none
    ("qwen3_coder", JSON, MALFORMED, "without the markers", True),
    ("qwen3_coder", "<tool_call>\n<function=rename the file", MALFORMED, "", False),
    ("qwen3_coder", "<tool_call>", MALFORMED, "is opened", False),
    ("hermes", f"~<tool_call>\n{JSON}\n~</tool_call>", MALFORMED, "spelled out", True),
    ("hermes", '<tool_call>\n{"name": "read_file", "arg', MALFORMED, "", False),
    # a marker that is only thought of
    ("hermes", f"<think>One opens it by <tool_call>.</think>\n\n```json\n{JSON}\n```", FENCE, "", True),
    ("qwen3_coder", "<think>One opens it by <tool_call>.</think>\n\nThe file is not there.", PROSE, "", False),
    # words
    ("qwen3_coder", "The file holds the application.", PROSE, "", False),
    ("qwen3_coder", "Call read_file(path) to see it; `run` it afterwards.", PROSE, "", False),
    ("qwen3_coder", "```bash\ncat src/app.py\n```", PROSE, "", False),
    ("qwen3_coder", 'Its settings:\n```json\n{"name": "punie", "port": 8123}\n```', PROSE, "", False),
    (None, "", PROSE, "says nothing", False),
    ("qwen3_coder", "<think>It may be", PROSE, "says nothing", False),
]


@pytest.mark.parametrize(("wire", "text", "kind", "note", "whole"), CASES, ids=range(len(CASES)))
def test_what_an_answer_amounts_to(wire, text, kind, note, whole):
    """`whole`: the call that was wanted is read in it."""
    opener = OPENERS.get(wire or "")
    given = pieces(text)
    if wire == "mistral":
        given = [(30, "[TOOL_CALLS"), (31, "]"), *pieces(text.removeprefix("[TOOL_CALLS]"))]
    found = look(given, formats.get(wire) if wire else None, PROBE.offered, opener=opener, control=CONTROL)
    assert (found.kind, note in found.note) == (kind, True), found
    assert (list(found.calls) == [PROBE.wants]) == whole, found
    assert found.is_call == (kind not in (PROSE, UNFINISHED))


def test_thinking_that_is_cut_off_says_nothing_of_the_answer():
    wire = formats.get("qwen3_coder")
    assert look(pieces("<think>It may be"), wire, PROBE.offered, control=CONTROL, cut=True).kind == UNFINISHED
    opened = look(pieces("It may be"), wire, PROBE.offered, control=CONTROL, in_reasoning=True, cut=True)
    assert opened.kind == UNFINISHED
    assert look(pieces("It may be"), None, PROBE.offered, in_reasoning=True, cut=True).kind == UNFINISHED


def test_a_call_that_is_cut_off_says_so():
    given = pieces("<tool_call>\n<function=read_file>\n<parameter=path>\nsrc/a")
    found = look(given, formats.get("qwen3_coder"), PROBE.offered, control=CONTROL, cut=True)
    assert found.kind == MALFORMED and "cut off" in found.note and not found.calls


def test_only_a_rescue_reads_what_is_outside_the_format():
    for text, rescued in (
        (f"```json\n{JSON}\n```", True),
        ('```json\n{"name": "no_tool", "arguments": {}}\n```', False),
    ):
        found = look(pieces(text), formats.get("qwen3_coder"), PROBE.offered)
        assert (found.kind, found.rescued) == (FENCE, rescued)


def test_what_is_written_mostly():
    assert mostly([FENCE, NATIVE, NATIVE]) == NATIVE
    assert mostly([PROSE, FENCE]) == FENCE and mostly([FENCE, PROSE]) == FENCE
    assert mostly([CODE, FENCE]) == CODE and mostly([PROSE, PROSE, FENCE]) == PROSE
    assert mostly([UNFINISHED, UNFINISHED, PROSE]) == PROSE and mostly([UNFINISHED]) is None and mostly([]) is None


def test_characters_of_private_use_are_shown_by_their_numbers():
    assert shown("a\ue0c9b") == "a<U+E0C9>b"


def test_every_kind_is_told():
    assert {case[2] for case in CASES} | {UNFINISHED} == set(written.KINDS)
