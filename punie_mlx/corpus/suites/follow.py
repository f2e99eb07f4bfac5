"""What one asks next in a conversation: a question that leans on the one before it, for each pair of tools.

"Delete it", "and basil too": the second question alone does not say what the arguments are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from random import Random
from typing import Any

from punie_mlx.corpus import lexicon as lx
from punie_mlx.corpus.skills import SKILLS, Ask, class_name, path, words
from punie_mlx.corpus.world import METRICS

Link = Callable[[Random, Ask], Ask]
ON_FILES = ("read_file", "count_lines", "format_code", "write_file", "move_file", "delete_file")


def the_file(ask: Ask) -> tuple[str, str] | None:
    """Path and text of the one file that `ask` is about, as they are after it; None where there is none."""
    arguments = ask.arguments
    if ask.tool in ("read_file", "count_lines", "format_code"):
        return arguments["path"], ask.files[arguments["path"]]
    if ask.tool == "write_file":
        return arguments["path"], arguments["content"]
    if ask.tool == "move_file":
        return arguments["destination"], ask.files[arguments["source"]]
    if ask.tool in ("search", "find_symbol") and ask.result in ask.files:
        return ask.result, ask.files[ask.result]
    if ask.tool == "list_dir" and len(ask.files) == 1:
        return next(iter(ask.files.items()))
    return None


def _next_on_file(r: Random, tool: str, at: str, text: str, it: str) -> Ask:
    """What may be asked of the file at `at`, which is called `it`."""
    files = {at: text}
    if tool == "read_file":
        q = r.choice(["Show me {it}", "Read {it}", "Now open {it}", "And what is in {it}?"])
        return Ask(q.format(it=it), tool, {"path": at}, text, files)
    if tool == "count_lines":
        q = r.choice(["How many lines has {it}?", "Count the lines of {it}", "How long is {it}?"])
        return Ask(q.format(it=it), tool, {"path": at}, f"{len(text.splitlines())} lines", files)
    if tool == "format_code":
        n = r.randint(60, 120)
        q = r.choice(["Format {it} with line length {n}", "Now format {it} to {n} columns"])
        return Ask(q.format(it=it, n=n), tool, {"path": at, "line_length": n}, "formatted", files)
    if tool == "write_file":
        new = words(r, 2, 5)
        q = r.choice(["Write '{t}' to {it} instead", "Replace the text of {it} with '{t}'"])
        return Ask(q.format(it=it, t=new), tool, {"path": at, "content": new}, "saved", files)
    if tool == "move_file":
        to = path(r)
        q = r.choice(["Move {it} to {to}", "Now move {it} to {to}", "Please move {it} to {to}"])
        return Ask(q.format(it=it, to=to), tool, {"source": at, "destination": to}, "moved", files)
    q = r.choice(["Delete {it}", "Now delete {it}", "Please remove {it}"])
    return Ask(q.format(it=it), tool, {"path": at}, "deleted", files)


def _install(r: Random, before: Ask) -> Ask:
    package = r.choice([p for p in lx.PACKAGES if p != before.arguments["package"]])
    v = f"{r.randint(0, 9)}.{r.randint(0, 19)}"
    q, more = r.choice(
        [
            (f"And {package} as a dev package", {"dev": True}),
            (f"Now version {v} of {package}, not as a dev package", {"version": v}),
            (f"I also need {package} version {v}, as a dev package", {"version": v, "dev": True}),
        ]
    )
    return Ask(q, "install_package", {"package": package, **more}, "installed")


def _option(r: Random, before: Ask) -> Ask:
    key = r.choice([k for k in lx.OPTION_KEYS if k not in before.arguments["options"]])
    value = r.choice([r.randint(1, 99), r.choice(lx.WORDS)])
    q = r.choice(["And {k} to {v}", "Now set {k} to {v} as well"]).format(k=key, v=value)
    return Ask(q, "set_options", {"options": {key: value}}, "updated")


def _threshold(r: Random, before: Ask) -> Ask:
    metric = r.choice([m for m in METRICS if m != before.arguments["metric"]])
    value = r.randint(1, 98) + r.choice([0.5, 0.25, 0.75])
    q = r.choice(["And {v} for {m}", "Now the one for {m}: set it to {v}"]).format(m=metric, v=value)
    return Ask(q, "set_threshold", {"metric": metric, "value": value}, "updated")


def _server(r: Random, before: Ask) -> Ask:
    port = r.choice([80, 90]) * 100 + r.randint(0, 99)
    q = r.choice(["Start another one on port {n}, with reload", "One more on port {n}, this time with reload"])
    return Ask(q.format(n=port), "start_server", {"port": port, "reload": True}, "started")


def _task(r: Random, before: Ask) -> Ask:
    n = r.randint(1, 99)
    q = r.choice(["And '{t}' once in {n} minutes", "Now the task '{t}', once in {n} minutes"])
    task = words(r, 1, 2)
    arguments = {"task": task, "minutes": n, "repeat": False}
    return Ask(q.format(t=task, n=n), "schedule_task", arguments, "scheduled")


def _issue(r: Random, before: Ask) -> Ask:
    title = words(r, 1, 3)
    q = r.choice(
        [
            "Create another issue '{t}' with the same labels and high priority",
            "Now a high priority issue '{t}', labelled the same",
        ]
    )
    arguments = {"title": title, "labels": before.arguments["labels"], "priority": "high"}
    return Ask(q.format(t=title), "create_issue", arguments, "created")


def _amend(r: Random, before: Ask) -> Ask:
    message = f"{r.choice(['fix', 'add', 'drop'])} {words(r, 2, 3)}"
    q = r.choice(
        ["Amend that commit: the message should be '{m}'", "Change that commit's message to '{m}' by amending"]
    )
    return Ask(q.format(m=message), "git_commit", {"message": message, "amend": True}, "committed")


def _tests(r: Random, before: Ask) -> Ask:
    q = r.choice(["Run them again with verbose output", "Once more, but verbosely", "Repeat that verbosely"])
    return Ask(q, "run_tests", {"paths": before.arguments["paths"], "verbose": True}, before.result, before.files)


def _rename(r: Random, before: Ask) -> Ask:
    old, new = before.arguments["name"], class_name(r)
    q = r.choice(["Rename it to {n} everywhere", "Rename that symbol to {n}"])
    return Ask(q.format(n=new), "rename_symbol", {"old": old, "new": new}, "renamed", before.files)


def _write_in(r: Random, before: Ask) -> Ask:
    name, text = f"{r.choice(lx.WORDS)}.{r.choice(lx.EXTENSIONS)}", words(r, 1, 4)
    at = f"{before.arguments['path']}/{name}"
    q = r.choice(["Write '{t}' to a file {n} in it", "Put the text '{t}' into a new file {n} in that directory"])
    return Ask(q.format(t=text, n=name), "write_file", {"path": at, "content": text}, "saved")


def _same_command(r: Random, before: Ask) -> Ask:
    text = words(r, 1, 3)
    q = r.choice(["Now run `echo {t}`", "And then run `echo {t}`"])
    return Ask(q.format(t=text), "run_command", {"command": f"echo {text}"}, text)


# Tool of the question before → tool of the next → how it is asked.
LINKS: dict[str, dict[str, Link]] = {
    "install_package": {"install_package": _install},
    "set_options": {"set_options": _option},
    "set_threshold": {"set_threshold": _threshold},
    "start_server": {"start_server": _server},
    "schedule_task": {"schedule_task": _task},
    "create_issue": {"create_issue": _issue},
    "git_commit": {"git_commit": _amend},
    "run_tests": {"run_tests": _tests},
    "find_symbol": {"rename_symbol": _rename},
    "make_dir": {"write_file": _write_in},
    "run_command": {"run_command": _same_command},
}


def follow(r: Random, before: Ask, offered: Collection[str]) -> Ask | None:
    """A question that leans on `before`, with a tool of `offered`; None where none can.

    Its `files` are those that it needs as they are by then: `before` has made or kept them.
    """
    linked = [t for t in sorted(LINKS.get(before.tool, {})) if t in offered and not before.arguments.get("verbose")]
    found = the_file(before)
    on_file = [t for t in ON_FILES if t in offered and t != before.tool] if found else []
    if not linked and not on_file:
        return None
    tool = r.choice(linked + on_file)
    if found is None or tool in linked:
        return LINKS[before.tool][tool](r, before)
    it = "that file" if before.tool in ("search", "find_symbol") else "the file in it"
    return _next_on_file(r, tool, *found, r.choice(["it", "that file"]) if before.tool in ON_FILES else it)


def opening(r: Random, offered: Collection[str]) -> Ask:
    """A first question that another can lean on."""
    return SKILLS[r.choice(sorted(offered))](r)


def calls_in_history(asks: list[Ask], answers: list[str]) -> list[dict[str, Any]]:
    """A conversation so far: each question, its call and result as the API spells them, and the answer."""
    messages: list[dict[str, Any]] = []
    for n, (ask, answer) in enumerate(zip(asks, answers, strict=True), 1):
        function = {"name": ask.tool, "arguments": json.dumps(ask.arguments, ensure_ascii=False)}
        messages += [
            {"role": "user", "content": ask.query},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": f"call_{n}", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": f"call_{n}", "content": ask.result},
            {"role": "assistant", "content": answer},
        ]
    return messages
