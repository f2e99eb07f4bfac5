"""`punie-mlx inspect`: a conversation as tokens, in the terminal or as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_WIDTH = 140  # columns where the output is no terminal


def inspect(
    model: Annotated[Path, typer.Option(metavar="DIR", help="Model directory; its weights only with --generate.")],
    messages: Annotated[
        Path,
        typer.Option(metavar="FILE", help="JSON list of messages, object with `messages` and `tools`, or a .jsonl."),
    ],
    tools: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON list of tools, in the place of those of --messages.")
    ] = None,
    line: Annotated[
        int | None, typer.Option(min=1, help="Row of a .jsonl to look at, by its line. Default: the first.")
    ] = None,
    generate: Annotated[int, typer.Option(min=0, help="Let the model write so many tokens, and look at them.")] = 0,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Adapter to lay over the model for --generate.")
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Jinja file in the place of the model's own template.")
    ] = None,
    template_kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="For the chat template, say '{\"enable_thinking\": false}'.")
    ] = None,
    tool_call_format: Annotated[
        str | None, typer.Option(metavar="NAME", help="Wire format of its calls. Default: what its template shows.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page instead of showing it here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as one JSON object.")] = False,
) -> None:
    """Show a conversation as the model sees it: tokens with ids, whose turn each is, and what training learns of it.

    With --generate also what the model writes before anything reads it: the probability of each token and of the
    marker tokens, the reader's state after it, and the calls that come of it. It has no grammar and no server.
    Example: `punie-mlx inspect --model data/tiny-base --messages data/phase8_xml_format/train.jsonl --line 3`
    """
    from punie_mlx.chat.render import read_template
    from punie_mlx.inspector.inspection import Asked
    from punie_mlx.inspector.inspection import inspect as look
    from punie_mlx.inspector.page import refuse_page, write_page
    from punie_mlx.inspector.source import read_row
    from punie_mlx.serve.config import coerce

    if html is not None:
        refuse_page(html, messages, *filter(None, (tools, chat_template)))
    asked = Asked(
        model=model,
        row=read_row(messages, tools, line),
        generate=generate,
        adapter=adapter,
        chat_template=read_template(chat_template) if chat_template else None,
        template_kwargs=coerce("template_kwargs", template_kwargs or "{}", "--template-kwargs"),
        tool_call_format=tool_call_format,
    )
    seen = look(asked)
    if html is not None:
        write_page(seen, html)
        typer.echo(f"{html}: {html.stat().st_size / 1e6:.1f} MB, open it in a browser", err=True)
    if as_json:
        import json

        typer.echo(json.dumps(seen.to_json()))
    elif html is None:
        from rich.console import Console

        from punie_mlx.inspector.terminal import show

        console = Console(highlight=False)
        show(seen, console if console.is_terminal else Console(width=_WIDTH, highlight=False))
