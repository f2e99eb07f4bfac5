"""Whether an answer holds the text of a call: what a model wrote that wanted a tool, and that nothing could read.

Told by its look, not by parsing: a call that is cut off or broken is the text of a call as well.
"""

from __future__ import annotations

import re
from collections.abc import Container

MARKERS = ("<tool_call>", "<function=")
FENCE = re.compile(r"```[^\n`]*\n?(.*?)(?:```|\Z)", re.DOTALL)
NAMED = re.compile(r"""["'](?:name|function|tool)["']\s*:\s*["']([^"']*)["']""")
GIVEN = re.compile(r"""["'](?:arguments|parameters|args)["']\s*:""")


def call_text(answer: str, names: Container[str]) -> str | None:
    """The part of `answer` that is the text of a call: control markers, a fence or a bare JSON object; or None.

    `names`: the tools that are offered. JSON that names none of them is a call only where it gives arguments, too.
    """
    for marker in MARKERS:
        if marker in answer:
            return answer[answer.index(marker) :]
    bodies = [m[1] for m in FENCE.finditer(answer)]
    if not bodies and answer.lstrip()[:1] in ("{", "["):
        bodies = [answer]
    return next((b for b in bodies if _is_call(b, names)), None)


def _is_call(body: str, names: Container[str]) -> bool:
    name = NAMED.search(body)
    return bool(name and (name[1] in names or GIVEN.search(body)))
