"""The harder categories of the `agent` suite. Each maker draws a case for the tools that are offered, or finds none.

typed arguments             each JSON type, also text that looks like a number and numbers that look like text
long arguments              text of many lines, deep paths, long lists
two turns, three turns      questions that lean on the ones before; a part of them goes on with a history
error then recovery         the question says what to do if the first call fails (`adversity`)
injection in a tool result  a file or a history that gives orders (`adversity`)
answer from result          the answer needs a value that stands only in the result
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from punie_mlx.corpus import lexicon as lx
from punie_mlx.corpus.skills import SKILLS, Ask, class_name, folder, path, question, words
from punie_mlx.corpus.suites import adversity
from punie_mlx.corpus.suites.draft import Draft, draft, expect
from punie_mlx.corpus.suites.follow import calls_in_history, follow, opening
from punie_mlx.corpus.suites.proof import files_after, number
from punie_mlx.corpus.world import METRICS, PRIORITIES

Maker = Callable[[Random, Sequence[str]], Draft | None]
Drawn = Callable[[Random], Ask]


def _of(table: dict[str, Drawn], category: str) -> Maker:
    """A maker that takes one of the offered tools for which `table` has a question."""

    def make(r: Random, offered: Sequence[str]) -> Draft | None:
        able = sorted(set(table) & set(offered))
        return draft(category, table[r.choice(able)](r)) if able else None

    return make


def _and(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


# ---- typed arguments ----


def _typed_options(r: Random) -> Ask:
    keys = r.sample(lx.OPTION_KEYS, r.randint(2, 4))
    values: list[Any] = [
        r.choice([True, False]),
        r.randint(-20, 200),
        r.randint(1, 99) / 4 + 0.125,
        str(r.randint(1, 99)),
        r.sample(lx.WORDS, 2),
        {r.choice(lx.WORDS): r.randint(1, 9)},
        None,
    ]
    options = dict(zip(keys, r.sample(values, len(keys)), strict=True))
    q = r.choice(["Set these options: {o}", "Please set the options {o}", "Update the project options with {o}"])
    return Ask(q.format(o=json.dumps(options)), "set_options", {"options": options}, "updated")


def _typed_threshold(r: Random) -> Ask:
    metric, value = r.choice(METRICS), r.choice([r.randint(1, 99), r.randint(1, 99) / 8, r.randint(1, 999) / 1000])
    q = r.choice(["Set the threshold of {m} to {v}", "Make {v} the {m} threshold", "Change the {m} threshold to {v}"])
    return Ask(q.format(m=metric, v=value), "set_threshold", {"metric": metric, "value": value}, "updated")


def _typed_text(r: Random) -> Ask:
    at = path(r)
    content = r.choice([str(r.randint(1, 9999)), "true", "null", json.dumps({r.choice(lx.WORDS): r.randint(1, 9)})])
    content = r.choice([content, f"{r.randint(0, 99)}.{r.randint(10, 99)}", json.dumps(r.sample(lx.WORDS, 2))])
    q = r.choice(["Write exactly {t} to {p}", "Save {t} as the whole text of {p}", "Put the text {t} into {p}"])
    return Ask(q.format(t=content, p=at), "write_file", {"path": at, "content": content}, "saved")


def _typed_issue(r: Random) -> Ask:
    title, labels, priority = words(r, 1, 3), r.sample(lx.LABELS, 3), r.choice(PRIORITIES)
    q = r.choice(
        ["Create an issue '{t}' with the labels {s} and {p} priority", "Open a {p} priority issue '{t}', labelled {s}"]
    )
    arguments = {"title": title, "labels": labels, "priority": priority}
    return Ask(q.format(t=title, s=_and(labels), p=priority), "create_issue", arguments, "created")


def _typed_server(r: Random) -> Ask:
    port = r.randint(1024, 65000)
    if r.random() < 0.5:
        q = r.choice(["Start the server on port {n} without reload", "Start a server on port {n}, no reloading"])
        return Ask(q.format(n=port), "start_server", {"port": port}, "started")
    q = r.choice(["Start the server with reload, on port {n}", "I want a reloading server on port {n}"])
    return Ask(q.format(n=port), "start_server", {"port": port, "reload": True}, "started")


def _typed_task(r: Random) -> Ask:
    task, n, repeat = words(r, 1, 3), r.randint(1, 600), r.random() < 0.5
    once = [
        "In {n} minutes do the task '{t}', once",
        "Schedule the task '{t}' for {n} minutes from now, without repeating",
    ]
    often = ["Every {n} minutes do the task '{t}'", "Schedule the task '{t}' to repeat every {n} minutes"]
    arguments = {"task": task, "minutes": n, "repeat": repeat}
    return Ask(r.choice(often if repeat else once).format(t=task, n=n), "schedule_task", arguments, "scheduled")


def _typed_tests(r: Random) -> Ask:
    paths = [f"tests/{name}.py" for name in r.sample(lx.STEMS + lx.WORDS, r.randint(3, 5))]
    q, more = r.choice([("Run the tests in {p}", {}), ("Run the tests in {p}, with verbose output", {"verbose": True})])
    result = f"{len(paths)} passed"
    return Ask(q.format(p=_and(paths)), "run_tests", {"paths": paths, **more}, result, dict.fromkeys(paths, "x"))


def _typed_package(r: Random) -> Ask:
    package, v = r.choice(lx.PACKAGES), f"{r.randint(0, 30)}.{r.choice([0, 10, 20])}"
    dev = {"dev": True} if r.random() < 0.5 else {}
    q = r.choice(["Install {p} in version {v}{d}", "I need {p} {v}{d}", "Add the package {p}, version {v}{d}"])
    shown = q.format(p=package, v=v, d=", as a dev package" if dev else "")
    return Ask(shown, "install_package", {"package": package, "version": v, **dev}, "installed")


def _typed_format(r: Random) -> Ask:
    at, n = path(r), r.randint(50, 160)
    q = r.choice(["Format {p}, at most {n} columns a line", "Format {p} with a line length of {n}"])
    return Ask(q.format(p=at, n=n), "format_code", {"path": at, "line_length": n}, "formatted", {at: words(r, 1, 3)})


TYPED: dict[str, Drawn] = {
    "set_options": _typed_options, "set_threshold": _typed_threshold, "write_file": _typed_text,
    "create_issue": _typed_issue, "start_server": _typed_server, "schedule_task": _typed_task,
    "run_tests": _typed_tests, "install_package": _typed_package, "format_code": _typed_format,
}  # fmt: skip


# ---- long arguments ----


def _deep(r: Random) -> str:
    """`src/amber/basil/…`: six to nine folders."""
    return "/".join([r.choice(lx.DIRS), *r.sample(lx.WORDS, r.randint(5, 8))])


def _deep_path(r: Random) -> str:
    return f"{_deep(r)}/{r.choice(lx.STEMS)}_{r.choice(lx.WORDS)}.{r.choice(lx.EXTENSIONS)}"


def _long_text(r: Random) -> str:
    return "\n".join(words(r, 2, 5) for _ in range(r.randint(6, 14)))


def _long_write(r: Random) -> Ask:
    at, text = path(r), _long_text(r)
    q = r.choice(
        [
            "Write these lines to {p}:\n\n{t}",
            "Save the following text in {p}:\n\n{t}",
            "Put this into the file {p}:\n\n{t}",
        ]
    )
    return Ask(q.format(p=at, t=text), "write_file", {"path": at, "content": text}, "saved")


def _long_on(tool: str, *forms: str) -> Drawn:
    def make(r: Random) -> Ask:
        at, n = _deep_path(r), r.randint(2, 9)
        lines = r.sample(lx.WORDS, n)
        result = {"read_file": "\n".join(lines), "count_lines": f"{n} lines", "delete_file": "deleted"}[tool]
        return Ask(r.choice(forms).format(p=at), tool, {"path": at}, result, {at: "\n".join(lines)})

    return make


def _long_move(r: Random) -> Ask:
    a, b = _deep_path(r), _deep_path(r)
    q = r.choice(["Move {a} to {b}", "Please move the file {a} to {b}"]).format(a=a, b=b)
    return Ask(q, "move_file", {"source": a, "destination": b}, "moved", {a: words(r, 2, 4)})


def _long_commit(r: Random) -> Ask:
    message = f"{r.choice(['fix', 'add', 'rework'])} {words(r, 12, 24)}"
    q = r.choice(["Commit with the message '{m}'", "Commit all my changes as '{m}'"])
    return Ask(q.format(m=message), "git_commit", {"message": message}, "committed")


def _long_issue(r: Random) -> Ask:
    title, labels = words(r, 12, 24), r.sample(lx.LABELS, r.randint(4, 6))
    q = r.choice(["Create an issue '{t}' labelled {s}", "Open an issue with the title '{t}' and the labels {s}"])
    return Ask(q.format(t=title, s=_and(labels)), "create_issue", {"title": title, "labels": labels}, "created")


def _long_tests(r: Random) -> Ask:
    paths = [f"tests/{name}.py" for name in r.sample(lx.STEMS + lx.WORDS, r.randint(7, 10))]
    q = r.choice(["Run the tests in {p}", "Run these tests: {p}"]).format(p=_and(paths))
    return Ask(q, "run_tests", {"paths": paths}, f"{len(paths)} passed", dict.fromkeys(paths, "x"))


def _long_options(r: Random) -> Ask:
    keys = [*lx.OPTION_KEYS, *r.sample(lx.WORDS, 4)]
    r.shuffle(keys)
    options = {k: r.choice([True, False, r.randint(1, 99), r.choice(lx.WORDS)]) for k in keys[: r.randint(8, 12)]}
    q = r.choice(["Set these options: {o}", "Set all of these options at once: {o}"])
    return Ask(q.format(o=json.dumps(options)), "set_options", {"options": options}, "updated")


def _long_echo(r: Random) -> Ask:
    text = words(r, 14, 28)
    q = r.choice(["Run `echo {t}`", "Run the command `echo {t}`"]).format(t=text)
    return Ask(q, "run_command", {"command": f"echo {text}"}, text)


def _long_task(r: Random) -> Ask:
    task, n = words(r, 12, 20), r.randint(1, 99)
    arguments = {"task": task, "minutes": n, "repeat": True}
    return Ask(f"Schedule the task '{task}' every {n} minutes", "schedule_task", arguments, "scheduled")


def _long_search(r: Random) -> Ask:
    w, d = r.choice(lx.WORDS), _deep(r)
    hit = f"{d}/{r.choice(lx.STEMS)}.{r.choice(lx.EXTENSIONS)}"
    q = r.choice(["Search for {w} in {d}", "Search {d} for {w}"]).format(w=w, d=d)
    return Ask(q, "search", {"pattern": w, "path": d}, hit, {hit: w})


def _long_dir(r: Random) -> Ask:
    d = _deep(r)
    return Ask(r.choice([f"Make the directory {d}", f"Create the folder {d}"]), "make_dir", {"path": d}, "created")


LONG: dict[str, Drawn] = {
    "write_file": _long_write, "move_file": _long_move, "git_commit": _long_commit, "create_issue": _long_issue,
    "run_tests": _long_tests, "set_options": _long_options, "run_command": _long_echo, "schedule_task": _long_task,
    "search": _long_search, "make_dir": _long_dir,
    "read_file": _long_on("read_file", "Read {p}", "Show me {p}", "What is in {p}?"),
    "count_lines": _long_on("count_lines", "How many lines has {p}?", "Count the lines of {p}"),
    "delete_file": _long_on("delete_file", "Delete {p}", "Remove the file {p}"),
}  # fmt: skip


# ---- answer from result ----


def _from_settings(r: Random) -> Draft:
    """The value of one key, of the several in a file."""
    at = f"{folder(r)}/{r.choice(lx.STEMS)}.{r.choice(['toml', 'txt', 'md'])}"
    keys = r.sample(lx.OPTION_KEYS, r.randint(3, 5))
    values = r.sample(range(100, 9999), len(keys))
    text = "\n".join(f"{k} = {v}" for k, v in zip(keys, values, strict=True))
    n = r.randrange(len(keys))
    q = r.choice(
        ["Read {p} and tell me the value of {k}", "Open {p}: what is {k} set to?", "Read {p}. What is the {k}?"]
    )
    ask = Ask(q.format(p=at, k=keys[n]), "read_file", {"path": at}, text, {at: text})
    return Draft("answer from result", ask.query, {**expect([ask], []), "answer": _holds(values[n])}, ask.files)


def _holds(value: int) -> dict[str, Any]:
    """The number, with or without a comma for the thousands."""
    return {"matches": rf"\b({value}|{value:,})\b"}


def _from_counts(r: Random) -> Draft:
    """Which of two files is longer: two calls, one comparison."""
    a, b = path(r), path(r)
    few, many = sorted(r.sample(range(2, 10), 2))
    a_lines, b_lines = r.choice([(few, many), (many, few)])
    texts = {a: "\n".join(r.sample(lx.WORDS, a_lines)), b: "\n".join(r.sample(lx.WORDS, b_lines))}
    q = r.choice(["How many lines have {a} and {b}, each?", "Count the lines of {a} and of {b}"]).format(a=a, b=b)
    asks = [Ask(q, "count_lines", {"path": p}, f"{len(t.splitlines())} lines", {p: t}) for p, t in texts.items()]
    told = {"matches": f"(?is)(?=.*{number(a_lines)})(?=.*{number(b_lines)})"}
    return Draft("answer from result", q, {**expect(asks, []), "answer": told}, texts)


def _from_search(r: Random) -> Draft:
    """Which files hold a word: some do, some do not."""
    w, d = r.choice(lx.WORDS), folder(r)
    names = r.sample([f"{s}.{e}" for s in lx.STEMS for e in lx.EXTENSIONS], 4)
    hits = {f"{d}/{n}" for n in names[: r.randint(1, 3)]}
    files = {f"{d}/{n}": w if f"{d}/{n}" in hits else r.choice([x for x in lx.WORDS if x != w]) for n in names}
    q = r.choice(
        ["Name the files in {d} that contain the word {w}", "In which files of {d} does {w} stand? Search for it"]
    )
    ask = Ask(q.format(d=d, w=w), "search", {"pattern": w, "path": d}, " ".join(sorted(hits)), files)
    told = {"contains": [h.rsplit("/", 1)[1] for h in sorted(hits)]}
    return Draft("answer from result", ask.query, {**expect([ask], []), "answer": told}, files)


def _from_symbol(r: Random) -> Draft:
    name = class_name(r)
    at, others = f"{folder(r)}/{r.choice(lx.STEMS)}.py", [f"{folder(r)}/{w}.py" for w in r.sample(lx.WORDS, 2)]
    files = {**{o: f"class {class_name(r)}Base" for o in others}, at: f"class {name}:\n    pass"}
    q = r.choice(["In which file is the class {n} defined?", "Tell me the path of the file that defines the class {n}"])
    arguments = {"name": name, "kind": "class"}
    ask = Ask(q.format(n=name), "find_symbol", arguments, at, files)
    calls = [
        {"name": "find_symbol", "arguments": {"name": name}, "match": {"kind": {"exact": "class", "optional": True}}}
    ]
    return Draft("answer from result", ask.query, {"calls": calls, "answer": {"contains": [at]}}, files)


def _from_list(r: Random) -> Draft:
    """How many files are in a folder, or what they are."""
    d = folder(r)
    names = sorted(r.sample([f"{s}.{e}" for s in lx.STEMS for e in lx.EXTENSIONS], r.randint(3, 6)))
    files = {f"{d}/{n}": words(r, 1, 2) for n in names}
    kind = r.choice(sorted({n.rsplit(".", 1)[1] for n in names}))
    q = r.choice(["List {d} and name its .{k} files", "Look into the folder {d}: which .{k} files are there?"])
    ask = Ask(q.format(d=d, k=kind), "list_dir", {"path": d}, " ".join(names), files)
    told = {"contains": [n for n in names if n.endswith(f".{kind}")]}
    either = {"recursive": {"one_of": [True, False], "optional": True}}  # nothing lies deeper
    calls = [{"name": "list_dir", "arguments": {"path": d}, "match": either}]
    return Draft("answer from result", ask.query, {"calls": calls, "answer": told}, files)


def _from_command(r: Random) -> Draft:
    at, n = path(r), r.randint(3, 7)
    lines = r.sample(lx.WORDS, n)
    which, command = r.choice([("first", f"head -n 1 {at}"), ("last", f"tail -n 1 {at}")])
    value = lines[0] if which == "first" else lines[-1]
    q = r.choice(["Run `{c}` and tell me the word that it prints", "What does `{c}` print? Run it"])
    ask = Ask(q.format(c=command), "run_command", {"command": command}, value, {at: "\n".join(lines)})
    told = {"matches": rf"(?i)\b{value}\b"}
    return Draft("answer from result", ask.query, {**expect([ask], []), "answer": told}, ask.files)


FROM_RESULT: dict[str, Callable[[Random], Draft]] = {
    "read_file": _from_settings, "count_lines": _from_counts, "search": _from_search, "find_symbol": _from_symbol,
    "list_dir": _from_list, "run_command": _from_command,
}  # fmt: skip


def _from_result(r: Random, offered: Sequence[str]) -> Draft | None:
    able = sorted(set(FROM_RESULT) & set(offered))
    return FROM_RESULT[r.choice(able)](r) if able else None


# ---- two and three turns ----


def _turns(count: int, category: str) -> Maker:
    def make(r: Random, offered: Sequence[str]) -> Draft | None:
        asks: list[Ask] = [opening(r, offered)]
        while len(asks) < count:
            found = follow(r, asks[-1], offered)
            if found is None:
                return None
            asks.append(found)
        aside = r.randrange(1, count) if count > 2 and r.random() < 0.25 else 0  # a question without a call
        queries = [a.query for a in asks]
        if aside:
            asks, queries = [*asks[:-1]], [*queries[:aside], question(r)[0], *queries[aside:-1]]
        if not aside and r.random() < 0.4:
            return _goes_on(category, asks)
        last = asks[-1:] if not aside or aside < count - 1 else []
        return Draft(category, queries[0], expect(asks, last, order="given"), asks[0].files, queries[1:])

    return make


def _goes_on(category: str, asks: Sequence[Ask]) -> Draft:
    """The last question alone, after a history in which the ones before were answered."""
    *before, last = asks
    history = calls_in_history(before, [f"The result is: {a.result}" for a in before])
    changed = files_after(before)
    files = {p: t for p, t in {**asks[0].files, **changed}.items() if t is not None}
    after = files_after(asks)
    wanted = {k: v for k, v in expect([last]).items() if k != "files"}
    if set(after) - {p for p, t in changed.items() if after[p] == t}:
        wanted["files"] = after
    return Draft(category, last.query, wanted, files, history=history)


HARD: dict[str, Maker] = {
    "typed arguments": _of(TYPED, "typed arguments"),
    "two turns": _turns(2, "two turns"),
    "three turns": _turns(3, "three turns"),
    "error then recovery": adversity.recovery,
    "long arguments": _of(LONG, "long arguments"),
    "injection in a tool result": adversity.injection,
    "answer from result": _from_result,
}
assert set(LONG) | set(TYPED) <= set(SKILLS)
