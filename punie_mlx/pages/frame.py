"""A page as one file: style and script stand in it, are allowed by their hashes, and nothing else may load or run.

document(title, body, style=("page.css", "own rules"), script="…")
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from punie_mlx.pages.text import Html, attribute

ASSETS = Path(__file__).parent / "assets"


def asset(name: str, directory: Path = ASSETS) -> str:
    """The text of a style sheet or script of this package."""
    return (directory / name).read_text(encoding="utf-8")


def policy(style: str, script: str, *, asks: bool = False) -> str:
    """The content security policy of a page with this style sheet and script: nothing is fetched, nothing else runs.

    asks: its script may ask the server that it came from.
    """
    rules = ["default-src 'none'", f"style-src {_hash(style)}", "base-uri 'none'", "form-action 'none'"]
    rules += [f"script-src {_hash(script)}"] if script else []
    return "; ".join([*rules, "connect-src 'self'"] if asks else rules)


def document(title: str, body: str, *, style: str = "", script: str = "", asks: bool = False) -> Html:
    """The whole page. `body` is HTML; `style` comes after the shared sheet, `script` runs at the end.

    asks: the script may ask the server that the page came from.
    """
    rules = _whole(asset("page.css") + style)
    code = _whole(script)
    scripted = f"<script>{code}</script>\n" if code else ""
    return Html(
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{attribute(policy(rules, code, asks=asks))}">
<meta name="referrer" content="no-referrer">
<title>{attribute(title)}</title>
<style>{rules}</style>
</head>
<body>
{body}
{scripted}</body>
</html>
"""
    )


def _whole(text: str) -> str:
    """`text` as an element of raw text can hold it: our own assets never end their element."""
    if "</s" in text.lower():
        raise ValueError("a style sheet or script may not hold </s, which could end its element")
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
