"""Text that others wrote, as HTML: what a model says may hold markup, escapes, and characters that rearrange a line.

Every function gives a `Html`, a string that is safe in a page; plain strings are escaped wherever they are put in.
Characters that nobody sees, or that change what is seen around them (controls, bidi overrides, zero-width characters,
lone surrogates), stand there by their code points.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from html import escape as _escape
from typing import Any

# Format and control characters, surrogates, private and unassigned code points, line and paragraph separators.
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
PLAIN = re.compile(r"[^\x20-\x7e\n\t]")  # what is worth a look; most text has none
# How white space is shown where it matters; a line still ends where it ended.
SPACES = {" ": "<u>·</u>", "\t": "<u>→</u>", "\n": "<u>↵</u>\n"}


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def html(value: object) -> Html:
    """`value` as HTML: a `Html` as it is, all else as text, with hidden characters made visible."""
    return value if isinstance(value, Html) else Html(PLAIN.sub(_shown, _escape(str(value))))


def join(parts: Iterable[object], between: str = "") -> Html:
    """`parts` as HTML, one after the other."""
    return Html(between.join(html(p) for p in parts))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """`<name …>content</name>`. Attributes: `class_` is `class`, `_` in a name is `-`; None and False are left out."""
    return Html(f"<{name}{_attributes(attributes)}>{join(content)}</{name}>")


def spaced(text: str) -> Html:
    """`text` with its white space visible, for tokens."""
    return Html(PLAIN.sub(_shown, "".join(SPACES.get(c, c) for c in _escape(text))))


def visible(value: object) -> str:
    """`value` as text, for a terminal too: hidden characters as `U+202E`."""
    return PLAIN.sub(lambda m: _point(m[0]) if is_hidden(m[0]) else m[0], str(value))


def attribute(value: object) -> str:
    """`value` for a quoted attribute, where there is no markup."""
    return _escape(visible(value))


def pretty(value: Any) -> str:
    """A JSON value as text for reading."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)


def compact(value: Any) -> str:
    """A JSON value in one line."""
    return json.dumps(value, ensure_ascii=False)


def clipped(text: str, most: int) -> str:
    """`text` in one line of at most `most` characters."""
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most else line[: most - 1] + "…"


def is_hidden(char: str) -> bool:
    return char not in "\n\t" and unicodedata.category(char) in HIDDEN


def _shown(found: re.Match[str]) -> str:
    return f'<span class="cp">{_point(found[0])}</span>' if is_hidden(found[0]) else found[0]


def _point(char: str) -> str:
    return f"U+{ord(char):04X}"


def _attributes(attributes: dict[str, object]) -> str:
    out = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        out.append(f" {key}" if value is True else f' {key}="{attribute(value)}"')
    return "".join(out)
