"""What shows that an `Ask` was done: the call, what the final answer must hold, and the files afterwards.

Nothing is asked for that a good agent may leave out: an option that it may also spell out as it is by default is
optional, and of a tool that only says "saved" no word need stand in the answer; the file tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from punie_mlx.corpus.skills import Ask

# Options that nobody asked for, but that may be given with this value.
UNASKED: dict[str, dict[str, dict[str, Any]]] = {
    "list_dir": {"recursive": {"exact": False}},
    "run_tests": {"verbose": {"exact": False}},
    "git_commit": {"amend": {"exact": False}},
    "install_package": {"dev": {"exact": False}},
    "start_server": {"reload": {"exact": False}},
    "find_symbol": {"kind": {"exact": "class"}},  # a name without a kind is always that of a class
    "run_command": {"timeout": {"min": 1}},
}
# Tool → other tools with which a resourceful agent could do the same: it is missing only where none is offered.
SUBSTITUTES: dict[str, frozenset[str]] = {
    "read_file": frozenset({"run_command"}),
    "write_file": frozenset({"run_command"}),
    "list_dir": frozenset({"run_command", "search"}),
    "delete_file": frozenset({"run_command"}),
    "move_file": frozenset({"run_command", "write_file"}),
    "make_dir": frozenset({"run_command", "write_file"}),
    "count_lines": frozenset({"run_command", "read_file", "search"}),
    "format_code": frozenset({"run_command", "write_file"}),
    "search": frozenset({"run_command", "find_symbol", "read_file", "list_dir"}),
    "find_symbol": frozenset({"run_command", "search", "read_file", "list_dir"}),
    "rename_symbol": frozenset({"run_command", "write_file"}),
    "run_command": frozenset({"read_file", "list_dir", "search", "count_lines"}),
    "run_tests": frozenset({"run_command"}),
    "git_commit": frozenset({"run_command"}),
    "install_package": frozenset({"run_command", "write_file"}),
    "set_options": frozenset({"run_command", "write_file", "set_threshold"}),
    "set_threshold": frozenset({"run_command", "write_file", "set_options"}),
    "create_issue": frozenset({"run_command", "write_file", "schedule_task"}),
    "start_server": frozenset({"run_command"}),
    "schedule_task": frozenset({"run_command", "write_file", "create_issue"}),
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def expected_call(ask: Ask) -> dict[str, Any]:
    """The call of `ask`, as a suite expects it."""
    call: dict[str, Any] = {"name": ask.tool, "arguments": ask.arguments}
    unasked = {k: {**m, "optional": True} for k, m in UNASKED.get(ask.tool, {}).items() if k not in ask.arguments}
    return {**call, "match": unasked} if unasked else call


def number(n: int) -> str:
    """A pattern of the number, in digits or as a word."""
    return rf"\b({n}|{NUMBERS[n]})\b" if n < len(NUMBERS) else rf"\b{n}\b"


def answer(asks: Iterable[Ask]) -> dict[str, Any]:
    """What the answer to all `asks` must hold, as `expect.answer`; empty where the results say no more than "done"."""
    contains: list[str] = []
    patterns: list[str] = []
    for ask in asks:
        held, pattern = _evidence(ask)
        contains += [h for h in held if h not in contains]
        patterns += [pattern] if pattern and pattern not in patterns else []
    found: dict[str, Any] = {"contains": contains} if contains else {}
    if patterns:
        found["matches"] = "(?is)" + "".join(f"(?=.*{p})" for p in patterns) + ".*"
    return found


def _evidence(ask: Ask) -> tuple[list[str], str]:
    match ask.tool:
        case "read_file":
            return ask.result.splitlines(), ""
        case "list_dir" | "search" | "find_symbol":
            return ask.result.split(), ""
        case "count_lines":
            return [], number(int(ask.result.split()[0]))
        case "run_tests":
            return [], "pass"
        case "run_command" if ask.arguments["command"].startswith("grep"):
            return [ask.result.split(":")[0]], ""
        case "run_command":
            return ask.result.splitlines(), ""
    return [], ""


def files_after(asks: Sequence[Ask]) -> dict[str, str | None]:
    """The files that the calls of `asks`, in this order, write, move or delete: path → text, None where it is gone."""
    texts: dict[str, str] = {}
    changed: dict[str, str | None] = {}
    for ask in asks:
        texts |= {p: t for p, t in ask.files.items() if p not in changed}
        arguments = ask.arguments
        match ask.tool:
            case "write_file":
                changed[arguments["path"]] = texts[arguments["path"]] = arguments["content"]
            case "delete_file":
                changed[arguments["path"]] = None
            case "move_file":
                changed[arguments["source"]] = None
                changed[arguments["destination"]] = texts[arguments["destination"]] = texts[arguments["source"]]
            case "rename_symbol":
                whole = re.compile(rf"(?<!\w){re.escape(arguments['old'])}(?!\w)")
                for path, text in texts.items():
                    if whole.search(text) and changed.get(path, "") is not None:
                        changed[path] = texts[path] = whole.sub(arguments["new"], text)
    return changed
