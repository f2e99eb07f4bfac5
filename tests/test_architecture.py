"""Which way the arrows run: imports between rooms, and who may touch mlx_lm."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "punie_mlx"
ROOMS = ("toolcalls", "chat", "corpus", "train", "export", "serve", "evals", "doctor", "inspector")
SEERS = ("doctor", "inspector")  # they look at what the others make
FORBIDDEN = {
    "toolcalls": ("mlx", "mlx_lm", "transformers", *(f"punie_mlx.{r}" for r in ROOMS if r != "toolcalls")),
    "chat": tuple(f"punie_mlx.{r}" for r in ("corpus", "train", "export", "serve", "evals", *SEERS)),
    "corpus": ("mlx", "mlx_lm", *(f"punie_mlx.{r}" for r in ("train", "export", "serve", "evals", *SEERS))),
    "train": tuple(f"punie_mlx.{r}" for r in ("export", "serve", "evals", *SEERS)),
    "export": tuple(f"punie_mlx.{r}" for r in ("train", "serve", "evals", *SEERS)),
    "serve": tuple(f"punie_mlx.{r}" for r in ("train", "export", "evals", "corpus", *SEERS)),
    "evals": ("mlx", "mlx_lm", *(f"punie_mlx.{r}" for r in ("train", "export", "serve", *SEERS))),
    "doctor": ("mlx", "mlx_lm", *(f"punie_mlx.{r}" for r in ("train", "export", "serve", "evals", "inspector"))),
    "inspector": ("mlx", "mlx_lm", *(f"punie_mlx.{r}" for r in ("export", "serve", "evals", "doctor"))),
    "pages": ("mlx", "mlx_lm", "transformers", *(f"punie_mlx.{r}" for r in ROOMS)),
}


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def test_no_import_runs_upwards_or_sideways() -> None:
    wrong = [
        f"{file.relative_to(PACKAGE)}: {name}"
        for room, banned in FORBIDDEN.items()
        for file in (PACKAGE / room).rglob("*.py")
        for name in imports(file)
        if any(under(name, b) for b in banned)
    ]
    assert wrong == []


def test_mlx_lm_is_touched_in_its_places_only() -> None:
    serve = ("serve/engine.py", "serve/loading.py", "serve/prompt_cache.py")
    allowed = ("chat/render.py", "train/", "export/", *serve, "weights.py", "direct.py")
    users = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if any(under(name, "mlx_lm") for name in imports(file))
    }
    assert users
    assert [u for u in users if not u.startswith(allowed)] == []


def test_files_hold_one_idea() -> None:
    lengths = {f.relative_to(PACKAGE).as_posix(): f.read_text().count("\n") for f in PACKAGE.rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 500} == {}
