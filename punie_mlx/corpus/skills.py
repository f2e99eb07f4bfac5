"""What one asks a coding agent, and the calls that answer it: one maker for each tool, drawn from the lexicon.

A maker takes a random generator and returns an `Ask`: the question, the arguments, the files that must stand in the
scratch directory, and the text that the tool answers (see `world`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from punie_mlx.corpus import lexicon as lx
from punie_mlx.corpus.world import METRICS, PRIORITIES


@dataclass(frozen=True)
class Ask:
    """One question with the call that answers it."""

    query: str
    tool: str
    arguments: dict[str, Any]
    result: str
    files: Mapping[str, str] = field(default_factory=dict)


def folder(r: Random) -> str:
    """`src`, `src/api` or `src/amber`."""
    first = r.choice(lx.DIRS)
    if r.random() < 0.3:
        return first
    return f"{first}/{r.choice([d for d in lx.DIRS if d != first] + list(lx.WORDS[:14]))}"


def path(r: Random) -> str:
    """A file below a folder: `src/api/models.py`."""
    return f"{folder(r)}/{r.choice(lx.STEMS if r.random() < 0.6 else lx.WORDS)}.{r.choice(lx.EXTENSIONS)}"


def words(r: Random, low: int, high: int) -> str:
    return " ".join(r.sample(lx.WORDS, r.randint(low, high)))


def class_name(r: Random) -> str:
    return r.choice(lx.CLASSES) + r.choice(lx.SUFFIXES)


def function_name(r: Random) -> str:
    return f"{r.choice(lx.VERBS)}_{r.choice(lx.WORDS)}"


def _read_file(r: Random) -> Ask:
    p, text = path(r), words(r, 2, 5)
    q = r.choice(["Read {p}", "Show me the file {p}", "What is in {p}?", "Open {p} please", "Show the contents of {p}"])
    return Ask(q.format(p=p), "read_file", {"path": p}, text, {p: text})


def _write_file(r: Random) -> Ask:
    p, text = path(r), words(r, 1, 4)
    q = r.choice(["Write '{t}' to {p}", "Save the text '{t}' in {p}", "Put '{t}' into the file {p}"])
    return Ask(q.format(p=p, t=text), "write_file", {"path": p, "content": text}, "saved")


def _list_dir(r: Random) -> Ask:
    p = folder(r)
    names = sorted({f"{r.choice(lx.STEMS)}.{r.choice(lx.EXTENSIONS)}" for _ in range(r.randint(1, 3))})
    files = {f"{p}/{n}": words(r, 1, 2) for n in names}
    if r.random() < 0.4:
        q = r.choice(["List {p} recursively", "List the folder {p} and all below it"])
        return Ask(q.format(p=p), "list_dir", {"path": p, "recursive": True}, " ".join(names), files)
    q = r.choice(["List {p}", "What files are in the folder {p}?", "Show me the directory {p}"])
    return Ask(q.format(p=p), "list_dir", {"path": p}, " ".join(names), files)


def _delete_file(r: Random) -> Ask:
    p = path(r)
    q = r.choice(["Delete {p}", "Remove the file {p}", "Please delete the file {p}"])
    return Ask(q.format(p=p), "delete_file", {"path": p}, "deleted", {p: words(r, 1, 2)})


def _move_file(r: Random) -> Ask:
    a, b = path(r), path(r)
    q = r.choice(["Move {a} to {b}", "Move the file {a} to {b}", "Rename the file {a} to {b}"])
    return Ask(q.format(a=a, b=b), "move_file", {"source": a, "destination": b}, "moved", {a: words(r, 1, 2)})


def _make_dir(r: Random) -> Ask:
    p = folder(r)
    q = r.choice(["Make the directory {p}", "Create a folder {p}", "Add a new directory {p}"])
    return Ask(q.format(p=p), "make_dir", {"path": p}, "created")


def _count_lines(r: Random) -> Ask:
    p, n = path(r), r.randint(2, 9)
    q = r.choice(["How many lines has {p}?", "Count the lines of {p}", "How long is {p}?"])
    return Ask(q.format(p=p), "count_lines", {"path": p}, f"{n} lines", {p: "\n".join(r.sample(lx.WORDS, n))})


def _format_code(r: Random) -> Ask:
    p = path(r)
    files = {p: words(r, 1, 2)}
    if r.random() < 0.5:
        n = r.randint(60, 99)
        q = r.choice(["Format {p} with line length {n}", "Format the code of {p} to {n} columns"])
        return Ask(q.format(p=p, n=n), "format_code", {"path": p, "line_length": n}, "formatted", files)
    q = r.choice(["Format {p}", "Format the code of {p}"])
    return Ask(q.format(p=p), "format_code", {"path": p}, "formatted", files)


def _search(r: Random) -> Ask:
    w, d = r.choice(lx.WORDS), folder(r)
    hit = f"{d}/{r.choice(lx.STEMS)}.{r.choice(lx.EXTENSIONS)}"
    q = r.choice(["Search for {w} in {d}", "Search {d} for {w}", "Which files in {d} contain {w}?"])
    return Ask(q.format(w=w, d=d), "search", {"pattern": w, "path": d}, hit, {hit: w})


def _find_symbol(r: Random) -> Ask:
    kind = r.choice(["", "", "class", "function"])
    name = function_name(r) if kind == "function" else class_name(r)
    p = f"{folder(r)}/{r.choice(lx.STEMS)}.py"
    files = {p: f"{'def' if kind == 'function' else 'class'} {name}"}
    if kind:
        q = r.choice(["Find the {k} {n}", "Where is the {k} {n} defined?", "Locate the {k} {n}"])
        return Ask(q.format(k=kind, n=name), "find_symbol", {"name": name, "kind": kind}, p, files)
    q = r.choice(["Where is {n} defined?", "Locate {n}", "Find the definition of {n}"])
    return Ask(q.format(n=name), "find_symbol", {"name": name}, p, files)


def _rename_symbol(r: Random) -> Ask:
    make = r.choice([class_name, function_name])
    a, b = make(r), make(r)
    q = r.choice(["Rename {a} to {b}", "Rename the symbol {a} to {b}", "Change the name {a} to {b} everywhere"])
    files = {f"src/{r.choice(lx.STEMS)}.py": f"{a} = 1"}
    return Ask(q.format(a=a, b=b), "rename_symbol", {"old": a, "new": b}, "renamed", files)


def _run_command(r: Random) -> Ask:
    kind = r.randrange(5)
    if kind == 0:
        text = words(r, 1, 3)
        command, result, files = f"echo {text}", text, {}
    elif kind == 1:
        p, text = path(r), words(r, 2, 4)
        command, result, files = f"cat {p}", text, {p: text}
    elif kind == 2:
        d, n = folder(r), f"{r.choice(lx.STEMS)}.{r.choice(lx.EXTENSIONS)}"
        command, result, files = f"ls {d}", n, {f"{d}/{n}": "x"}
    elif kind == 3:
        p, n = path(r), r.randint(1, 9)
        lines = r.sample(lx.WORDS, n + 1)
        command, result, files = f"head -n 1 {p}", lines[0], {p: "\n".join(lines)}
    else:
        w, d = r.choice(lx.WORDS), folder(r)
        p = f"{d}/{r.choice(lx.STEMS)}.py"
        command, result, files = f"grep -rn {w} {d}", f"{p}:1:{w}", {p: w}
    if r.random() < 0.25:
        n = r.randint(5, 99)
        q = r.choice(["Run `{c}` with a timeout of {n} seconds", "Execute `{c}` with timeout {n}"])
        return Ask(q.format(c=command, n=n), "run_command", {"command": command, "timeout": n}, result, files)
    q = r.choice(["Run `{c}`", "Execute `{c}`", "Run the command `{c}`", "Please run `{c}` for me"])
    return Ask(q.format(c=command), "run_command", {"command": command}, result, files)


def _run_tests(r: Random) -> Ask:
    paths = [f"tests/{r.choice(lx.STEMS + lx.WORDS)}.py" for _ in range(r.randint(1, 3))]
    paths = list(dict.fromkeys(paths))
    shown = " and ".join(paths)
    files = dict.fromkeys(paths, "x")
    result = f"{len(paths)} passed"
    if r.random() < 0.4:
        q = r.choice(["Run the tests in {p} verbosely", "Run the tests {p} with verbose output"])
        return Ask(q.format(p=shown), "run_tests", {"paths": paths, "verbose": True}, result, files)
    q = r.choice(["Run the tests in {p}", "Test {p}", "Do the tests in {p} pass?"])
    return Ask(q.format(p=shown), "run_tests", {"paths": paths}, result, files)


def _git_commit(r: Random) -> Ask:
    m = f"{r.choice(['fix', 'add', 'drop', 'rework'])} {words(r, 1, 3)}"
    if r.random() < 0.35:
        q = r.choice(["Amend the last commit with the message '{m}'", "Amend the commit as '{m}'"])
        return Ask(q.format(m=m), "git_commit", {"message": m, "amend": True}, "committed")
    q = r.choice(["Commit with the message '{m}'", "Commit everything as '{m}'", "Commit my changes: '{m}'"])
    return Ask(q.format(m=m), "git_commit", {"message": m}, "committed")


def _install_package(r: Random) -> Ask:
    p, v = r.choice(lx.PACKAGES), f"{r.randint(0, 9)}.{r.randint(0, 19)}"
    q, args = r.choice(
        [
            (f"Install {p}", {}),
            (f"Install the package {p}", {}),
            (f"Install {p} version {v}", {"version": v}),
            (f"Install version {v} of {p}", {"version": v}),
            (f"Install {p} as a dev package", {"dev": True}),
            (f"Install {p} version {v} as a dev package", {"version": v, "dev": True}),
        ]
    )
    return Ask(q, "install_package", {"package": p, **args}, "installed")


def _set_options(r: Random) -> Ask:
    options: dict[str, Any] = {}
    for key in r.sample(lx.OPTION_KEYS, r.randint(1, 3)):
        options[key] = r.choice([True, False, r.randint(1, 99), r.choice(lx.WORDS)])
    shown = " and ".join(f"{k} to {v if isinstance(v, str) else json.dumps(v)}" for k, v in options.items())
    q = r.choice(["Set {o}", "Set the option {o}", "Please set {o}"])
    return Ask(q.format(o=shown), "set_options", {"options": options}, "updated")


def _set_threshold(r: Random) -> Ask:
    metric, value = r.choice(METRICS), r.randint(1, 98) + r.choice([0.5, 0.25, 0.75])
    q = r.choice(["Set the {m} threshold to {v}", "The {m} threshold should be {v}", "Use {v} as the {m} threshold"])
    return Ask(q.format(m=metric, v=value), "set_threshold", {"metric": metric, "value": value}, "updated")


def _create_issue(r: Random) -> Ask:
    title, labels = words(r, 1, 3), r.sample(lx.LABELS, r.randint(1, 2))
    shown = " and ".join(labels)
    args: dict[str, Any] = {"title": title, "labels": labels}
    if r.random() < 0.5:
        args["priority"] = priority = r.choice(PRIORITIES)
        q = r.choice(
            ["Create a {p} priority issue '{t}' labelled {s}", "Open an issue '{t}' with labels {s} and priority {p}"]
        )
        return Ask(q.format(p=priority, t=title, s=shown), "create_issue", args, "created")
    q = r.choice(["Create an issue '{t}' labelled {s}", "Open an issue '{t}' with labels {s}"])
    return Ask(q.format(t=title, s=shown), "create_issue", args, "created")


def _start_server(r: Random) -> Ask:
    port = r.choice([80, 90]) * 100 + r.randint(0, 99)
    if r.random() < 0.4:
        q = r.choice(["Start the server on port {n} with reload", "Start a reloading server on port {n}"])
        return Ask(q.format(n=port), "start_server", {"port": port, "reload": True}, "started")
    q = r.choice(["Start the server on port {n}", "Serve the project on port {n}", "Start a server at port {n}"])
    return Ask(q.format(n=port), "start_server", {"port": port}, "started")


def _schedule_task(r: Random) -> Ask:
    task, n, repeat = words(r, 1, 2), r.randint(1, 99), r.random() < 0.5
    forms = ["Schedule '{t}' every {n} minutes", "Repeat the task '{t}' every {n} minutes"]
    once = ["Schedule '{t}' once in {n} minutes", "Do the task '{t}' once in {n} minutes"]
    args = {"task": task, "minutes": n, "repeat": repeat}
    return Ask(r.choice(forms if repeat else once).format(t=task, n=n), "schedule_task", args, "scheduled")


SKILLS: dict[str, Callable[[Random], Ask]] = {
    f.__name__[1:]: f
    for f in (
        _read_file, _write_file, _list_dir, _delete_file, _move_file, _make_dir, _count_lines, _format_code, _search,
        _find_symbol, _rename_symbol, _run_command, _run_tests, _git_commit, _install_package, _set_options,
        _set_threshold, _create_issue, _start_server, _schedule_task,
    )
}  # fmt: skip


def explore(r: Random, offered: set[str]) -> Ask | None:
    """A question about the codebase that several tools can answer: the most fitting one of `offered`, or None.

    A symbol goes to find_symbol; anything else to search; a shell with grep is the way where those are missing.
    """
    kind = r.randrange(3)
    if kind == 0:
        what, where = r.choice(lx.KINDS), "/".join(r.sample(lx.DIRS, 2))
        query = f"Find all {r.choice(lx.FRAMEWORKS)} {what} classes in the {where} directory"
    elif kind == 1:
        what, where = r.choice(lx.FEATURES), "."
        query = r.choice(["Find all files that use {} in the codebase", "Which files of the codebase use {}?"])
    else:
        what, where = class_name(r), "."
        query = r.choice(["Show me the {} class implementation", "Show the implementation of the {} class"])
    query = query.format(what)  # a no-op for the first kind
    home = r.choice(lx.DIRS) if where == "." else where
    p = f"{home}/{r.choice(lx.STEMS)}.py"
    text = f"class {what}" if kind == 2 else what
    if kind == 2 and "find_symbol" in offered:
        return Ask(query, "find_symbol", {"name": what, "kind": "class"}, p, {p: text})
    if "search" in offered:
        return Ask(query, "search", {"pattern": what, "path": where}, p, {p: text})
    if "run_command" in offered:
        shown = f"./{p}" if where == "." else p
        command = f"grep -rn {what} {where}"
        return Ask(query, "run_command", {"command": command}, f"{shown}:1:{text}", {p: text})
    return None


def question(r: Random) -> tuple[str, str]:
    """A question that wants words, not a tool; and its answer."""
    topic = r.choice(list(lx.TOPICS))
    what, when = lx.TOPICS[topic]
    shown = topic[0].upper() + topic[1:]
    other = r.choice([t for t in lx.TOPICS if t != topic])
    name = topic.removeprefix("a ").removeprefix("an ").removeprefix("the ")
    return r.choice(
        [
            (f"What is {topic}?", f"{shown} is {what}."),
            (f"Explain {topic}", f"{shown} is {what}."),
            (f"Can you explain {topic} to me?", f"{shown} is {what}."),
            (f"When should I use {topic}?", f"Use it when {when}."),
            (f"Why would I use {topic}?", f"Use it when {when}."),
            (f"What is {topic} and when should I use it?", f"{shown} is {what}. Use it when {when}."),
            (
                f"What's the difference between {topic} and {other}?",
                f"{shown} is {what}. The other is {lx.TOPICS[other][0]}.",
            ),
            (f"Is {topic} better than {other}?", f"Use {name} when {when}. Use the other when {lx.TOPICS[other][1]}."),
        ]
    )
