"""The world's tools, executed: the results that the corpus promises, and nothing outside the directory."""

import json
from random import Random

import pytest

from punie_mlx.corpus.skills import SKILLS
from punie_mlx.corpus.world import TOOLS
from punie_mlx.evals.scratch import MAX_FILE, Scratch

FILES = {
    "src/a.py": "class Foo:\n    pass  \n",
    "src/b/c.py": "def bar():\n    Foo\nx = 1\n",
    "d.txt": "one\ntwo\nthree",
}


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in").mkdir()
    return Scratch(tmp_path / "in", FILES)


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("read_file", {"path": "d.txt"}, "one\ntwo\nthree"),
        ("list_dir", {"path": "src"}, "a.py b"),
        ("list_dir", {"path": ".", "recursive": True}, "d.txt src/a.py src/b/c.py"),
        ("list_dir", {"path": "src", "recursive": True}, "a.py b/c.py"),
        ("count_lines", {"path": "d.txt"}, "3 lines"),
        ("search", {"pattern": "Foo", "path": "."}, "src/a.py src/b/c.py"),
        ("search", {"pattern": "zzz", "path": "src"}, "nothing found"),
        ("find_symbol", {"name": "Foo"}, "src/a.py"),
        ("find_symbol", {"name": "bar", "kind": "class"}, "nothing found"),
        ("find_symbol", {"name": "x", "kind": "variable"}, "src/b/c.py"),
        ("run_command", {"command": "cat d.txt"}, "one\ntwo\nthree"),
        ("run_command", {"command": "head -n 1 d.txt"}, "one"),
        ("run_command", {"command": "grep -rn Foo src/b"}, "src/b/c.py:2:    Foo"),
        ("run_command", {"command": "grep -rn zzz src"}, "no output"),
        ("run_command", {"command": "grep -n 'def bar(' src/b/c.py"}, "1:def bar():"),
        ("run_command", {"command": "echo a/b ../c"}, "a/b ../c"),
        ("run_command", {"command": "pwd"}, "."),
        ("run_tests", {"paths": ["src/a.py", "d.txt"]}, "2 passed"),
    ],
)
def test_answers(scratch, name, arguments, result):
    outcome = scratch.call(name, arguments)
    assert (outcome.text, outcome.ok) == (result, True)


@pytest.mark.parametrize(
    ("name", "arguments", "effect"),
    [
        ("write_file", {"path": "n/e/w.txt", "content": "é\r\n"}, ("saved", "n/e/w.txt", "é\r\n")),
        ("move_file", {"source": "d.txt", "destination": "e/f.txt"}, ("moved", "e/f.txt", "one\ntwo\nthree")),
        ("format_code", {"path": "src/a.py"}, ("formatted", "src/a.py", "class Foo:\n    pass\n")),
        ("rename_symbol", {"old": "Foo", "new": r"G\1"}, ("renamed", "src/b/c.py", "def bar():\n    G\\1\nx = 1\n")),
        ("git_commit", {"message": "fix it"}, ("committed", ".history", "fix it\n")),
        ("install_package", {"package": "p", "version": "1.2"}, ("installed", "requirements.txt", "p==1.2\n")),
    ],
)
def test_effects(scratch, name, arguments, effect):
    outcome = scratch.call(name, arguments)
    text, path, content = effect
    assert (outcome.text, outcome.ok) == (text, True)
    assert (scratch.root / path).read_bytes().decode() == content


def test_effects_that_add_up(scratch):
    assert scratch.call("make_dir", {"path": "m/n"}).ok and (scratch.root / "m/n").is_dir()
    assert scratch.call("delete_file", {"path": "d.txt"}).ok and not (scratch.root / "d.txt").exists()
    scratch.call("git_commit", {"message": "a"})
    scratch.call("git_commit", {"message": "b"})
    scratch.call("git_commit", {"message": "c", "amend": True})
    assert (scratch.root / ".history").read_text() == "a\nc\n"
    scratch.call("set_options", {"options": {"x": 1, "y": {"z": True}}})
    scratch.call("set_threshold", {"metric": "coverage", "value": 91.5})
    assert json.loads((scratch.root / "settings.json").read_text()) == {
        "thresholds": {"coverage": 91.5},
        "x": 1,
        "y": {"z": True},
    }


def test_every_tool_of_the_world_is_executed():
    assert [name for name in TOOLS if not callable(getattr(Scratch, name, None))] == []


@pytest.mark.parametrize("name", sorted(SKILLS))
def test_the_corpus_tells_what_the_tools_answer(tmp_path, name):
    """What a model is taught as the result of a call is what the call gives."""
    r = Random(7)
    for i in range(25):
        ask = SKILLS[name](r)
        (tmp_path / str(i)).mkdir()
        outcome = Scratch(tmp_path / str(i), ask.files).call(ask.tool, ask.arguments)
        assert (outcome.text, outcome.ok) == (ask.result, True), ask


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("read_file", {"path": "nope"}, "no such file"),
        ("read_file", {"path": "src"}, "it is a directory"),
        ("list_dir", {"path": "nope"}, "no such directory"),
        ("read_file", {"path": "../secret"}, "the path is outside the project"),
        ("read_file", {"path": "/etc/passwd"}, "the path is outside the project"),
        ("read_file", {"path": "a\0b"}, "no such file"),
        ("write_file", {"path": "../new", "content": ""}, "the path is outside the project"),
        ("move_file", {"source": "d.txt", "destination": "../new"}, "the path is outside the project"),
        ("write_file", {"path": "x", "content": "\ud800"}, "the text cannot be written as UTF-8"),
        ("rename_symbol", {"old": "Nope", "new": "x"}, "no symbol Nope"),
        ("read_file", {}, "path is missing"),
        ("read_file", {"path": 1}, "path must be string, not integer"),
        ("read_file", {"path": "d.txt", "encoding": "x"}, "encoding is unknown"),
        ("set_threshold", {"metric": "speed", "value": 1}, "metric must be one of coverage, complexity, duplication"),
        ("run_tests", {"paths": "a"}, "paths must be array, not string"),
        ("run_command", {"command": ""}, "the command is empty"),
        ("run_command", {"command": "rm -rf src"}, "rm is not allowed here"),
        ("run_command", {"command": "cat 'd.txt"}, "the command cannot be read: no closing quotation"),
        ("run_command", {"command": "cat nope"}, "cat: nope: No such file or directory"),
        ("run_command", {"command": "cat ../secret"}, "the path is outside the project"),
        ("run_command", {"command": "cat /etc/passwd"}, "the path is outside the project"),
        ("run_command", {"command": "grep -f/etc/passwd x d.txt"}, "the path is outside the project"),
        ("run_command", {"command": "grep --file=../secret d.txt"}, "the path is outside the project"),
        ("run_command", {"command": "grep -rf../secret x d.txt"}, "the path is outside the project"),
        ("run_command", {"command": "cat d.txt | wc"}, "pipes, redirections and several commands are not allowed here"),
        ("run_command", {"command": "echo a>b"}, "pipes, redirections and several commands are not allowed here"),
        ("run_command", {"command": "echo a; ls"}, "pipes, redirections and several commands are not allowed here"),
        ("run_command", {"command": "wc --files0-from=d.txt"}, "wc --files0-from=d.txt is not allowed here"),
        ("run_command", {"command": "wc --fi=d.txt"}, "wc --fi=d.txt is not allowed here"),
        ("run_command", {"command": "find -files0-from d.txt"}, "find -files0-from is not allowed here"),
        ("run_command", {"command": "find . -delete"}, "find -delete is not allowed here"),
        ("run_command", {"command": "find . -exec rm d.txt"}, "find -exec is not allowed here"),
        ("run_command", {"command": "tail -f d.txt", "timeout": 1}, "the command took longer than 1 seconds"),
    ],
)
def test_errors(scratch, tmp_path, name, arguments, reason):
    outcome = scratch.call(name, arguments)
    assert (outcome.text, outcome.ok) == (f"error: {reason}", False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "secret"]
    assert {p.relative_to(scratch.root).as_posix() for p in scratch.root.rglob("*") if p.is_file()} == set(FILES)


def test_a_tool_that_the_world_does_not_know_answers_ok(scratch):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert scratch.call("launch", {"n": 1}, schema).text == "ok"
    assert scratch.call("launch", {"n": "1"}, schema).text == "error: n must be integer, not string"
    assert scratch.call("path", {"name": "x"}, {}).text == "ok"  # a method of Scratch, but no tool


def test_a_tool_of_the_world_under_another_schema_answers_with_an_error(scratch):
    """What a model writes never ends the evaluation."""
    assert scratch.call("find_symbol", {"name": "Foo", "kind": "module"}, {}).text.startswith(
        "error: kind must be one of"
    )
    assert scratch.call("write_file", {"path": "a", "content": 5}, {}).text.startswith("error: ")
    assert scratch.call("set_options", {"options": {"thresholds": 5}}).ok
    assert not scratch.call("set_threshold", {"metric": "coverage", "value": 1}).ok


def test_long_results_are_cut(scratch):
    scratch.call("write_file", {"path": "long", "content": "x" * 30_000})
    text = scratch.call("read_file", {"path": "long"}).text
    assert len(text) < 21_000 and text.endswith("10000 characters more")


def test_a_snapshot_holds_every_file_and_its_text(tmp_path):
    scratch = Scratch(tmp_path, {"a.txt": "amber\r\n", "b/c.txt": "ä", "big": "x" * (MAX_FILE + 5)})
    (tmp_path / "bytes").write_bytes(b"\xff")
    scratch.call("delete_file", {"path": "a.txt"})
    found = scratch.snapshot()
    assert set(found) == {"b/c.txt", "big", "bytes"} and found["b/c.txt"] == "ä" and found["bytes"] == "\ufffd"
    assert found["big"].endswith("… cut, 5 characters more")
