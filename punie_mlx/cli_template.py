"""`punie-mlx template`: our own chat templates, written with the tokens of a tokenizer."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from punie_mlx.errors import ConfigError, ModelError

app = typer.Typer(
    name="template",
    help="Our own chat templates, one for each family of models.",
    no_args_is_help=True,
)
_POINTS = re.compile(r"(?:U\+[0-9A-Fa-f]{4,6})+")


@app.command("list")
def list_() -> None:
    """Name the families, their wire formats, and what they are for. Example: `punie-mlx template list`"""
    from punie_mlx.chat.templates import FAMILIES

    for family in FAMILIES.values():
        print(f"{family.name:<12} {family.format:<12} {family.description}")


@app.command()
def make(
    tokenizer: Annotated[
        Path, typer.Option(metavar="DIR", help="Model directory: its tokens and its present template decide.")
    ],
    family: Annotated[
        str | None, typer.Option(metavar="NAME", help="See `template list`. Default: told by the present template.")
    ] = None,
    markers: Annotated[
        str | None,
        typer.Option(
            metavar="OPEN,CLOSE",
            help="What opens and closes a call, for SmolLM3: as text, or by code points such as U+E00F,U+E010.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write. Default: print it.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write the template of a family with the tokens of a tokenizer, in pure ASCII.

    Tokens of private use are written as escapes, so that no editor can lose them.
    Example: `punie-mlx template make --family smollm3 --tokenizer models/SmolLM3-3B --out chat_template.jinja`
    """
    from punie_mlx.chat import templates
    from punie_mlx.chat.render import load_tokenizer
    from punie_mlx.files import refuse_existing, write_text

    given = _pair(markers) if markers else None
    if overwrite and out is None:
        raise ConfigError("--overwrite is about the file that --out names: give --out, too")
    if family:
        templates.get(family)
    loaded = load_tokenizer(tokenizer, needs_template=False)
    vocabulary = loaded.get_vocab()
    if not any(tokenizer.glob("*token*")) and not any(tokenizer.glob("vocab*")):  # one is made up then, of no words
        raise ModelError(f"{tokenizer} holds no tokenizer: copy tokenizer.json and tokenizer_config.json into it")
    present = _text(loaded.chat_template)
    found = family or templates.family_of(present, vocabulary)
    if found is None:
        known = ", ".join(templates.FAMILIES)
        raise ConfigError(f"the template of {tokenizer} is of no family that we have: name one with --family ({known})")
    text = templates.make(found, vocabulary, present, given)
    if out is None:
        print(text, end="")
        return
    refuse_existing(out, overwrite)
    write_text(out, text)
    command = shlex.join(["punie-mlx", "serve", "--model", str(tokenizer), "--chat-template", str(out)])
    print(f"{out}: the template of {found} for {tokenizer}. Serve with it: {command}")


def _text(template: object) -> str:
    """The template for tools, of several by name."""
    if isinstance(template, dict):
        template = template.get("tool_use") or template.get("default")
    return template if isinstance(template, str) else ""


def _pair(markers: str) -> tuple[str, str]:
    """The two markers of the option."""
    pair = [_spelled(part) for part in markers.split(",")]
    if len(pair) != 2 or not all(pair):
        raise ConfigError(f"--markers {markers} names no two markers: give what opens and what closes, as OPEN,CLOSE")
    return pair[0], pair[1]


def _spelled(marker: str) -> str:
    """A marker that is given as text or as code points."""
    if not _POINTS.fullmatch(marker):
        return marker
    numbers = [int(point, 16) for point in marker.split("U+") if point]
    if any(n > 0x10FFFF or 0xD800 <= n < 0xE000 for n in numbers):
        raise ConfigError(f"{marker} is no character: give code points from U+0000 to U+10FFFF")
    return "".join(map(chr, numbers))
