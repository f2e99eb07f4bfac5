"""`audit --fix`: what has one right answer is mended, the rest is left; nothing is touched that needs nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.corpus.audit import fix as fixing
from punie_mlx.corpus.audit.fix import FIXED, HOPELESS, MENDED, Fixed, fix
from punie_mlx.corpus.audit.model import ERROR, Audit
from punie_mlx.corpus.audit.read import read_corpus, read_row
from punie_mlx.corpus.audit.repair import repair
from punie_mlx.corpus.audit.run import CHECKS, audit
from punie_mlx.corpus.audit.turns import unwrap
from punie_mlx.corpus.structure import BadRow
from punie_mlx.corpus.suite import read_suite
from punie_mlx.errors import OutputError
from punie_mlx.toolcalls.calls import ToolCall
from punie_mlx.toolcalls.formats import FORMATS

PROPERTIES = {"path": {"type": "string"}, "limit": {"type": "integer"}, "tags": {"type": "array"}}
TOOLS = [{"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": PROPERTIES}}}]
DONE = ("assistant", "Done.")


def row(query: str, *turns: Any, **more: Any) -> dict[str, Any]:
    found = [t if isinstance(t, dict) else {"role": t[0], "content": t[1]} for t in (("user", query), *turns)]
    return {"messages": found, "tools": TOOLS, **more}


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "read", "arguments": arguments}}], **more}


def fence(body: str) -> tuple[str, str]:
    return "assistant", f"I look.\n\n```json\n{body}\n```"


def text(*turns: tuple[str, str]) -> dict[str, str]:
    return {"text": "\n".join(f"<|im_start|>{role}\n{said}<|im_end|>" for role, said in turns)}


class Run:
    """A corpus of the lines of each split, its audit, its fix, and the audit of what that wrote."""

    def __init__(self, folder: Path, splits: dict[str, list[Any]], suites: Any = (), **options: Any) -> None:
        self.source, self.out = folder / "in", folder / "out"
        self.source.mkdir()
        for name, lines in splits.items():
            content = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
            (self.source / f"{name}.jsonl").write_text(content)
        before = {p: p.read_bytes() for p in self.source.iterdir()}
        self.before: Audit = audit(read_corpus(self.source, suites=suites))
        self.fixed: Fixed = fix(self.before.corpus, self.before.findings, self.out, **options)
        self.after = audit(read_corpus(self.out, suites=suites))
        self.report = json.loads((self.out / "audit-fix.json").read_text())
        assert before == {p: p.read_bytes() for p in self.source.iterdir()}, "the source was touched"
        self._adds_up()

    def _adds_up(self) -> None:
        n = self.report["rows"]
        assert n["before"] - n["dropped"] - n["quarantined"] == n["after"] == len(self.after.corpus.rows)
        actions = Counter(c["action"] for c in self.report["changes"])
        assert all(n[action] == actions[action] for action in ("rewritten", "dropped", "quarantined"))
        assert len((self.out / "quarantine.jsonl").read_text().splitlines()) == n["quarantined"]
        assert {name: c["after"] for name, c in self.report["findings"].items() if c["after"]} == counts(self.after)
        assert {name: c["before"] for name, c in self.report["findings"].items() if c["before"]} == counts(self.before)

    def rows(self, split: str = "train") -> list[dict[str, Any]]:
        return [json.loads(x) for x in (self.out / f"{split}.jsonl").read_text().splitlines()]

    @property
    def changes(self) -> dict[str, tuple[str, list[str]]]:
        return {c["where"]: (c["action"], c["why"]) for c in self.report["changes"]}


def counts(found: Audit) -> dict[str, int]:
    return dict(Counter(f.check for f in found.findings))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    return lambda *train, **options: Run(tmp_path, {"train": list(train), **options.pop("splits", {})}, **options)


MENDS = [
    ("mended_call", row("q", fence("{'name': 'read', 'arguments': {'path': 'a'}}")), {"path": "a"}),
    ("encoded_arguments", row("q", call('{"path": "a"}')), {"path": "a"}),
    ("leftover_fence", row("q", fence('{"name": "read", "arguments": {"limit": 2}}')), {"limit": 2}),
    ("lost_type", row("q", call({"limit": "3", "tags": '["x"]', "path": "3"})),
     {"limit": 3, "tags": ["x"], "path": "3"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "line", "arguments"), MENDS)
def test_calls_are_restored(run: Callable[..., Run], name: str, line: Any, arguments: Any) -> None:
    done = run(row("other", DONE), line)
    made = done.rows()[1]["messages"][1]["tool_calls"][0]["function"]
    assert made == {"name": "read", "arguments": arguments}
    assert json.dumps(made["arguments"]) == json.dumps(arguments)
    action, why = done.changes["train.jsonl:2"]
    assert action == "rewritten" and name in why and name not in counts(done.after)


WRAPPED = "<tool_response>\nx = 1\n</tool_response>"
TWICE = f"<tool_response>\n{WRAPPED}\n</tool_response>"


@pytest.mark.parametrize(
    "result", [("tool", WRAPPED), ("tool", TWICE), ("tool", "Tool result: x = 1"), ("user", WRAPPED), ("user", TWICE),
               ("user", "Tool result: x = 1"), ("user", f"Tool result: {WRAPPED}")]
)  # fmt: skip
def test_results_become_tool_turns_wrapped_by_nobody(run: Callable[..., Run], result: tuple[str, str]) -> None:
    done = run(row("q", call({"path": "a"}, content="I look."), result, DONE))
    assert done.rows()[0]["messages"][2] == {"role": "tool", "content": "x = 1"}
    assert not {"double_wrapped", "result_as_user"} & counts(done.after).keys()


def test_turns_are_joined_and_loose_ends_cut(run: Callable[..., Run]) -> None:
    done = run(
        row("q", ("assistant", "I look."), call({"path": "a"}, content="Now."), ("tool", "x"), DONE, ("user", "Bye")),
        row("r", ("assistant", "One."), ("assistant", "Two."), ("assistant", "Three.")),
    )
    first, second = (r["messages"] for r in done.rows())
    assert [m["role"] for m in first] == ["user", "assistant", "tool", "assistant"]
    assert first[1]["content"] == "I look.\n\nNow." and first[1]["tool_calls"]
    assert second[1:] == [{"role": "assistant", "content": "One.\n\nTwo.\n\nThree."}]
    assert not {"consecutive_assistant", "ends_unanswered"} & counts(done.after).keys()


HOPELESS_ROWS = [
    ("bad_row", "{"),
    ("no_answer", {"messages": [{"role": "user", "content": "Hi"}]}),
    ("broken_call", row("a", fence('{"name": "read", "arguments": "{\\"path\\": \\"a'))),
    ("empty_turn", row("b", ("assistant", ""))),
    ("result_without_call", row("c", ("tool", "x"), DONE)),
]


def test_what_cannot_be_mended_is_kept_apart(run: Callable[..., Run]) -> None:
    assert {name for name, _ in HOPELESS_ROWS} == set(HOPELESS)
    good = row("q", DONE)
    done = run(good, *[line for _, line in HOPELESS_ROWS])
    assert done.rows() == [good]
    entries = [json.loads(x) for x in (done.out / "quarantine.jsonl").read_text().splitlines()]
    assert sorted((e["line"], e["reason"]) for e in entries) == [
        (n, name) for n, (name, _) in enumerate(HOPELESS_ROWS, 2)
    ]
    assert all(e["detail"] and e["row"] for e in entries)
    assert not set(HOPELESS) & counts(done.after).keys()


def test_copies_and_leaks_go_out_of_training(tmp_path: Path) -> None:
    suite = tmp_path / "suite.jsonl"
    case = {"id": "1", "category": "c", "query": "What does the suite ask?", "tools": [], "expect": {"calls": []}}
    suite.write_text(json.dumps(case) + "\n")
    held = row("Which is the row in both?", DONE)
    train = [
        row("A row of its own", DONE),
        row("A row of its own", DONE),
        held,
        row("Which query is in test?", ("assistant", "Yes.")),
        row("What does the suite ask?", DONE),
        row("Is this query also in a broken row?", DONE),
    ]
    test = [row("Which query is in test?", DONE), row("Is this query also in a broken row?", ("assistant", ""))]
    done = Run(tmp_path, {"train": train, "valid": [held], "test": test}, [read_suite(suite)])
    assert done.changes == {
        "train.jsonl:2": ("dropped", ["duplicate"]),
        "train.jsonl:3": ("dropped", ["leak_row", "leak_query"]),
        "train.jsonl:4": ("dropped", ["leak_query"]),
        "train.jsonl:5": ("dropped", ["leak_suite"]),
        "test.jsonl:2": ("quarantined", ["empty_turn"]),
    }
    details = {c.where: c.detail for c in done.fixed.changes}
    assert "train.jsonl:1" in details["train.jsonl:2"] and "valid.jsonl:1" in details["train.jsonl:3"]
    assert "suite.jsonl#1" in details["train.jsonl:5"]
    assert done.rows() == [train[0], train[5]] and done.rows("valid") == [held]
    assert not {f.check for f in done.after.findings} & set(FIXED)


def test_a_copy_that_only_mending_shows_is_dropped(run: Callable[..., Run]) -> None:
    spelled = fence('{"name": "read", "arguments": {"path": "a"}}')
    copies = [
        row("q", spelled),
        row("q", ("assistant", spelled[1].replace("```json", "```"))),
        row("z", DONE),
        row("z", DONE),
    ]
    done = run(*copies)
    assert done.changes["train.jsonl:2"] == ("dropped", ["duplicate"]) and len(done.rows()) == 2


def test_rows_that_need_nothing_are_the_same_bytes(tmp_path: Path) -> None:
    odd = (
        '{"tools": [],  "messages" : [{"role":"user","content":"\\u00e9 \\ud83d"},{"role":"assistant","content":"é"}]}'
    )
    lines = [json.dumps(row("a", DONE)), odd + "\r", json.dumps(row("b", ("assistant", "1"), ("assistant", "2")))]
    (tmp_path / "train.jsonl").write_bytes("\n".join(lines).encode())  # no line end after the last
    found = audit(read_corpus(tmp_path / "train.jsonl"))
    fix(found.corpus, found.findings, tmp_path / "out")
    written = (tmp_path / "out" / "train.jsonl").read_bytes().split(b"\n")
    assert written[:2] == [line.encode() for line in lines[:2]] and written[3:] == [b""]
    assert json.loads(written[2])["messages"][1]["content"] == "1\n\n2"


def test_one_text_that_must_be_structured_makes_rows_of_all(run: Callable[..., Run]) -> None:
    tags = "<tool_call>\n<function=read>\n<parameter=path>\na\n</parameter>\n</function>\n</tool_call>"
    plain = text(("user", "q"), ("assistant", tags), ("user", WRAPPED), DONE)
    done = run(plain, text(("user", "r"), fence('{"name": "read", "arguments": {"path": "a"}}')))
    assert all(set(r) == {"messages"} for r in done.rows())
    assert done.rows()[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"path": "a"}
    assert done.rows()[0]["messages"][2] == {"role": "tool", "content": "x = 1"}
    assert done.changes["train.jsonl:1"] == ("rewritten", ["mixed_shapes"])
    assert not {"mixed_shapes", "mixed_spellings"} & counts(done.after).keys()


def test_one_call_that_must_be_structured_makes_calls_of_all_tags(run: Callable[..., Run]) -> None:
    tags = "<tool_call>\n<function=read>\n<parameter=path>\na\n</parameter>\n</function>\n</tool_call>"
    direct = row("z", DONE)
    done = run(row("q", ("assistant", tags)), direct, row("r", fence('{"name": "read", "arguments": {"path": "a"}}')))
    assert done.changes["train.jsonl:1"] == ("rewritten", ["mixed_spellings"]) and done.rows()[1] == direct
    assert {c.spelling for r in done.after.corpus.rows for c in r.calls} == {"tool_calls"}


def test_calls_in_tags_stay_where_nothing_is_wrong(run: Callable[..., Run]) -> None:
    tags = "<tool_call>\n<function=read>\n<parameter=path>\na\n</parameter>\n</function>\n</tool_call>"
    lines = [row("q", ("assistant", tags)), row("r", ("assistant", "1"), ("assistant", "2"))]
    assert run(*lines).rows()[0] == lines[0]


def test_text_that_needs_nothing_stays_text(run: Callable[..., Run]) -> None:
    lines = [text(("system", "s"), ("user", q), DONE) for q in "abc"]
    assert run(*lines).rows() == lines


def test_other_keys_and_ids_stay(run: Callable[..., Run]) -> None:
    given = {"id": "c1", "function": {"name": "read", "arguments": '{"path": "a"}'}}
    turn = {"role": "assistant", "content": None, "tool_calls": [given], "train": False}
    result = {"role": "tool", "tool_call_id": "c1", "content": "x"}
    (made,) = run(row("q", turn, result, DONE, source="log 7", weight=2)).rows()
    assert (made["source"], made["weight"], made["tools"]) == ("log 7", 2, TOOLS)
    assert made["messages"][1]["train"] is False and made["messages"][1]["tool_calls"][0]["id"] == "c1"
    assert made["messages"][2] == result


def test_judgements_are_left(run: Callable[..., Run]) -> None:
    lines = [
        row("q", call({"path": "made/up.py"}, content=""), ("tool", "x ..."), DONE),
        row("r", call({"path": "q"}, content=""), DONE),
        row("s", DONE),
        row("s", call({"path": "s"}, content="")),
    ]
    done = run(*lines)
    assert done.rows() == lines and done.changes == {}
    left = {"not_in_conversation": 1, "cut_result": 1, "unanswered_call": 1, "conflict": 1}
    assert left.items() <= done.fixed.left.items()
    assert "cut_result: 1 → 1" in done.fixed.summary(done.out)


def test_conflicts_go_into_quarantine_where_it_is_asked_for(run: Callable[..., Run]) -> None:
    lines = [row("s", DONE), row("s", call({"path": "s"}, content="")), row("t", DONE)]
    done = run(*lines, conflicts=True)
    assert done.rows() == lines[2:] and "conflict" not in counts(done.after)


def test_only_what_was_looked_for_is_mended(tmp_path: Path) -> None:
    lines = [row("a", ("assistant", "1"), ("assistant", "2")), row("b", DONE), row("b", DONE)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    found = audit(read_corpus(tmp_path), [c for c in CHECKS if c.name == "duplicate"])
    fixed = fix(found.corpus, found.findings, tmp_path / "out", checks=found.checks)
    assert (fixed.rows["rewritten"], fixed.rows["dropped"]) == (0, 1)
    assert fixed.findings == {"duplicate": {"before": 1, "after": 0}}


def test_the_source_cannot_be_the_output(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text(json.dumps(row("a", DONE)) + "\n")
    found = audit(read_corpus(data))
    for out in (data, tmp_path):
        with pytest.raises(OutputError, match="holds the source"):
            fix(found.corpus, found.findings, out, overwrite=True)
    with pytest.raises(OutputError, match="--overwrite"):
        fix(found.corpus, found.findings, data)
    assert (data / "train.jsonl").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"llama3_json"}))  # which is told from JSON by nothing
def test_calls_in_the_tags_of_any_format_are_structured(name: str) -> None:
    said = "Now.\n\n" + FORMATS[name].render([ToolCall("read", {"path": "a b"})])
    made = repair(read_row(json.dumps(row("q", ("assistant", said)))))["messages"][1]
    assert [c["function"] for c in made["tool_calls"]] == [{"name": "read", "arguments": {"path": "a b"}}]
    assert made["content"] == "Now."


@pytest.mark.parametrize(
    ("result", "inner"),
    [("x", "x"), (WRAPPED, "x = 1"), (TWICE, "x = 1"), (f"{WRAPPED}\n{WRAPPED}",) * 2, (f"a {WRAPPED}",) * 2,
     ("tool result:  x ", " x "), ("<tool_response>", "<tool_response>"), (f"{WRAPPED}</tool_response>",) * 2]
)  # fmt: skip
def test_only_what_wraps_the_whole_is_taken_off(result: str, inner: str) -> None:
    assert unwrap(result) == inner


def test_a_row_whose_calls_would_change_is_refused() -> None:
    (mended,) = [c for c in MENDS if c[0] == "leftover_fence"]
    assert repair(read_row(json.dumps(mended[1])))["tools"] == TOOLS
    with pytest.raises(BadRow, match="`tools`"):
        repair(read_row(json.dumps({**mended[1], "tools": 3})))


def test_every_name_of_the_tables_is_a_check() -> None:
    assert set(FIXED) <= {c.name for c in CHECKS}
    assert len(set(FIXED)) == len(FIXED) and set(MENDED) < set(FIXED)
    helped = {c.name for c in CHECKS if "--fix" in c.help}
    assert helped <= set(FIXED), "a help promises what --fix does not do"
    assert fixing.QUARANTINE == "quarantine.jsonl"


# ---- the real rows ----


@pytest.mark.parametrize(("name", "quarantined"), [("mlx_format", 68), ("phase22", 0)])  # 68 rows with broken calls
def test_real_rows(real_data: Path, tmp_path: Path, name: str, quarantined: int) -> None:
    before = audit(read_corpus(real_data / "punie" / name))
    fixed = fix(before.corpus, before.findings, tmp_path / "out")
    after = audit(read_corpus(tmp_path / "out"))
    found = counts(before)
    assert fixed.rows["quarantined"] == quarantined
    assert fixed.rows["after"] == len(after.corpus.rows) > 0
    left = {f.check for f in after.findings if f.check in FIXED}
    # valid and test share queries in phase22: a warning, since both are held out
    assert left <= {"leak_row", "leak_query"} and (left == set() or name == "phase22")
    assert not [f for f in after.findings if f.check in FIXED and f.severity == ERROR]
    assert sum(found.get(check, 0) for check in FIXED) > 100
    calls = Counter(json.dumps([c.name, c.arguments]) for r in before.corpus.rows for c in r.calls)
    kept = Counter(json.dumps([c.name, c.arguments]) for r in after.corpus.rows for c in r.calls)
    assert kept <= calls and {c.spelling for r in after.corpus.rows for c in r.calls} == {"tool_calls"}
