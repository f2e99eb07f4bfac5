"""The audit's checks over several rows: copies, leaks, labels that disagree, and what a corpus is made of."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from punie_mlx.corpus.audit import across, balance, near
from punie_mlx.corpus.audit.model import Corpus, Finding
from punie_mlx.corpus.audit.read import read_corpus, read_row
from punie_mlx.corpus.suite import read_suite
from punie_mlx.errors import DataError

CHECKS = {check.name: check for check in (*across.CHECKS, *balance.CHECKS)}
FIGURES = {figure.name: figure for figure in balance.FIGURES}
LONG = "The release notes say that the parser reads every file twice, so the second pass should be dropped before "


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


def asked(
    query: str, *calls: Any, answer: str = "Done.", tools: tuple[str, ...] = ("look", "write"), **more: Any
) -> Any:
    """A row: a query, then calls (a name, or a name with its arguments) or else an answer."""
    named = [c if isinstance(c, tuple) else (c, {}) for c in calls]
    given = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in named]
    reply = {"role": "assistant", "content": more.pop("preamble", "") if given else answer}
    messages = [{"role": "user", "content": query}, reply | ({"tool_calls": given} if given else {})]
    return {"messages": messages, "tools": [tool(t) for t in tools], **more}


def corpus(tmp_path: Path, suites: tuple[Any, ...] = (), **splits: list[Any]) -> Corpus:
    for split, rows in splits.items():
        text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return read_corpus(tmp_path, suites=suites)


def find(name: str, corpus: Corpus) -> list[Finding]:
    return list(CHECKS[name].findings(corpus))


def places(name: str, corpus: Corpus) -> list[tuple[str, tuple[str, ...]]]:
    return [(f.where, f.also) for f in find(name, corpus)]


# ---- copies ----


def test_a_copy_is_found_in_its_split_only(tmp_path: Path) -> None:
    one, other = asked("Read a.py", "look"), asked("Read b.py", "look")
    found = corpus(tmp_path, train=[one, other, {**one, "id": 7}, one], valid=[other])
    assert places("duplicate", found) == [
        ("train.jsonl:3", ("train.jsonl:1",)),
        ("train.jsonl:4", ("train.jsonl:1",)),
    ]


def test_tools_and_results_make_another_row(tmp_path: Path) -> None:
    found = corpus(tmp_path, train=[asked("Read a.py", "look"), asked("Read a.py", "look", tools=("look",))])
    assert places("duplicate", found) == []


def test_a_long_row_with_another_word_is_nearly_a_copy_and_a_template_is_not(tmp_path: Path) -> None:
    rows = [
        asked(LONG + "April", answer=" ".join(f"step {i}" for i in range(20))),
        asked(LONG + "May", answer=" ".join(f"step {i}" for i in range(20))),
        asked("Read a.py", "look"),
        asked("Read b.py", "look"),
    ]
    assert places("near_duplicate", corpus(tmp_path, train=rows)) == [("train.jsonl:2", ("train.jsonl:1",))]


def test_copies_are_not_told_again_as_near_copies(tmp_path: Path) -> None:
    row = asked(LONG, answer=LONG)
    assert places("near_duplicate", corpus(tmp_path, train=[row, row])) == []


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_the_join_finds_what_comparing_every_pair_finds(threshold: float) -> None:
    r = Random(3)
    words = [str(i) for i in range(40)]
    sets = [frozenset(r.choices(words[: r.choice([8, 40])], k=r.randint(0, 9))) for _ in range(250)]
    index, joined = near.NearIndex(sets, threshold), set()
    for i, x in enumerate(sets):
        joined |= {(m.index, i) for m in index.matches(x)}
        index.add(i, x)
    pairs = ((i, j) for j in range(len(sets)) for i in range(j) if sets[i] and sets[j])
    compared = {(i, j) for i, j in pairs if len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j])}
    assert joined == compared
    assert compared


# ---- leaks between splits ----


def test_rows_and_queries_that_stand_in_two_splits(tmp_path: Path) -> None:
    whole, query = asked("Read a.py", "look"), asked("Run  the Tests!", "write")
    train = [whole, asked("run the tests", "look"), asked("Something else", "look")]
    found = corpus(tmp_path, train=train, valid=[whole, query], test=[asked("Anything new", "look"), query])
    assert places("leak_row", found) == [
        ("valid.jsonl:1", ("train.jsonl:1",)),
        ("test.jsonl:2", ("valid.jsonl:2",)),
    ]
    assert [f.severity for f in find("leak_row", found)] == ["error", "warning"]
    assert places("leak_query", found) == [
        ("valid.jsonl:1", ("train.jsonl:1",)),
        ("valid.jsonl:2", ("train.jsonl:2",)),
        ("test.jsonl:2", ("train.jsonl:2",)),  # told once, though it stands in valid, too
    ]
    assert Counter(f.split for f in find("leak_query", found)) == {"valid": 2, "test": 1}


@pytest.mark.parametrize(
    ("known", "sought", "leaks"),
    [
        ("Explain duck typing", "Can you explain duck typing to me?", True),
        ("Find classes inheriting from Base", "Please find the class inherited from Base", True),
        ("Find classes inheriting from Base", "Find classes inheriting from Model", False),
        ("Difference between REST and SQL?", "Difference between SQL and REST?", True),
        ("List src/pkg", "List pkg/src", False),
        ("Start the server on port 8001", "Start the server on port 8010", False),
        ("Find all files that import types", "Find all files that import typer", False),
        (LONG + "the first of May", LONG + "the first of June", True),
    ],
)
def test_queries_that_are_nearly_the_same(tmp_path: Path, known: str, sought: str, leaks: bool) -> None:
    found = corpus(tmp_path, train=[asked(known, "look")], valid=[asked(sought, "look")])
    assert places("leak_near", found) == ([("valid.jsonl:1", ("train.jsonl:1",))] if leaks else [])
    assert places("leak_query", found) == []


def test_normal_forms() -> None:
    assert near.normalize("  Ｒead\tthe FILE: a.py? ") == "read the file a py"
    assert near.normalize("?!") == "?!"
    assert near.reworded("Can you?") == near.reworded("can you")
    assert near.shingles("") == frozenset()


def test_one_file_alone_leaks_nowhere(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(asked("Read a.py", "look")) + "\n")
    found = read_corpus(tmp_path / "rows.jsonl")
    assert list(found.splits) == ["rows"]
    assert find("leak_query", found) == []


# ---- leaks into suites ----


def test_rows_that_ask_what_a_suite_asks(tmp_path: Path) -> None:
    queries = ["Read a.py", "Explain duck typing", "Say what is new in this file since the last release"]
    cases = [
        {"id": f"case-{i}", "category": "x", "query": q, "tools": [], "expect": {"calls": []}}
        for i, q in enumerate(queries)
    ]
    (tmp_path / "suite").mkdir()
    path = tmp_path / "suite" / "held.jsonl"
    path.write_text("".join(json.dumps(c) + "\n" for c in cases))
    rows = [
        asked("read A.PY", "look"),
        asked("Please explain duck typing"),
        asked("Now say what is new in this file since yesterday"),
    ]
    found = corpus(tmp_path, (read_suite(path),), train=rows, valid=[asked("Read a.py", "look")])
    assert [(f.where, f.also, f.severity) for f in find("leak_suite", found)] == [
        ("train.jsonl:1", ("held.jsonl#case-0",), "error"),
        ("valid.jsonl:1", ("held.jsonl#case-0",), "warning"),
    ]
    assert places("leak_suite_near", found) == [("train.jsonl:2", ("held.jsonl#case-1",))]
    (overlap,) = find("suite_overlap", found)
    assert overlap.detail.startswith("1 of 3 cases of held.jsonl")
    assert overlap.also == ("train.jsonl:3",)


# ---- labels ----


@pytest.mark.parametrize(
    ("first", "second", "severity"),
    [
        (asked("Read it", "look"), asked("read it."), "error"),
        (asked("Read it", "look"), asked("Read it", "write"), "warning"),
        (asked("Read it", ("look", {"p": 1})), asked("Read it", ("look", {"p": True})), "note"),
        (asked("Read it", "look", "write"), asked("Read it", "write", "look"), None),
        (asked("Read it", answer="One"), asked("Read it", answer="Two"), None),
        (asked("Read it", "look"), asked("Read it", tools=("write",)), None),
    ],
)
def test_labels_that_disagree(tmp_path: Path, first: Any, second: Any, severity: str | None) -> None:
    found = find("conflict", corpus(tmp_path, train=[asked("Other", "look"), first, second]))
    assert [(f.where, f.also, f.severity) for f in found] == (
        [("train.jsonl:2", ("train.jsonl:3",), severity)] if severity else []
    )


def test_a_call_that_cannot_be_read_is_no_label(tmp_path: Path) -> None:
    cut = '```json\n{"name": "look", "arguments": {"path": "a'
    found = corpus(tmp_path, train=[asked("Read it", "look"), asked("Read it", answer=cut)])
    assert found.rows[1].broken
    assert find("conflict", found) == []


# ---- what it is made of ----


@pytest.mark.parametrize(("direct", "findings"), [(1, 1), (4, 0), (12, 0), (13, 1)])
def test_the_share_of_direct_answers(tmp_path: Path, direct: int, findings: int) -> None:
    rows = [asked(f"q {i}") if i < direct else asked(f"q {i}", "look") for i in range(20)]
    found = corpus(tmp_path, train=rows, valid=[asked("only direct")])
    assert len(find("direct_share", found)) == findings
    assert FIGURES["direct"].run(found)["train"] == {"count": direct, "share": direct / 20}


def test_shares_of_the_tools(tmp_path: Path) -> None:
    tools = ("look", "write", "list", "never")
    rows = [asked(f"q {i}", "look" if i < 15 else "list" if i < 18 else "write", tools=tools) for i in range(20)]
    found = corpus(tmp_path, train=rows, valid=[asked("other", "never", tools=tools)])
    assert "look has 15 of 20 calls" in find("tool_dominance", found)[0].detail
    assert [f.detail for f in find("tool_unused", found)] == ["never is offered in 20 rows and never called"]
    assert [(f.where, f.also, f.detail) for f in find("tool_rare", found)] == [
        ("train.jsonl:19", ("train.jsonl:20",), "write is called 2 times")
    ]


def test_a_corpus_of_several_pieces(tmp_path: Path) -> None:
    fence = "```json\n" + json.dumps({"name": "look", "arguments": {}}) + "\n```"
    text = f"<|im_start|>user\nRead it<|im_end|>\n<|im_start|>assistant\n{fence}<|im_end|>"
    rows = [asked("a", "look"), asked("b", "look"), {"text": text}, {"prompt": "Read it", "completion": "No."}]
    found = corpus(tmp_path, train=rows)
    assert Counter(r.format for r in found.rows) == {"messages": 2, "text": 1, "completion": 1}
    assert {f.where for f in find("mixed_shapes", found)} == {"train.jsonl:3", "train.jsonl:4"}
    assert places("mixed_spellings", found) == [("train.jsonl:3", ())]
    assert places("mixed_tools", found) == [("train.jsonl:3", ("train.jsonl:4",))]
    assert find("mixed_shapes", corpus(tmp_path, train=rows[:2])) == []


def test_text_before_some_calls(tmp_path: Path) -> None:
    rows = [asked(f"q {i}", "look", preamble="Let me look." if i % 2 else "") for i in range(20)]
    (found,) = find("preamble_drift", corpus(tmp_path, train=rows))
    assert "10 of 20 turns" in found.detail
    assert len(found.also) == 10
    assert find("preamble_drift", corpus(tmp_path, train=rows[::2] * 2)) == []


def test_a_preamble_that_names_another_tool(tmp_path: Path) -> None:
    tools = ("read_file", "run_code")
    rows = [
        asked("a", "run_code", tools=tools, preamble="I'll use the `read_file` tool."),
        asked("b", "run_code", tools=tools, preamble="I'll use the `run_code` tool."),
        asked("c", ("run_code", {"code": "read_file('x')"}), tools=tools, preamble="I'll use read_file."),
    ]
    assert places("preamble_tool", corpus(tmp_path, train=rows)) == [("train.jsonl:1", ())]


# ---- reading ----


@pytest.mark.parametrize(
    ("content", "spelling"),
    [
        ('Let me.\n<tool_call>\n{"name": "look", "arguments": {"p": "x"}}\n</tool_call>', "qwen3_coder"),
        ("Let me.\n<tool_call>\n<function=look>\n<parameter=p>\nx</parameter></function></tool_call>", "qwen3_coder"),
        ('Let me.\n```json\n{"name": "look", "arguments": {"p": "x"}}\n```', "fence"),
        ('Let me.[TOOL_CALLS][{"name": "look", "arguments": {"p": "x"}}]', "mistral"),
    ],
)  # fmt: skip
def test_calls_are_read_however_they_are_spelled(content: str, spelling: str) -> None:
    row = read_row(json.dumps({"messages": [{"role": "assistant", "content": content}]}))
    assert [(c.name, c.arguments, c.turn, c.spelling) for c in row.calls] == [("look", {"p": "x"}, 0, spelling)]
    assert row.turns[0].preamble == "Let me."


def test_a_text_row_is_taken_apart() -> None:
    schema = json.dumps(tool("look"))
    text = (
        f"<|im_start|>system\nTools:\n<tools>\n{schema}\n</tools><|im_end|>\n<|im_start|>user\nRead it<|im_end|>\n"
        '<|im_start|>assistant\n<think>\nHm.\n</think>\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n1\n</tool_response>\nand then?<|im_end|>\n"
        "<|im_start|>assistant\nIt is 1."
    )
    row = read_row(json.dumps({"text": text}))
    assert list(row.offered) == ["look"]
    assert row.queries == ["Read it", "and then?"]
    assert row.results == [(3, "1")]
    assert [t.text for t in row.assistant] == ["", "It is 1."]
    assert row.assistant[0].reasoning.strip() == "Hm."


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", "{}", '{"messages": []}', '{"messages": [1]}', '{"messages": [{"role": "user", "content": 3}]}',
     '{"messages": [{"role": "user", "content": "x"}], "tools": "{"}', '{"prompt": 1, "completion": "x"}'],
)  # fmt: skip
def test_what_is_no_row_is_read_as_a_bad_one(line: str) -> None:
    row = read_row(line)
    assert row.format == "bad"
    assert row.problem
    assert row.turns == ()


def test_bytes_that_are_no_text_stop_nothing(tmp_path: Path) -> None:
    good = json.dumps(asked("Read it", "look")).encode()
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\n\xff\xfe\n" + good)
    found = read_corpus(tmp_path)
    assert [(r.where, r.format) for r in found.rows] == [
        ("train.jsonl:1", "messages"), ("train.jsonl:3", "bad"), ("train.jsonl:4", "messages"),
    ]  # fmt: skip
    for check in CHECKS.values():
        list(check.findings(found))


def test_a_corpus_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        read_corpus(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_corpus(tmp_path / "absent")
