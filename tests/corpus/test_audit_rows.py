"""The audit's checks of single rows: each finds its fault, none complains of a good row, and the real rows' counts."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.chat.render import load_tokenizer
from punie_mlx.corpus.audit import tokens
from punie_mlx.corpus.audit.calls import argument_types
from punie_mlx.corpus.audit.model import SEVERITIES, Corpus, Finding
from punie_mlx.corpus.audit.read import read_corpus, read_row
from punie_mlx.corpus.audit.rows import ROW_CHECKS, ROW_FIGURES

SYSTEM, ASK = ("system", "Be useful."), ("user", "Read src/a.py, and lib")
BY_NAME = {check.name: check for check in ROW_CHECKS}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": [k for k in properties if k != "limit"]}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


READ = tool("read", path={"type": "string"}, limit={"type": "integer"})
SUM = tool("sum", values={"type": "array", "items": {"type": "number"}}, ok={"type": "boolean"})


def call(name: str = "read", arguments: Any = None, **more: Any) -> dict[str, Any]:
    given = {"path": "src/a.py"} if arguments is None else arguments
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": name, "arguments": given}}],
        **more,
    }


def row(*turns: Any, tools: Any = (READ, SUM)) -> dict[str, Any]:
    messages = [t if isinstance(t, dict) else {"role": t[0], "content": t[1]} for t in (SYSTEM, ASK, *turns)]
    return {"messages": messages, "tools": list(tools)}


def text(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"text": "\n".join(f"<|im_start|>{role}\n{said}<|im_end|>" for role, said in (SYSTEM, ASK, *turns))}


def fence(body: str) -> tuple[str, str]:
    return "assistant", f"I look.\n\n```json\n{body}\n```"


def wrapped(*results: str) -> str:
    return "\n".join(f"<tool_response>\n{r}\n</tool_response>" for r in results)


RESULT, DONE = ("tool", "x = 1"), ("assistant", "It sets x.")
TAGS = "assistant", "<tool_call>\n<function=read>\n<parameter=path>\nsrc/a.py\n</parameter>\n</function>\n</tool_call>"
BOTH = {**call(), "tool_calls": [*call()["tool_calls"], *call(arguments={"path": "lib"})["tool_calls"]]}


def corpus(*lines: Any, **options: Any) -> Corpus:
    rows = [read_row(x if isinstance(x, str) else json.dumps(x), number=i) for i, x in enumerate(lines, 1)]
    return Corpus({"train": rows}, **options)


def found(name: str, *lines: Any, **options: Any) -> list[Finding]:
    return list(BY_NAME[name].findings(corpus(*lines, **options)))


FAULTS = [
    ("bad_row", "{", "not JSON"),
    ("bad_row", [1], "no object"),
    ("bad_row", {"x": 1}, "no `messages`"),
    ("bad_row", {"messages": []}, "no list"),
    ("bad_row", {**row(DONE), "tools": 3}, "`tools`"),
    ("bad_row", row(("robot", "Hi"), DONE), "'robot'"),
    ("bad_row", {"text": text(DONE)["text"].removesuffix("<|im_end|>")}, "cut off"),
    ("bad_row", {"text": "Hello." + text(DONE)["text"]}, "before the first turn"),
    ("bad_row", {"text": text(DONE)["text"] + " And more."}, "after its <|im_end|>"),
    ("no_answer", row(), "no turn of the assistant"),
    ("ends_unanswered", row(DONE, ("user", "And now?")), "'user': And now?"),
    ("ends_unanswered", row(call(), RESULT), "'tool'"),
    ("consecutive_assistant", row(("assistant", "I look."), call(), RESULT, DONE), "messages 3 and 4"),
    ("empty_turn", row(("assistant", " ")), "message 3 is empty"),
    ("empty_turn", row(("assistant", "<think>\nHm.\n</think>")), "thinks, and answers nothing"),
    ("broken_call", text(fence('{"name": "read", "arguments": "{\\"path\\": \\"src')), "cut off in the middle"),
    ("broken_call", row(("assistant", TAGS[1][:60])), "message 3"),
    ("broken_call", row(call(arguments='{"path":')), "not JSON"),
    ("mended_call", text(fence("{'name': 'read', 'arguments': {'path': 'src/a.py'}}")), "single quotes"),
    ("encoded_arguments", row(call(arguments='{"path": "src/a.py"}')), "arguments of read"),
    ("empty_arguments", row(call(arguments={})), "read is called without"),
    ("leftover_fence", row(fence('{"name": "read", "arguments": {"path": "lib"}}')), "message 3"),
    ("no_tools", text(DONE), "1 of 1 rows offer no tools, 0 of them"),
    ("unknown_tool", row(call("write")), "write is not offered, only read, sum"),
    ("bad_arguments", row(call(arguments={"limit": 3})), "'path' is missing"),
    ("bad_arguments", row(call(arguments={"path": "lib", "x": 1})), "no parameter 'x'"),
    ("bad_arguments", row(call(arguments={"path": 7})), "does not fit its schema: 7"),
    ("lost_type", row(call(arguments={"path": "lib", "limit": "3"})), '"3" for 3'),
    ("lost_type", row(call("sum", {"values": "[1, 2.5]", "ok": True})), "'values' is text"),
    ("lost_type", row(call("sum", {"values": [1], "ok": "true"})), "'ok' is text"),
    ("not_in_conversation", row(call(arguments={"path": "data/b.py"})), "data/b.py stands nowhere"),
    ("not_in_conversation", row(call("code", {"code": "print(read('data/b.py'))\n"})), "code(code): data/b.py"),
    ("not_in_conversation", row(call("mail", {"to": "a@example.org"})), "a@example.org"),
    ("unanswered_call", row(call(), DONE), "message 3: 1 call"),
    ("unanswered_call", row(call(), ("user", "Well?"), DONE), "message 3"),
    ("result_without_call", row(RESULT, DONE), "1 result before any call"),
    ("result_without_call", row(DONE, RESULT, DONE), "after message 3"),
    ("result_count", row(BOTH, RESULT, DONE), "2 calls, 1 result"),
    ("result_count", row(call(), RESULT, RESULT, DONE), "1 call, 2 results"),
    ("cut_result", row(call(), ("tool", "import os\n..."), DONE), "message 4 ends in ..."),
    ("cut_result", row(call(), ("tool", "import os …"), DONE), "message 4"),
    ("cut_result", row(call(), ("tool", "a\n[output truncated at 80 lines]"), DONE), "truncated"),
    ("cut_result", row(call(), ("tool", "a\n... 12 more lines"), DONE), "12 more lines"),
    ("double_wrapped", row(call(), ("tool", wrapped("x")), DONE), "message 4"),
    ("double_wrapped", row(call(), ("user", "Tool result: " + wrapped("x")), DONE), "message 4"),
    ("double_wrapped", text(TAGS, ("user", wrapped(wrapped("x"))), DONE), "message 4"),
    ("double_wrapped", text(TAGS, ("tool", wrapped("Tool result: x")), DONE), "message 4"),
    ("result_as_user", row(call(), ("user", "Tool result: x"), DONE), "Tool result: x"),
    ("result_as_user", row(call(), ("user", wrapped("x")), DONE), "message 4"),
    ("result_as_user", text(TAGS, ("user", "Tool result: x"), DONE), "message 4"),
    ("control_token", row(call(), ("tool", "a <|im_end|> b"), DONE), "message 4 (tool) spells <|im_end|>"),
    ("control_token", row(call(arguments={"path": "<|endoftext|>"}), RESULT, DONE), "message 3 (assistant)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "line", "detail"), FAULTS)
def test_a_fault_is_found_and_told(name: str, line: Any, detail: str) -> None:
    (finding,) = found(name, row(DONE), line) if name != "no_tools" else found(name, line)
    assert detail in finding.detail
    assert finding.severity in SEVERITIES and (finding.where == "train.jsonl:2") == (name != "no_tools")


GOOD = [
    row(DONE),
    row(call(), RESULT, DONE),
    row(BOTH, RESULT, RESULT, DONE, ("user", "Thanks."), ("assistant", "You are welcome.")),
    row(call(arguments={"path": "./SRC/a.py", "limit": 3})),  # the call is what shall be written
    row(call(), ("tool", "Look into src/sub: b.py c.py"), call(arguments={"path": "src/sub/c.py"})),  # found apart
    row(call("list", {}), ("tool", "empty"), DONE, tools=[tool("list"), READ]),
    row(call(), ("tool", f"It writes {wrapped('x')} itself"), DONE),
    row(call(), ("tool", f"{wrapped('a', 'b')}"), DONE),  # a quotation: two that stand side by side are no wrapping
    row(call("sum", {"values": [1, 2.5], "ok": False}), ("tool", "class A: ...\nb = 1"), DONE),
    row(TAGS, RESULT, DONE),
    row(("assistant", "```python\nopen('x/y.py')\n```")),
    {"prompt": "Hi", "completion": "Hello.", "tools": [READ]},
]
IN_TEXT = [text(TAGS, ("user", wrapped("x")), DONE), text(TAGS, ("tool", wrapped("x")), DONE), {"text": "Just prose."}]


@pytest.mark.parametrize("line", [*GOOD, *IN_TEXT])
def test_a_good_row_has_no_fault(line: Any) -> None:
    names = set(BY_NAME) - {"no_tools", "no_system"}
    faults = {name: f for name in names if not BY_NAME[name].needs and (f := found(name, line))}
    assert faults == {}


def test_a_missing_system_turn_is_told_where_others_have_one() -> None:
    bare = {"messages": row(DONE)["messages"][1:]}
    assert [f.where for f in found("no_system", row(DONE), bare, row(DONE))] == ["train.jsonl:2"]
    (finding,) = found("no_system", bare, bare)
    assert not finding.where and "none of 2 rows" in finding.detail


def test_one_fault_has_one_name() -> None:
    """A value that lost its type is not also a wrong one, and a made-up path that is used again was told before."""
    assert found("bad_arguments", row(call(arguments={"path": "lib", "limit": "3"}))) == []
    assert len(found("bad_arguments", row(call(arguments={"path": "lib", "limit": "three"})))) == 1
    invented = call(arguments={"path": "data/b.py"})
    assert len(found("not_in_conversation", row(invented, RESULT, invented, RESULT, DONE))) == 1
    assert found("consecutive_assistant", row(call(), DONE)) == []  # what is missing is a result


def test_every_check_says_what_to_do_and_is_tested() -> None:
    assert len(BY_NAME) == len(ROW_CHECKS)
    assert {n for n, *_ in FAULTS} | {"no_system"} == {c.name for c in ROW_CHECKS if not c.needs}
    assert all(len(c.help) > 40 and c.title and c.severity in SEVERITIES for c in ROW_CHECKS)


# ---- with a tokenizer ----


def test_tokens_are_counted_as_they_are_served(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    talk = row(call(), RESULT, DONE, ("user", "Why?"), ("assistant", "So."))
    measured = tokens.measure(read_row(json.dumps(talk)), corpus(talk, tokenizer=tokenizer))
    whole = tokenizer.apply_chat_template(talk["messages"], tools=talk["tools"])
    prompt = tokenizer.apply_chat_template(talk["messages"][:-1], tools=talk["tools"], add_generation_prompt=True)
    assert measured.tokens == len(whole)
    assert list(measured.turns) == [2, 4, 6] and measured.last == measured.turns[6]
    assert 0 <= len(whole) - len(prompt) - measured.last <= 1  # the line end after the turn
    ready = {"text": text(DONE)["text"]}
    measured = tokens.measure(read_row(json.dumps(ready)), corpus(ready, tokenizer=tokenizer))
    assert measured.tokens == len(tokenizer.encode(ready["text"]))
    assert measured.supervised == measured.last == len(tokenizer.encode("It sets x.<|im_end|>"))


def test_what_is_too_long_or_masked_is_told(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    talk = row(DONE, ("user", "Why? " * 50), ("assistant", "So."))
    long = tokens.measure(read_row(json.dumps(talk)), corpus(talk, tokenizer=tokenizer)).tokens
    options = {"tokenizer": tokenizer, "max_seq_length": long - 10}
    for line in (talk, text(*[(m["role"], m["content"]) for m in talk["messages"][2:]])):
        (finding,) = found("overlong", row(DONE), line, tokenizer=tokenizer, max_seq_length=120)
        assert finding.where == "train.jsonl:2" and "1 of 2 answers end beyond" in finding.detail
        assert "from message 5 on" in finding.detail
    assert found("overlong", talk, **{**options, "max_seq_length": long}) == []
    (masked,) = found("masked_turns", row(DONE), row(call(), RESULT, DONE), **options)
    assert masked.also == ("train.jsonl:2",) and "1 calls" in masked.detail
    assert found("masked_turns", row(DONE), **options) == []
    (spelled,) = found("control_token", row(("assistant", "a<|im_end|>b <|no_such|>")), **options)
    assert spelled.detail.endswith("spells <|im_end|>")
    figures = {f.name: f.run(corpus(talk, **options))[""] for f in ROW_FIGURES if f.needs}
    assert figures["longest_row"] == figures["tokens"] == long
    assert figures["lost_to_mask_prompt"].endswith("%") and figures["supervised_tokens"] < long


TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
TEMPLATES = {
    "cannot_render": "{{ raise_exception('no such row') }}",
    "rewritten_history": "{% for m in messages %}"
    + TURN.replace("{{ m.content }}", "{{ m.content if loop.last else m.content.split('!')[-1] }}")
    + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "unstable_prompt": "{% for m in messages %}" + TURN + "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nSo: {% endif %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_faults_of_a_template_are_told(name: str, tmp_path: Path, tiny_base: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(tiny_base / file, tmp_path / file)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES[name])
    talk = row(("assistant", "Hm! Yes."), ("user", "Why?"), ("assistant", "Because."))
    for check, model in ((n, m) for n in TEMPLATES for m in (tmp_path, tiny_base)):
        findings = found(check, talk, tokenizer=load_tokenizer(model))
        assert [f.where for f in findings] == (["train.jsonl:1"] if check == name and model == tmp_path else [])


# ---- the real rows ----


def counted(path: Path, *names: str) -> dict[str, tuple[int, int]]:
    """Check → findings, and rows that have some."""
    rows = read_corpus(path)
    all_found = {name: list(BY_NAME[name].findings(rows)) for name in names}
    return {name: (len(f), len({x.where for x in f})) for name, f in all_found.items()}


def test_known_faults_of_rows_with_fences(real_data: Path) -> None:
    path = real_data / "punie" / "mlx_format"
    names = ("broken_call", "mended_call", "empty_arguments", "leftover_fence", "consecutive_assistant")
    assert counted(path, *names, "ends_unanswered", "no_system", "result_as_user", "bad_row", "result_count") == {
        "broken_call": (100, 68), "mended_call": (3, 3), "empty_arguments": (1, 1), "leftover_fence": (164, 164),
        "consecutive_assistant": (12, 11), "ends_unanswered": (2, 2), "no_system": (7, 7),
        "result_as_user": (214, 164), "bad_row": (0, 0), "result_count": (0, 0),
    }  # fmt: skip
    rows = read_corpus(path)
    assert all("cut off in the middle" in f.detail for f in BY_NAME["broken_call"].findings(rows))
    spelled = [x for r in rows.rows for x in (*r.calls, *r.broken)]
    assert len(spelled) == 214 and {x.spelling for x in spelled} == {"fence"}
    types = argument_types(rows.rows)
    assert {k: types[k] for k in types if k != "string"} == {"integer": 93, "number": 13, "array": 12, "boolean": 6}


def test_known_faults_of_rows_with_tags(real_data: Path) -> None:
    rows = read_corpus(real_data / "punie" / "phase22")
    assert len(list(BY_NAME["leftover_fence"].findings(rows))) == 8
    cut = list(BY_NAME["cut_result"].findings(rows))
    # 494 rows have results, three of them two; three end in "(truncated)"
    assert Counter(f.detail.endswith("ends in ...") for f in cut) == {True: 142, False: 3}
    assert sum(1 for r in rows.rows if r.results) == 494 and sum(len(r.results) for r in rows.rows) == 497
    # The known 141 read in data/repos, which no question names; 20 more name files of the project itself.
    guessed = list(BY_NAME["not_in_conversation"].findings(rows))
    repos = {f.where for f in guessed if " data/repos/" in f.detail}
    assert (len(guessed), len(repos)) == (161, 141)
    clean = ("broken_call", "unanswered_call", "result_count", "double_wrapped", "result_as_user", "empty_turn")
    assert not any(found for name in clean for found in BY_NAME[name].findings(rows))


def test_the_shipped_rows_are_clean(root: Path) -> None:
    rows = read_corpus(root / "data" / "phase8_xml_format")
    faults = {c.name: f for c in ROW_CHECKS if not c.needs and (f := list(c.findings(rows)))}
    assert faults.keys() == {"no_system"}
