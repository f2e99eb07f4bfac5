"""Arguments that stand nowhere in the conversation: what the model could only have guessed.

Looked at are the values that cannot be put in other words: paths, addresses and links, alone or quoted inside an
argument that is code or a command. Such a value has grounds where it stands in a turn before the call, in an earlier
call, in the tools (an enum, a description), or where its directory and its file name do so apart, as after a listing.
Letter case and a leading `./` do not count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from punie_mlx.corpus.audit.model import WARNING, AuditRow, Call, Check, Corpus, Finding, each

# A file with an extension, or anything with a directory. No white space and no wildcards: those are commands, globs.
_PATH = (
    r"(?:~|\.{0,2})/?(?:[\w.@+-]+/)*[\w@+-][\w.@+-]*\.[A-Za-z][A-Za-z0-9]{0,5}|(?:~/|\.{0,2}/)?(?:[\w.@+-]+/)+[\w.@+-]*"
)
_LINK = r"https?://[^\s\"'<>]+"
_ADDRESS = r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
_EXACT = re.compile(f"{_LINK}|{_ADDRESS}|{_PATH}")
_QUOTED = re.compile(r"""(['"])((?:(?!\1)[^\\\n])+)\1""")
_NUMBER = re.compile(r"[\d./-]+")  # dates, versions and fractions are put in other words


def not_in_conversation(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    """Each value once: where it is repeated, the call before is its ground."""
    said = [json.dumps(row.tools, ensure_ascii=False)] if row.tools else []
    for turn in row.turns:
        for call in turn.calls:
            known = "\n".join(said).lower()
            for key, value in exact_values(call):
                if not grounded(value, known):
                    yield row.finding(f"message {call.turn + 1}: {call.name}({key}): {value} stands nowhere before")
            said += _strings(call.arguments)
        said.append(turn.content)


def exact_values(call: Call) -> Iterator[tuple[str, str]]:
    """Argument and value of each path, address or link in the arguments of `call`, without repetition."""
    seen = set()
    for key, argument in call.arguments.items():
        for text in _strings(argument):
            values = [text] if _EXACT.fullmatch(text) else [m[2] for m in _QUOTED.finditer(text)]
            for value in values:
                if _EXACT.fullmatch(value) and not _NUMBER.fullmatch(value) and (key, value) not in seen:
                    seen.add((key, value))
                    yield key, value


def grounded(value: str, known: str) -> bool:
    """Whether `value` stands in `known` (lower case), whole, or its directory and its file name apart."""
    value = value.lower().removeprefix("./").rstrip("/")
    directory, _, name = value.rpartition("/")
    return value in known or bool(directory and directory in known and name in known)


def _strings(value: Any) -> list[str]:
    match value:
        case str():
            return [value]
        case dict():
            return [text for inner in value.values() for text in _strings(inner)]
        case list():
            return [text for inner in value for text in _strings(inner)]
    return []


CHECKS = (
    Check(
        "not_in_conversation", WARNING, "Arguments that stand nowhere in the conversation",
        "The model could only guess them, and learns to make up paths and addresses. Name the value in the question, "
        "or let a call before find it. Right where the model chooses a name itself, as for a file that it creates.",
        each(not_in_conversation),
    ),
)  # fmt: skip
