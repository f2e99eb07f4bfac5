"""The coding agent's world: its tools as OpenAI function schemas, and what each one answers.

The corpus is written against these tools, and the evaluation executes them in a scratch directory
(`punie_mlx/evals/scratch.py`), so both must agree on the text of a result:

    read_file        the content of the file
    write_file       "saved"             (the file holds the content)
    list_dir         the sorted names in it, joined by a space; recursive: all file paths below it, relative to it
    delete_file      "deleted"
    move_file        "moved"
    make_dir         "created"
    count_lines      "N lines"
    format_code      "formatted"         (trailing white space is removed)
    search           the sorted paths of files below `path` that contain `pattern`, joined by a space; "nothing found"
    find_symbol      the path of the first file (sorted) with "class NAME", "def NAME" or "NAME ="; "nothing found"
    rename_symbol    "renamed"           (every whole-word occurrence, in every file)
    run_command      what the command prints, without the last newline; "no output"
    run_tests        "N passed", N being the number of paths
    git_commit       "committed"         (a line of the message in .history)
    install_package  "installed"         (a line in requirements.txt)
    set_options      "updated"           (merged into settings.json)
    set_threshold    "updated"           (settings.json, key "thresholds")
    create_issue     "created"           (a line of JSON in issues.jsonl)
    start_server     "started"           (a record in server.json; nothing is started)
    schedule_task    "scheduled"         (a line of JSON in tasks.jsonl)

A failure is "error: " and the reason, for example "error: no such file".
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
STRINGS: Schema = {"type": "array", "items": {"type": "string"}}


def _enum(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _tool(
    name: str, description: str, required: dict[str, Schema], optional: dict[str, Schema] | None = None
) -> Schema:
    parameters = {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


METRICS = ("coverage", "complexity", "duplication")
PRIORITIES = ("low", "medium", "high")
KINDS = ("class", "function", "variable")

TOOLS: dict[str, Schema] = {
    t["function"]["name"]: t
    for t in (
        _tool("read_file", "Read a file", {"path": STRING}),
        _tool("write_file", "Write text to a file", {"path": STRING, "content": STRING}),
        _tool("list_dir", "List a directory", {"path": STRING}, {"recursive": BOOLEAN}),
        _tool("delete_file", "Delete a file", {"path": STRING}),
        _tool("move_file", "Move a file", {"source": STRING, "destination": STRING}),
        _tool("make_dir", "Make a directory", {"path": STRING}),
        _tool("count_lines", "Count the lines of a file", {"path": STRING}),
        _tool("format_code", "Format the code of a file", {"path": STRING}, {"line_length": INTEGER}),
        _tool("search", "Search text in files", {"pattern": STRING, "path": STRING}),
        _tool("find_symbol", "Find where a symbol is defined", {"name": STRING}, {"kind": _enum(*KINDS)}),
        _tool("rename_symbol", "Rename a symbol everywhere", {"old": STRING, "new": STRING}),
        _tool("run_command", "Run a shell command", {"command": STRING}, {"timeout": INTEGER}),
        _tool("run_tests", "Run test files", {"paths": STRINGS}, {"verbose": BOOLEAN}),
        _tool("git_commit", "Commit all changes", {"message": STRING}, {"amend": BOOLEAN}),
        _tool("install_package", "Install a package", {"package": STRING}, {"version": STRING, "dev": BOOLEAN}),
        _tool("set_options", "Set options of the project", {"options": OBJECT}),
        _tool("set_threshold", "Set a quality threshold", {"metric": _enum(*METRICS), "value": NUMBER}),
        _tool(
            "create_issue",
            "Create an issue",
            {"title": STRING, "labels": STRINGS},
            {"priority": _enum(*PRIORITIES)},
        ),
        _tool("start_server", "Start a local server", {"port": INTEGER}, {"reload": BOOLEAN}),
        _tool("schedule_task", "Schedule a task", {"task": STRING, "minutes": INTEGER, "repeat": BOOLEAN}),
    )
}
