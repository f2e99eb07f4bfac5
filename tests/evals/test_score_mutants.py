"""Is the table of test_score.py strong enough? The scorer with a planted fault must contradict it.

Each mutant is the source of the scorer, or of the matchers that it compares with, with one piece of text replaced. A
mutant that is told apart from the real scorer by some row of the table is killed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import punie_mlx

from .scoring import TABLE, Row, faults_of

PACKAGE = Path(punie_mlx.__file__).parent
SCORE, MATCHERS, SUITE = "punie_mlx.evals.score", "punie_mlx.corpus.suites.matchers", "punie_mlx.corpus.suite"
KILLED = 0.95


@dataclass(frozen=True)
class Mutant:
    """A plausible fault: in `module`, the text `old` (which stands there once) became `new`."""

    what: str
    module: str
    old: str
    new: str


def score(what: str, old: str, new: str) -> Mutant:
    return Mutant(what, SCORE, old, new)


def match(what: str, old: str, new: str) -> Mutant:
    return Mutant(what, MATCHERS, old, new)


MUTANTS = (
    # The verdict.
    score("always passes", "return not self.reasons", "return True"),
    score("never passes", "return not self.reasons", "return False"),
    score("errors forgiven", "[run.error] if run.error and not judged.excused else []", "[]"),
    score("no error excused", "if run.error and not judged.excused else []", "if run.error else []"),
    score("reasons dropped", "for name, complaint in complaints.items() if complaint]", "for name, complaint in ()]"),
    score(
        "failed and does not apply exchanged",
        "None if complaint is None else not complaint",
        "None if complaint else complaint is not None",
    ),
    score("every check passes", "None if complaint is None else not complaint", "None if complaint is None else True"),
    score("unread call not told", "tuple(reasons), judged.unread is not None)", "tuple(reasons), False)"),
    score("lenient used for strict", "judged = _Judged(case, run, lenient)", "judged = _Judged(case, run, True)"),
    score("strict used for lenient", "judged = _Judged(case, run, lenient)", "judged = _Judged(case, run, False)"),
    # Which calls and words count.
    score("all turns for the first", 'if case.expect.turns == "all" or not run.calls:', "if True:"),
    score("the first turn for all", 'if case.expect.turns == "all" or not run.calls:', "if not run.calls:"),
    score("the last turn for the first", "c.turn == run.calls[0].turn", "c.turn == run.calls[-1].turn"),
    score("only turn 1", "c.turn == run.calls[0].turn", "c.turn == 1"),
    score("words never count", "return not self.lenient or (self.may_call", "return False and (self.may_call"),
    score("words always count", "return not self.lenient or (self.may_call", "return True or (self.may_call"),
    score("words count where none may call", "(self.may_call and self.case", "(self.case"),
    score("words count after the first turn", 'and self.case.expect.turns == "all")', ")"),
    score("any run at its limit excused", 'self.run.limited and self.case.expect.turns == "first"', "self.run.limited"),
    score(
        "any error after a first turn excused",
        'self.run.limited and self.case.expect.turns == "first"',
        'self.case.expect.turns == "first"',
    ),
    score("a failing server has spoken", "any(turn.status < 400 for turn in self.run.turns)", "True"),
    score("a lost server has spoken", " and not self.run.lost", ""),
    score("broken calls excused", " and all(isinstance(c.arguments, dict) for c in self.calls)", ""),
    # Names.
    score("names not checked", '    if judged.made("names"):\n        return ""\n', '    return ""\n'),
    score(
        "too many or few calls overlooked",
        "[e for e in self.case.alternatives if len(e) == len(self.calls)]\n        return any(None",
        "self.case.alternatives\n        return any(None",
    ),
    score("all alternatives at once", "return any(None not in", "return all(None not in"),
    score(
        "one pair is enough",
        "None not in self.pairs(e, level) for e in same",
        "not e or any(i is not None for i in self.pairs(e, level)) for e in same",
    ),
    score(
        "first alternative only",
        "return any(None not in self.pairs(e, level) for e in same)",
        "return any(None not in self.pairs(e, level) for e in same if e is self.case.alternatives[0])",
    ),
    score(
        "calls paired greedily",
        "return assign(expected, self.calls, lambda e, c: self.fit(e, c, level))",
        "left = list(range(len(self.calls)))\n        out = []\n        for e in expected:\n"
        "            i = next((i for i in left if self.fit(e, self.calls[i], level)), None)\n"
        "            out.append(i)\n            left = [j for j in left if j != i]\n        return out",
    ),
    # Arguments.
    score(
        "arguments compared by name only",
        'return "" if judged.made("arguments") else _difference(judged)',
        'return "" if judged.made("names") else _difference(judged)',
    ),
    score("arguments not checked", 'return "" if judged.made("arguments") else _difference(judged)', 'return ""'),
    score("arguments never apply", "if not any(e.looks_at_arguments", "if True or not any(e.looks_at_arguments"),
    score("arguments always apply", "if not any(e.looks_at_arguments", "if False and not any(e.looks_at_arguments"),
    score(
        "arguments apply if all calls have them", "if not any(e.looks_at_arguments", "if not all(e.looks_at_arguments"
    ),
    score("the farthest alternative is told", "nearest = max(", "nearest = min("),
    score(
        "the first alternative is told",
        "nearest = max(judged",
        "nearest = next(iter(judged.case.alternatives)) or max(judged",
    ),
    score("what agrees is told, too", "if k in differ}", "}"),
    # Order and responses.
    score("order ignored", 'judged.case.expect.order == "any"', "True"),
    score("order always asked", 'judged.case.expect.order == "any" or ', ""),
    score("order of one call", "or len(judged.calls) < 2 ", ""),
    score("order of other calls", ' or not judged.made("names")', ""),
    score("order by names only", '"arguments" if judged.made("arguments") else "names"', '"names"'),
    score("order by arguments only", '"arguments" if judged.made("arguments") else "names"', '"arguments"'),
    score("order of some", "any(all(self.fit", "any(any(self.fit"),
    score("order of all alternatives", "any(all(self.fit", "all(all(self.fit"),
    score("responses ignored", "if together is None or not judged.calls:", "if True:"),
    score("together and apart exchanged", "    if together:\n", "    if not together:\n"),
    score("together means two", "len(set(turns)) == 1 else", "len(set(turns)) <= 2 else"),
    score("apart means not all together", "len(set(turns)) == len(turns) else", "len(set(turns)) > 1 else"),
    # Execution.
    score("execution ignored", 'judged.case.expect.execution == "any" or not judged.may_call', "True"),
    score(
        "execution always asked", 'judged.case.expect.execution == "any" or not judged.may_call', "not judged.may_call"
    ),
    score(
        "execution asked where none may call",
        " or not judged.may_call:\n        return None\n    if not judged.calls",
        ":\n        return None\n    if not judged.calls",
    ),
    score("never executed is fine", "if not c.ok), None)", "if c.ok is False), None)"),
    score(
        "only the first call is executed", "for c in judged.calls if not c.ok", "for c in judged.calls[:1] if not c.ok"
    ),
    score(
        "no call executes well", 'return "expected a call that succeeds; got no call" if judged', 'return "" if judged'
    ),
    score(
        "a call is needed where it may be left out",
        '"expected a call that succeeds; got no call" if judged.case.expects_call else None',
        '"expected a call that succeeds; got no call"',
    ),
    # Files.
    score(
        "files ignored",
        "if wanted is None or not judged.words_count:\n        return None\n    if there",
        "if True:\n        return None\n    if there",
    ),
    score(
        "unknown files are fine",
        'if there is None:\n        return f"expected',
        'if there is None:\n        return f"" and f"',
    ),
    score("an empty directory is unknown", "if there is None:", "if not there:"),
    score(
        "paths as they are spelled there", "{str(PurePosixPath(path)): text for path, text in there.items()}", "there"
    ),
    score("paths as they are spelled in the case", "found.get(str(PurePosixPath(path)))", "found.get(path)"),
    score("the first file only", "for path, text in wanted.items())\n", "for path, text in [*wanted.items()][:1])\n"),
    score(
        "gone files overlooked",
        "if text is not None else None\n    if text is None:",
        "if False else None\n    if text is None:",
    ),
    score("missing files are fine", 'return f"expected {path}; it is not there"', "return None"),
    score("any text of a file", "if text != wanted else None", "if False else None"),
    score("blanks of a file ignored", "if text != wanted else None", "if text.split() != wanted.split() else None"),
    score("what a file holds ignored", 'return f"{path}: {complaint}" if complaint else None', "return None"),
    # The answer.
    score("empty answers are fine", "if not answer.strip():", "if False:"),
    score("blank answers are fine", "if not answer.strip():", "if not answer:"),
    score(
        "calls in the answer are fine", "if judged.unread is not None:\n        return f", "if False:\n        return f"
    ),
    score("no answer is fine after an error", '        return "expected one; got none"', "        return None"),
    score("the answer ignored", "return _text_complaint(wanted, answer) if wanted else", 'return "" if wanted else'),
    score(
        "one part is enough",
        "        if part not in text:\n            return",
        "        if not any(p in text for p in wanted.contains):\n            return",
    ),
    score("letter case ignored", "        if part not in text:", "        if part.lower() not in text.lower():"),
    score("regex ignored", "wanted.matches is not None and not re.search", "False and not re.search"),
    score("regex of all of it", "not re.search(wanted.matches, text)", "not re.fullmatch(wanted.matches, text)"),
    score("regex from the start", "not re.search(wanted.matches, text)", "not re.match(wanted.matches, text)"),
    score("unwanted words ignored", "for part in wanted.lacks or ():", "for part in ():"),
    score("first unwanted word only", "for part in wanted.lacks or ():", "for part in (wanted.lacks or ())[:1]:"),
    score("unwanted words wanted", "        if part in text:", "        if part not in text:"),
    # Matchers.
    match("any name", "if made.name not in expected.names:", "if False:"),
    match("first name only", "if made.name not in expected.names:", "if made.name != expected.names[0]:"),
    match("names without case", "if made.name not in expected.names:", "if made.name.lower() not in expected.names:"),
    match("arguments never at fault", 'return level == "names" or not faults', "return True or not faults"),
    match(
        "matchers not looked at",
        "return self.arguments is not None or self.match is not None",
        "return self.arguments is not None",
    ),
    match(
        "arguments not looked at",
        "return self.arguments is not None or self.match is not None",
        "return self.match is not None",
    ),
    match(
        "text for arguments is fine",
        '    if not isinstance(arguments, dict):\n        return [""]',
        "    if not isinstance(arguments, dict):\n        return []",
    ),
    match("defaults not known", "defaults = defaults_of(schema)", "defaults = {}"),
    match("exact arguments ignored", "| (expected.arguments or {})", "| {}"),
    match("one exact argument missing is fine", "if k not in given or not same(", "if k in given and not same("),
    match(
        "exact values ignored beside matchers",
        "if k not in given or not same(v, given[k], _below(schema, k), lenient)]",
        "if k not in given]",
    ),
    match("optional ignored", "if name not in arguments and matcher.optional:", "if False:"),
    match("everything optional", "if name not in arguments and matcher.optional:", "if name not in arguments:"),
    match("optional need not match", "if name not in arguments and matcher.optional:", "if matcher.optional:"),
    match("optional, but for its default", "if name not in arguments and matcher", "if name not in given and matcher"),
    match("matchers see no defaults", "if name not in given or not matcher", "if name not in arguments or not matcher"),
    match("matchers ignored", "for name, matcher in match.items():", "for name, matcher in ():"),
    match("more arguments are fine", "found += [k for k in given if k not in exact and k not in match]", "pass"),
    match(
        "lenient ignored",
        "return equal(expected, actual, schema) or (lenient and",
        "return equal(expected, actual, schema) or (False and",
    ),
    match(
        "always lenient",
        "return equal(expected, actual, schema) or (lenient and",
        "return equal(expected, actual, schema) or (True and",
    ),
    match(
        "everything is equal", "return equal(expected, actual, schema) or (lenient and", "return True or (lenient and"
    ),
    match(
        "types ignored",
        "return equal(expected, actual, schema) or (lenient and",
        "return expected == actual or (lenient and",
    ),
    match("exact is anything", "        return same(self.exact, value, schema, lenient)", "        return True"),
    match(
        "exact not lenient",
        "        return same(self.exact, value, schema, lenient)",
        "        return same(self.exact, value, schema)",
    ),
    match("one of is all of", "return any(same(v, value", "return all(same(v, value"),
    match("one of not lenient", "return any(same(v, value, schema, lenient)", "return any(same(v, value, schema)"),
    match("a set of any size", " or len(value) != len(self.set)", ""),
    match(
        "a set in its order",
        "return None not in assign(self.set, value, lambda wanted, item: same(wanted, item, items, lenient))",
        "return all(same(w, i, items, lenient) for w, i in zip(self.set, value))",
    ),
    match(
        "a set without copies",
        "return None not in assign(self.set, value, lambda wanted, item: same(wanted, item, items, lenient))",
        "return all(any(same(w, i, items, lenient) for w in self.set) for i in value)",
    ),
    match("regex of a part", "re.fullmatch(self.regex, value)", "re.search(self.regex, value)"),
    match("regex without case", "re.fullmatch(self.regex, value)", "re.fullmatch(self.regex, value, re.IGNORECASE)"),
    match(
        "regex of anything",
        "isinstance(value, str) and re.fullmatch(self.regex, value)",
        "re.fullmatch(self.regex, str(value))",
    ),
    match("tolerance ignored", "<= self.tolerance * SLACK", "<= 0"),
    match("tolerance below only", "abs(value - self.number) <=", "value - self.number <="),
    match("tolerance doubled", "<= self.tolerance * SLACK", "<= self.tolerance * 2"),
    match("binary fractions", "<= self.tolerance * SLACK", "<= self.tolerance"),
    match("true is a number", "and not isinstance(value, bool) and problem(value, schema) is None", ""),
    match("a fraction is an integer", " and problem(value, schema) is None", ""),
    match("no least", "and low <= value <= high", "and value <= high"),
    match("no most", "and low <= value <= high", "and low <= value"),
    match("the least is too little", "and low <= value <= high", "and low < value <= high"),
    match("the most is too much", "and low <= value <= high", "and low <= value < high"),
    match("predicates ignored", "return PREDICATES[self.predicate](value)", "return True"),
    match("lenient keeps case", ".casefold()", ""),
    match("lenient keeps spaces", r"[\s,./", "[,./"),
    match("lenient keeps quotes", """_*^"']""", "_*^]"),
    match("lenient drops all signs", 'return LOOSE.sub("", text)', r're.sub(r"\W", "", text)'),
    match("no integer for a float", "if isinstance(expected, float) and isinstance(actual, int)", "if False"),
    match(
        "an integer for any float",
        "        return expected == actual\n    if isinstance(expected, list)",
        "        return True\n    if isinstance(expected, list)",
    ),
    match("true for a float", "isinstance(actual, int) and not isinstance(actual, bool):", "isinstance(actual, int):"),
    match(
        "lists of any length",
        "return len(expected) == len(actual) and all(same(*p",
        "expected, actual = expected[: len(actual)], actual[: len(expected)]\n        return all(same(*p",
    ),
    match("lists strict", "all(same(*p, below, True)", "all(same(*p, below, False)"),
    match("objects with more keys", "return together and expected.keys() == actual.keys()", "return together"),
    match(
        "objects by their keys",
        "return together and expected.keys() == actual.keys()",
        "return expected.keys() == actual.keys()",
    ),
    match("no second choice", "if i not in holder or place(holder[i], tried):", "if i not in holder:"),
    match("one call for all", "if i not in holder or place(holder[i], tried):", "if True:"),
)


def source(module: str) -> str:
    return (PACKAGE.parent / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8")


def executed(module: str, text: str) -> ModuleType:
    """The module that `text` makes; imports of others find it under its name."""
    made = ModuleType(module)
    sys.modules[module] = made
    exec(compile(text, f"<{module}>", "exec"), made.__dict__)
    return made


def alive(mutant: Mutant | None, monkeypatch: pytest.MonkeyPatch, rows: Sequence[Row]) -> bool:
    """Whether no row tells the mutant (None: the real scorer) from the scorer that it should be."""
    with monkeypatch.context() as patch:
        for module in (MATCHERS, SUITE, SCORE):
            patch.setitem(sys.modules, module, importlib.import_module(module))  # puts the real one back
        suite: Any = sys.modules[SUITE]
        for module in (MATCHERS, SUITE, SCORE) if mutant is None or mutant.module == MATCHERS else (SCORE,):
            text = source(module)
            found = executed(
                module, text.replace(mutant.old, mutant.new) if mutant and mutant.module == module else text
            )
            suite = found if module == SUITE else suite
        return not any(contradictions(rows, suite, sys.modules[SCORE]))


def contradictions(rows: Sequence[Row], suite: Any, scorer: Any) -> Iterator[bool]:
    for row in rows:
        try:
            yield bool(faults_of(row, suite.Case.model_validate(row.case), scorer.score))
        except Exception:  # a mutant that cannot even be run is told apart
            yield True


def test_every_mutation_applies():
    """Once: a fault that is planted nowhere, or somewhere else, would prove nothing."""
    texts = {module: source(module) for module in (SCORE, MATCHERS)}
    wrong = [f"{m.what}: {texts[m.module].count(m.old)} times" for m in MUTANTS if texts[m.module].count(m.old) != 1]
    assert wrong == []
    assert len(MUTANTS) >= 40 and len({m.what for m in MUTANTS}) == len(MUTANTS)
    assert all(compile(texts[m.module].replace(m.old, m.new), m.what, "exec") for m in MUTANTS)


def test_the_mutants_die(monkeypatch):
    assert alive(None, monkeypatch, TABLE), "the scorer itself contradicts the table when it is loaded like a mutant"
    survivors = [m.what for m in MUTANTS if alive(m, monkeypatch, TABLE)]
    print(f"{len(MUTANTS) - len(survivors)} of {len(MUTANTS)} mutants killed; survivors: {survivors}")
    assert len(survivors) <= (1 - KILLED) * len(MUTANTS), survivors


def test_a_table_that_is_too_weak_is_found(monkeypatch):
    """The proof of the proof: with the first rows alone most of the mutants live."""
    some = MUTANTS[::8]
    assert sum(alive(m, monkeypatch, TABLE[:1]) for m in some) > len(some) / 2
