"""`punie-mlx push` and `pull`: a model to the model hub and from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Model directory that `fuse` or `quantize` wrote.")],
    repo: Annotated[str, typer.Option(metavar="ORG/NAME", help="Where on the hub; it is made where there is none.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private; refuse where it is public.")] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch to write; it is made where there is none.")
    ] = None,
    run: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="Result of `eval --json` for the card; may be repeated, one of DIR itself."),
    ] = None,
    licence: Annotated[str | None, typer.Option(metavar="ID", help="Licence of the model, say apache-2.0.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the card and what would be sent; ask the hub nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead.")] = False,
) -> None:
    """Publish a model: its named files, a card written from its manifests, in one commit. Prints the commit.

    Log in first with `hf auth login`, or set HF_TOKEN. What a stopped push has sent is not sent again.
    Example: `punie-mlx push runs/5bit --repo org/name --private --run 5bit.json`
    """
    from dataclasses import asdict

    from punie_mlx.export.push import PushConfig
    from punie_mlx.export.push import push as room

    config = PushConfig(directory, repo, private, revision, tuple(run or ()), licence, dry_run)
    done = room(config)
    if as_json:
        print(json.dumps(asdict(done), indent=2, ensure_ascii=False))
        return
    if dry_run:
        print(done.card)
    for name, size in done.files.items():
        print(f"{'would send' if dry_run else 'sent'} {name} ({size / 1e6:,.2f} MB)")
    for name, why in done.left_out.items():
        print(f"left out {name}: {why}")
    for name in done.deleted:
        print(f"deleted {name} on the hub: no part of this model")
    if done.commit:
        print(f"{done.url}\n{done.repo}@{done.commit}: fingerprint {done.fingerprint}")


def pull(
    name: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Model on the hub; also org/name@REVISION.")],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    revision: Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit. Default: main.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead.")] = False,
) -> None:
    """Fetch a model at one commit, compare it with its hashes and its fingerprint, and record the commit.

    Run it again after a stop: what is there already is not fetched again.
    Example: `punie-mlx pull org/name --revision main --out models/name`
    """
    from dataclasses import asdict

    from punie_mlx.export.pull import pull as room

    done = room(name, out, revision=revision, overwrite=overwrite)
    if as_json:
        print(json.dumps(asdict(done) | {"out": str(done.out)}, indent=2, ensure_ascii=False))
        return
    for left in done.left_out:
        print(f"left out {left}")
    how = "as its manifest says" if done.said else "no manifest says which it should be"
    print(f"{done.out}: {len(done.files)} files, {done.bytes / 1e6:,.1f} MB, {done.repo}@{done.commit}")
    print(f"fingerprint {done.fingerprint} ({how})")
