"""Runs and what the scorer has to say of them: the table of test_score.py, on which its mutants must die, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from punie_mlx.evals.agent import Call, Run, Turn


def tool(name: str, required: list[str], /, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


TEXT, WHOLE, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
TOOLS = [
    tool("read", ["path"], path=TEXT),
    tool("find", ["path"], path=TEXT),
    tool("add", ["a"], a=WHOLE, b={**WHOLE, "default": 0}),
    tool("level", ["value"], value=NUMBER, name=TEXT),
    tool("tag", ["labels"], labels={"type": "array", "items": TEXT}, options={"type": "object"}),
    tool("any", [], x={}, y={}),
]


def of(name: str | list[str], arguments: dict[str, Any] | None = None, /, **match: Any) -> dict[str, Any]:
    """A call that is expected."""
    given = {} if arguments is None else {"arguments": arguments}
    return {"name": name, **given, **({"match": match} if match else {})}


def made(name: str, arguments: Any = None, turn: int = 1, ok: bool | None = True, result: str | None = "fine") -> Call:
    return Call(turn, f"c{turn}", name, {} if arguments is None else arguments, result, ok)


def run(*calls: Call, answer: str | None = "Done.", status: int = 200, **more: Any) -> Run:
    count = max((c.turn for c in calls), default=0) + 1
    turns = [Turn(0.1, status, {"role": "assistant", "content": ""}) for _ in range(count)]
    return Run(turns=turns, calls=list(calls), answer=answer, **more)


@dataclass(frozen=True)
class Row:
    """A run of a case: the checks that fail strictly ("error": the run's own), and whether it passes leniently.

    `says`: what the reasons must hold. `silent`: checks that must not apply.
    """

    name: str
    expect: dict[str, Any]
    run: Run
    fails: tuple[str, ...] = ()
    lenient: bool | None = None
    says: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    unread: bool = False
    """The answer holds the text of a call."""

    @property
    def case(self) -> dict[str, Any]:
        return {"id": "1", "category": "c", "query": "q", "tools": TOOLS, "expect": self.expect}

    @property
    def passes_leniently(self) -> bool:
        return not self.fails if self.lenient is None else self.lenient


def calls(*expected: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"calls": list(expected), **more}


def one_of(*alternatives: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"any_of": list(alternatives), **more}


READ = of("read", {"path": "a.py"})
FIND = of("find", {"path": "b.py"})
DID_READ = made("read", {"path": "a.py"})
DID_FIND = made("find", {"path": "b.py"})
FENCE = '```json\n{"name": "read", "arguments": {"path": "a.py"}}\n```'
FIRST = {"turns": "first", "execution": "any"}
BOTH = ("names", "arguments")


def level(**match: Any) -> dict[str, Any]:
    return calls(of("level", None, value=match))


def gave(value: Any, /, **more: Any) -> Run:
    return run(made("level", {"value": value, **more}))


def tagged(labels: Any, /, **more: Any) -> Run:
    return run(made("tag", {"labels": labels, **more}))


NAMES = (
    Row("one call", calls(READ), run(DID_READ), silent=("order", "parallel", "files")),
    Row("no call", calls(READ), run(), (*BOTH, "execution"), says=("names: expected read; got no call", "got no call")),
    Row("no call, named only", calls(of("read")), run(), ("names", "execution"), silent=("arguments",)),
    Row("another tool", calls(READ), run(DID_FIND), BOTH, says=("names: expected read; got find", "no such call")),
    Row("one too many", calls(READ), run(DID_READ, DID_FIND), BOTH, says=("expected no other call; got find",)),
    Row("the same call twice", calls(READ), run(DID_READ, DID_READ), BOTH,
        says=("names: expected read; got read, read",)),
    Row("one too few", calls(READ, FIND), run(DID_READ), BOTH, says=("find: expected", "got no such call")),
    Row("two calls, any order", calls(READ, FIND), run(DID_FIND, DID_READ)),
    Row("either name", calls(of(["find", "read"], {"path": "a.py"})), run(DID_READ)),
    Row("neither name", calls(of(["find", "tag"])), run(DID_READ), ("names",),
        says=("expected find or tag; got read",)),
    Row("two of the same name", calls(READ, of("read", {"path": "c"})), run(DID_READ, DID_READ), ("arguments",),
        says=('read: expected {"path": "c"}; got {"path": "a.py"}',)),
    Row("the first pairing is wrong", calls(of("read"), READ), run(DID_READ, made("read", {"path": "z"}))),
    Row("the first three pairings are wrong",
        calls(of(["read", "find", "add"]), of(["read", "find"]), of("read")),
        run(made("read"), made("find"), made("add"))),
)  # fmt: skip

DIRECT = (
    Row("no call is right", calls(), run(answer="It is so."), silent=("arguments", "order", "parallel", "execution")),
    Row("a call where none may be", calls(), run(DID_READ), ("names",), says=("expected no call; got read",)),
    Row("a call that fails where none may be", calls(), run(made("read", ok=False)), ("names",), silent=("execution",)),
    Row("an empty answer", calls(), run(answer=" \n"), ("answer",), lenient=True, says=("it is empty",)),
    Row("a fence for an answer", calls(), run(answer=FENCE), ("answer",), lenient=True, unread=True,
        says=("the text of a call",)),
    Row("an answer that misses a word", calls(answer={"contains": ["x"]}), run(answer="y"), ("answer",), lenient=True),
    Row("the model says nothing", calls(), run(answer=None, error="UnexpectedModelBehavior: empty"),
        ("error", "answer"), lenient=True),
    Row("the server fails", calls(), run(answer=None, error="ModelHTTPError: 500", status=500), ("error", "answer"),
        lenient=False, says=("ModelHTTPError: 500", "expected one; got none")),
    Row("no server", calls(), run(answer=None, error="gone", lost=True), ("error", "answer"), lenient=False),
    Row("a call that nobody can read, lenient", calls(), run(made("read", "{"), answer=None, error="bad"),
        ("error", "names", "answer")),
)  # fmt: skip

ARGUMENTS = (
    Row("another value", calls(READ), run(made("read", {"path": "b"})), ("arguments",),
        says=('arguments: read: expected {"path": "a.py"}; got {"path": "b"}',)),
    Row("no value", calls(READ), run(made("read", {})), ("arguments",), says=("got {}",)),
    Row("a value too many", calls(READ), run(made("read", {"path": "a.py", "x": 1})), ("arguments",),
        says=('expected {}; got {"x": 1}',)),
    Row("arguments that are text", calls(READ), run(made("read", "{")), ("arguments",), says=('got "{"',)),
    Row("arguments that are a list", calls(READ), run(made("read", ["path"])), ("arguments",)),
    Row("arguments not looked at", calls(of("read")), run(made("read", {"q": 1})), silent=("arguments",)),
    Row("no arguments at all", calls(of("any", {})), run(made("any"))),
    Row("none allowed", calls(of("any", {})), run(made("any", {"x": None})), ("arguments",)),
    Row("the default left out", calls(of("add", {"a": 1, "b": 0})), run(made("add", {"a": 1}))),
    Row("the default given", calls(of("add", {"a": 1})), run(made("add", {"a": 1, "b": 0}))),
    Row("not the default", calls(of("add", {"a": 1})), run(made("add", {"a": 1, "b": 2})), ("arguments",)),
    Row("the default beside a matcher", calls(of("add", None, a={"min": 1})), run(made("add", {"a": 1, "b": 0}))),
    Row("not the default beside a matcher", calls(of("add", None, a={"min": 1})), run(made("add", {"a": 1, "b": 3})),
        ("arguments",), says=('expected {}; got {"b": 3}',)),
    Row("a default that a matcher sees", calls(of("add", {"a": 1}, b={"exact": 0})), run(made("add", {"a": 1}))),
    Row("a default that a matcher refuses", calls(of("add", {"a": 1}, b={"min": 1})), run(made("add", {"a": 1})),
        ("arguments",)),
    Row("text is no number", calls(of("add", {"a": 1})), run(made("add", {"a": "1"})), ("arguments",)),
    Row("true is not 1", calls(of("add", {"a": 1})), run(made("add", {"a": True})), ("arguments",)),
    Row("1.0 is 1 where a number is asked", calls(of("level", {"value": 1})), run(made("level", {"value": 1.0}))),
    Row("1.0 is not 1 where an integer is asked", calls(of("add", {"a": 1})), run(made("add", {"a": 1.0})),
        ("arguments",)),
    Row("names of one, arguments of the other", calls(READ, FIND),
        run(made("read", {"path": "b.py"}), made("find", {"path": "a.py"})), ("arguments",)),
)  # fmt: skip

MATCHERS = (
    Row("exact", level(exact=2), gave(2.0)),
    Row("not exact", level(exact=2), gave(3), ("arguments",), says=('"value": {"exact": 2}', '{"value": 3}')),
    Row("exact null", calls(of("any", None, x={"exact": None})), run(made("any", {"x": None}))),
    Row("null is not left out", calls(of("any", None, x={"exact": None})), run(made("any", {})), ("arguments",)),
    Row("one of", level(one_of=[1, 2, 3]), gave(3)),
    Row("none of", level(one_of=[1, 2, 3]), gave(4), ("arguments",)),
    Row("set", calls(of("tag", None, labels={"set": ["a", "b"]})), tagged(["b", "a"])),
    Row("set with one too few", calls(of("tag", None, labels={"set": ["a", "b"]})), tagged(["a"]), ("arguments",)),
    Row("set with one too many", calls(of("tag", None, labels={"set": ["a"]})), tagged(["a", "b"]), ("arguments",)),
    Row("set with a copy", calls(of("tag", None, labels={"set": ["a", "b"]})), tagged(["a", "a"]), ("arguments",)),
    Row("set that is text", calls(of("tag", None, labels={"set": ["a"]})), tagged("a"), ("arguments",)),
    Row("a list in another order", calls(of("tag", {"labels": ["a", "b"]})), tagged(["b", "a"]), ("arguments",)),
    Row("regex", calls(of("read", None, path={"regex": r"[a-z]+\.py"})), run(DID_READ)),
    Row("regex of all of it", calls(of("read", None, path={"regex": r"[a-z]+"})), run(DID_READ), ("arguments",)),
    Row("regex has its case", calls(of("read", None, path={"regex": r"A\.PY"})), run(DID_READ), ("arguments",)),
    Row("regex of a number", calls(of("any", None, x={"regex": "1"})), run(made("any", {"x": 1})), ("arguments",)),
    Row("number", level(number=80), gave(80.0)),
    Row("no tolerance", level(number=80), gave(80.5), ("arguments",)),
    Row("within", level(number=80, tolerance=2), gave(78)),
    Row("within, above", level(number=0.3, tolerance=0.1), gave(0.4)),
    Row("beyond", level(number=80, tolerance=2), gave(82.5), ("arguments",)),
    Row("beyond, below", level(number=80, tolerance=2), gave(77), ("arguments",)),
    Row("number as text", level(number=80), gave("80"), ("arguments",)),
    Row("number as truth", level(number=1), gave(True), ("arguments",)),
    Row("a fraction for an integer", calls(of("add", None, a={"number": 1, "tolerance": 1})),
        run(made("add", {"a": 1.5})), ("arguments",)),
    Row("from", level(min=1), gave(1)),
    Row("not from", level(min=1), gave(0.9), ("arguments",)),
    Row("up to", level(max=5), gave(5)),
    Row("not up to", level(max=5), gave(6), ("arguments",)),
    Row("between", level(min=1, max=5), gave(3)),
    Row("not between", level(min=1, max=5), gave(7), ("arguments",)),
    Row("not a number between", level(min=1, max=5), gave("3"), ("arguments",)),
    Row("predicate", calls(of("read", None, path={"predicate": "relative_path"})), run(DID_READ)),
    Row("not the predicate", calls(of("read", None, path={"predicate": "relative_path"})),
        run(made("read", {"path": "/a.py"})), ("arguments",)),
    Row("optional and absent", calls(of("level", {"value": 1}, name={"exact": "x", "optional": True})), gave(1)),
    Row("optional and right", calls(of("level", {"value": 1}, name={"exact": "x", "optional": True})),
        gave(1, name="x")),
    Row("optional and wrong", calls(of("level", {"value": 1}, name={"exact": "x", "optional": True})),
        gave(1, name="y"), ("arguments",)),
    Row("optional and absent, whatever its default", calls(of("add", {"a": 1}, b={"min": 1, "optional": True})),
        run(made("add", {"a": 1}))),
    Row("absent, not optional", calls(of("level", {"value": 1}, name={"exact": "x"})), gave(1), ("arguments",)),
    Row("exact beside a matcher", calls(of("level", {"value": 1}, name={"regex": "x+"})), gave(2, name="xx"),
        ("arguments",), says=('expected {"value": 1}; got {"value": 2}',)),
    Row("missing beside a matcher", calls(of("level", {"value": 1}, name={"regex": "x+"})),
        run(made("level", {"name": "x"})), ("arguments",)),
    Row("a matcher forbids the others", level(min=1), gave(2, name="x"), ("arguments",)),
)  # fmt: skip

LENIENT = (
    Row("case, spaces and punctuation", calls(of("read", {"path": "Src/My-File_1.py"})),
        run(made("read", {"path": "src my FILE 1*p^y"})), ("arguments",), lenient=True),
    Row("quotes", calls(of("read", {"path": "it's"})), run(made("read", {"path": 'It"s'})), ("arguments",),
        lenient=True),
    Row("other words", calls(READ), run(made("read", {"path": "b.py"})), ("arguments",), lenient=False),
    Row("other punctuation", calls(of("read", {"path": "a+b"})), run(made("read", {"path": "ab"})), ("arguments",)),
    Row("an integer for a float", calls(of("any", {"x": 2.0})), run(made("any", {"x": 2})), ("arguments",),
        lenient=True),
    Row("another integer for a float", calls(of("any", {"x": 2.5})), run(made("any", {"x": 2})), ("arguments",)),
    Row("a float for an integer", calls(of("any", {"x": 2})), run(made("any", {"x": 2.0})), ("arguments",)),
    Row("truth for a float", calls(of("any", {"x": 1.0})), run(made("any", {"x": True})), ("arguments",)),
    Row("text for a number", calls(of("any", {"x": 2})), run(made("any", {"x": "2"})), ("arguments",)),
    Row("in a list", calls(of("tag", {"labels": ["A b", "c"]})), tagged(["ab", "C"]), ("arguments",), lenient=True),
    Row("a longer list", calls(of("tag", {"labels": ["A"]})), tagged(["a", "b"]), ("arguments",)),
    Row("a list with another word", calls(of("tag", {"labels": ["A", "b"]})), tagged(["a", "c"]), ("arguments",)),
    Row("in an object", calls(of("tag", {"labels": [], "options": {"k": "V 1"}})), tagged([], options={"k": "v1"}),
        ("arguments",), lenient=True),
    Row("an object with another value", calls(of("tag", {"labels": [], "options": {"k": "V"}})),
        tagged([], options={"k": "w"}), ("arguments",)),
    Row("an object with a key more", calls(of("tag", {"labels": [], "options": {"k": "V"}})),
        tagged([], options={"k": "v", "l": 1}), ("arguments",)),
    Row("an object with another key", calls(of("tag", {"labels": [], "options": {"k": "V"}})),
        tagged([], options={"l": "v"}), ("arguments",)),
    Row("one of, loosely", calls(of("read", None, path={"one_of": ["A", "B"]})), run(made("read", {"path": "b"})),
        ("arguments",), lenient=True),
    Row("exact, loosely", calls(of("read", None, path={"exact": "B"})), run(made("read", {"path": "b"})),
        ("arguments",), lenient=True),
    Row("set, loosely", calls(of("tag", None, labels={"set": ["A", "B"]})), tagged(["b", "a"]), ("arguments",),
        lenient=True),
    Row("loosely, and nothing more", calls(of("read", {"path": "A"})), run(made("read", {"path": "a", "x": 1})),
        ("arguments",)),
    Row("loosely, and not less", calls(of("level", {"value": 1, "name": "A"})), gave(1), ("arguments",)),
    Row("names have their case", calls(READ), run(made("Read", {"path": "a.py"})), BOTH),
)  # fmt: skip

ORDER = (
    Row("as given", calls(READ, FIND, order="given"), run(DID_READ, DID_FIND)),
    Row("not as given", calls(READ, FIND, order="given"), run(DID_FIND, DID_READ), ("order",),
        says=("order: expected read, find in this order; got find(",)),
    Row("one in its place, two not", calls(READ, FIND, of("tag"), order="given"), run(DID_READ, made("tag"), DID_FIND),
        ("order",)),
    Row("the same tool, not as given", calls(READ, of("read", {"path": "c"}), order="given"),
        run(made("read", {"path": "c"}), DID_READ), ("order",)),
    Row("in order, with a wrong argument", calls(READ, FIND, order="given"), run(DID_READ, made("find", {"path": "z"})),
        ("arguments",)),
    Row("out of order, with a wrong argument", calls(READ, FIND, order="given"),
        run(made("find", {"path": "z"}), DID_READ), ("arguments", "order")),
    Row("the order of one", calls(READ, order="given"), run(DID_READ), silent=("order",)),
    Row("the order of other calls", calls(READ, FIND, order="given"), run(DID_READ, DID_READ), BOTH,
        silent=("order",)),
    Row("one of two orders", one_of([READ, FIND], [FIND, READ], order="given"), run(DID_FIND, DID_READ)),
)  # fmt: skip

LATER = made("find", {"path": "b.py"}, turn=2)
PARALLEL = (
    Row("together", calls(READ, FIND, parallel=True), run(DID_READ, DID_FIND)),
    Row("not together", calls(READ, FIND, parallel=True), run(DID_READ, LATER), ("parallel",),
        says=("parallel: expected all calls in one response; got them in responses [1, 2]",)),
    Row("apart", calls(READ, FIND, parallel=False), run(DID_READ, LATER)),
    Row("not apart", calls(READ, FIND, parallel=False), run(DID_READ, DID_FIND), ("parallel",),
        says=("expected no two calls in one response",)),
    Row("two of three apart", calls(READ, READ, FIND, parallel=False), run(DID_READ, DID_READ, LATER), ("parallel",)),
    Row("two of three together", calls(READ, READ, FIND, parallel=True), run(DID_READ, DID_READ, LATER), ("parallel",)),
    Row("either way", calls(READ, FIND), run(DID_READ, LATER), silent=("parallel",)),
    Row("nothing to be together", calls(READ, parallel=True), run(), (*BOTH, "execution"), silent=("parallel",)),
)  # fmt: skip

ALTERNATIVES = (
    Row("the second", one_of([READ], [FIND]), run(DID_FIND)),
    Row("neither", one_of([READ], [FIND]), run(made("tag")), BOTH, says=("names: expected read | find; got tag",)),
    Row("both", one_of([READ], [FIND]), run(DID_READ, DID_FIND), BOTH),
    Row("the longer one", one_of([READ], [READ, FIND]), run(DID_READ, DID_FIND)),
    Row("half of the longer one", one_of([READ, FIND]), run(DID_READ), BOTH),
    Row("names of one, arguments of another",
        one_of([READ, FIND], [of("read", {"path": "x"}), of("find", {"path": "y"})]),
        run(DID_READ, made("find", {"path": "y"})), ("arguments",)),
    Row("or nothing", one_of([], [READ]), run(), silent=("execution", "parallel")),
    Row("or something", one_of([], [READ]), run(DID_READ)),
    Row("or something that fails", one_of([], [READ]), run(made("read", {"path": "a.py"}, ok=False)), ("execution",)),
    Row("the nearest is told", one_of([of("tag", {"labels": []}), FIND], [READ, FIND]),
        run(made("read", {"path": "z"}), DID_FIND), ("arguments",),
        says=('read: expected {"path": "a.py"}; got {"path": "z"}',)),
)  # fmt: skip

EXECUTION = (
    Row("a tool fails", calls(READ), run(made("read", {"path": "a.py"}, ok=False, result="error: no such file")),
        ("execution",), says=("execution: read: error: no such file",)),
    Row("never executed", calls(READ), run(made("read", {"path": "a.py"}, ok=None, result=None)), ("execution",),
        says=("was never executed",)),
    Row("the second fails", calls(READ, FIND), run(DID_READ, made("find", {"path": "b.py"}, ok=False)), ("execution",)),
    Row("it may fail", calls(READ, execution="any"), run(made("read", {"path": "a.py"}, ok=False)),
        silent=("execution",)),
)  # fmt: skip

TURNS = (
    Row("only the first counts", calls(READ, **FIRST), run(DID_READ, LATER)),
    Row("the first turn that calls", calls(FIND, **FIRST), run(LATER, made("read", turn=3))),
    Row("all of the first count", calls(READ, **FIRST), run(DID_READ, DID_FIND), BOTH),
    Row("all turns count", calls(READ), run(DID_READ, LATER), BOTH),
    Row("no end, but a first turn", calls(READ, **FIRST), run(DID_READ, answer=None, error="limit", limited=True),
        silent=("answer",)),
    Row("no end", calls(READ), run(DID_READ, answer=None, error="limit", limited=True), ("error", "answer")),
    Row("an error after the first turn", calls(READ, **FIRST), run(DID_READ, answer=None, error="empty"),
        ("error", "answer"), lenient=True),
    Row("an empty answer after the first turn", calls(READ, **FIRST), run(DID_READ, answer=""), ("answer",),
        lenient=True),
    Row("no server after the first turn", calls(READ, **FIRST), run(DID_READ, answer=None, error="gone", lost=True),
        ("error", "answer"), lenient=False),
    Row("a broken call in the first turn", calls(of("read"), **FIRST), run(made("read", "{"), answer=None, error="bad"),
        ("error", "answer"), lenient=False),
    Row("an error in the end", calls(READ), run(DID_READ, answer="Done.", error="boom"), ("error",)),
)  # fmt: skip

ANSWER = (
    Row("holds all", calls(answer={"contains": ["5", "lines"]}), run(answer="5 lines")),
    Row("holds one only", calls(READ, answer={"contains": ["5", "lines"]}), run(DID_READ, answer="5 files"),
        ("answer",), says=("answer: 'lines' is not in '5 files'",)),
    Row("its case counts", calls(READ, answer={"contains": ["amber"]}), run(DID_READ, answer="Amber"), ("answer",)),
    Row("matches somewhere", calls(READ, answer={"matches": r"\d+ lines?"}), run(DID_READ, answer="It has 12 lines.")),
    Row("matches nothing", calls(READ, answer={"matches": r"\d+ lines?"}), run(DID_READ, answer="Many lines."),
        ("answer",), says=("matches nothing in 'Many lines.'",)),
    Row("lacks", calls(READ, answer={"lacks": ["secret"]}), run(DID_READ, answer="Nothing.")),
    Row("does not lack", calls(READ, answer={"lacks": ["x", "secret"]}), run(DID_READ, answer="The secret is 1."),
        ("answer",), says=("answer: 'secret' must not be in",)),
    Row("holds and matches, but does not lack",
        calls(READ, answer={"contains": ["a"], "matches": "b", "lacks": ["c"]}), run(DID_READ, answer="abc"),
        ("answer",)),
    Row("no answer", calls(READ), run(DID_READ, answer=None), ("answer",), says=("answer: it is empty",)),
    Row("a call beside the answer", calls(READ), run(DID_READ, answer=f"Then {FENCE}"), ("answer",), unread=True),
)  # fmt: skip

STATE = {"a.py": "x = 1\n", "./b.txt": "three words here"}
FILES = (
    Row("the text", calls(READ, files={"a.py": "x = 1\n"}), run(DID_READ, files=STATE)),
    Row("another text", calls(READ, files={"a.py": "x = 2\n"}), run(DID_READ, files=STATE), ("files",),
        says=("files: a.py: expected 'x = 2\\n'; got 'x = 1\\n'",)),
    Row("other blanks", calls(READ, files={"a.py": "x = 1"}), run(DID_READ, files=STATE), ("files",)),
    Row("not there", calls(READ, files={"c.py": ""}), run(DID_READ, files=STATE), ("files",),
        says=("expected c.py; it is not there",)),
    Row("gone", calls(READ, files={"c.py": None}), run(DID_READ, files=STATE)),
    Row("not gone", calls(READ, files={"a.py": None}), run(DID_READ, files=STATE), ("files",),
        says=("expected no a.py; got 'x = 1",)),
    Row("a path spelled otherwise", calls(READ, files={"./a.py": "x = 1\n", "b.txt": {"contains": ["three"]}}),
        run(DID_READ, files=STATE)),
    Row("holds, matches, lacks",
        calls(READ, files={"b.txt": {"contains": ["words"], "matches": "^th", "lacks": ["4"]}}),
        run(DID_READ, files=STATE)),
    Row("holds something else", calls(READ, files={"b.txt": {"contains": ["four"]}}), run(DID_READ, files=STATE),
        ("files",), says=("files: b.txt: 'four' is not in",)),
    Row("only the second is wrong", calls(READ, files={"a.py": "x = 1\n", "b.txt": {"lacks": ["three"]}}),
        run(DID_READ, files=STATE), ("files",)),
    Row("nobody looked", calls(READ, files={"a.py": None}), run(DID_READ), ("files",),
        says=("expected a.py to be looked at",)),
    Row("an empty directory", calls(READ, files={"a.py": None}), run(DID_READ, files={})),
)  # fmt: skip

TABLE = (
    *NAMES, *DIRECT, *ARGUMENTS, *MATCHERS, *LENIENT, *ORDER, *PARALLEL, *ALTERNATIVES, *EXECUTION, *TURNS, *ANSWER,
    *FILES,
)  # fmt: skip


def faults_of(row: Row, case: Any, score: Any) -> list[str]:
    """What `score` says of `row` that is not so."""
    strict, loose = score(case, row.run), score(case, row.run, lenient=True)
    failed = {name for name, passed in strict.checks.items() if passed is False}
    wanted = set(row.fails) - {"error"}
    reasons = "\n".join(strict.reasons)
    told = {name for name in strict.checks if any(r.startswith(f"{name}: ") for r in strict.reasons)}
    found = [
        (strict.passed == (not row.fails), f"passed: {strict.passed}"),
        (failed == wanted, f"failed checks: {sorted(failed)}, not {sorted(wanted)}"),
        (told == failed, f"reasons: {strict.reasons}"),
        (("error" in row.fails) == (row.run.error in strict.reasons if row.run.error else False), "the run's error"),
        (loose.passed == row.passes_leniently, f"passed leniently: {loose.passed}, {loose.reasons}"),
        (loose.passed or not strict.passed, "passed strictly, but not leniently"),
        (all(fragment in reasons for fragment in row.says), f"reasons: {strict.reasons}"),
        (strict.unread_call == loose.unread_call == row.unread, "the text of a call in the answer"),
        (all(strict.checks[name] is None for name in row.silent), f"checks: {strict.checks}"),
    ]
    return [text for good, text in found if not good]
